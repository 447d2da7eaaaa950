#include "http/chat_messages.h"

#include <string>
#include <string_view>
#include <utility>

#include "chat_rules.h"
#include "conclave/base/status.h"
#include "http/image_url.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

namespace json = boost::json;

struct Context {
  const HttpLimits& limits;
  const ModelCard& card;
  UnknownFields& unknown;
  int32_t num_images = 0;
};

std::string_view View(const json::string& text) { return {text.data(), text.size()}; }

absl::StatusOr<Message::Role> ParseRole(const json::value* value, const std::string& param) {
  if (value == nullptr || !value->is_string()) {
    return FieldError("invalid_role", param,
                      "missing or no string; expected \"system\", \"user\" or \"assistant\"");
  }
  return RoleNamed(View(value->get_string()), param);
}

absl::Status CheckDetail(const json::value* value, const std::string& param) {
  if (value == nullptr) {
    return absl::OkStatus();
  }
  const std::string_view detail = value->is_string() ? View(value->get_string()) : "";
  if (detail != "auto" && detail != "low" && detail != "high") {
    return FieldError("invalid_content_part", param, "expected \"auto\", \"low\" or \"high\"");
  }
  return absl::OkStatus();
}

absl::StatusOr<ContentPart> ParseImagePart(FieldReader& fields, Message::Role role,
                                           Context& context) {
  const json::value* image = fields.Find("image_url");
  const std::string scope = fields.Param("image_url");
  if (image == nullptr || !image->is_object()) {
    return FieldError("invalid_content_part", scope, "expected an object with \"url\"");
  }
  FieldReader image_fields(image->get_object(), scope + ".", "messages[].content[].image_url.",
                           context.unknown);
  const json::value* url = image_fields.Find("url");
  if (url == nullptr || !url->is_string()) {
    return FieldError("invalid_content_part", image_fields.Param("url"), "expected a string");
  }
  CONCLAVE_RETURN_IF_ERROR(CheckDetail(image_fields.Find("detail"), image_fields.Param("detail")));
  image_fields.ReportUnknown();
  CONCLAVE_RETURN_IF_ERROR(
      AdmitImage(role, scope, context.limits, context.card, context.num_images));
  ContentPart part;
  part.kind = ContentPart::Kind::kImage;
  part.bytes = std::string(View(url->get_string()));
  part.param = image_fields.Param("url");
  return part;
}

absl::StatusOr<ContentPart> ParsePart(const json::value& value, const std::string& param,
                                      Message::Role role, Context& context) {
  if (!value.is_object()) {
    return FieldError("invalid_content", param, "expected an object, found " + Describe(value));
  }
  FieldReader fields(value.get_object(), param + ".", "messages[].content[].", context.unknown);
  const json::value* type = fields.Find("type");
  if (type == nullptr || !type->is_string()) {
    return FieldError("invalid_content_part", fields.Param("type"),
                      "missing or no string; expected \"text\" or \"image_url\"");
  }
  const std::string_view kind = View(type->get_string());
  ContentPart part;
  if (kind == "text") {
    const json::value* text = fields.Find("text");
    if (text == nullptr || !text->is_string()) {
      return FieldError("invalid_content_part", fields.Param("text"), "expected a string");
    }
    part.bytes = std::string(View(text->get_string()));
    part.param = fields.Param("text");
  } else if (kind == "image_url") {
    CONCLAVE_ASSIGN_OR_RETURN(part, ParseImagePart(fields, role, context));
  } else {
    return FieldError("invalid_content_part", fields.Param("type"),
                      "expected \"text\" or \"image_url\", found \"" + Excerpt(kind) + "\"");
  }
  fields.ReportUnknown();
  return part;
}

absl::Status ParseParts(const json::array& array, const std::string& param, Context& context,
                        Message& message) {
  CONCLAVE_RETURN_IF_ERROR(CheckNumParts(array.size(), param, context.limits));
  for (size_t i = 0; i < array.size(); ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(
        ContentPart part,
        ParsePart(array[i], param + "[" + std::to_string(i) + "]", message.role, context));
    message.parts.push_back(std::move(part));
  }
  return CheckHasContent(message, param);
}

absl::StatusOr<Message> ParseMessage(const json::value& value, size_t index, Context& context) {
  const std::string where = "messages[" + std::to_string(index) + "]";
  if (!value.is_object()) {
    return FieldError("invalid_message", where, "expected an object, found " + Describe(value));
  }
  FieldReader fields(value.get_object(), where + ".", "messages[].", context.unknown);
  Message message;
  CONCLAVE_ASSIGN_OR_RETURN(message.role, ParseRole(fields.Find("role"), fields.Param("role")));
  const json::value* content = fields.Find("content");
  const std::string param = fields.Param("content");
  if (content == nullptr) {
    return FieldError("invalid_content", param, "missing; expected a string or an array of parts");
  }
  if (content->is_string() && !content->get_string().empty()) {
    ContentPart part;
    part.bytes = std::string(View(content->get_string()));
    part.param = param;
    message.parts.push_back(std::move(part));
  } else if (content->is_array()) {
    CONCLAVE_RETURN_IF_ERROR(ParseParts(content->get_array(), param, context, message));
  } else {
    return FieldError("invalid_content", param,
                      "expected a string that is not empty or an array of parts, found " +
                          (content->is_string() ? "an empty string" : Describe(*content)));
  }
  fields.Know({"name"});
  fields.ReportUnknown();
  return message;
}

}  // namespace

absl::StatusOr<std::vector<Message>> ParseMessages(const json::value* value,
                                                   const HttpLimits& limits, const ModelCard& card,
                                                   UnknownFields& unknown) {
  if (value == nullptr || !value->is_array()) {
    return CheckNumMessages(0, limits);
  }
  const json::array& array = value->get_array();
  CONCLAVE_RETURN_IF_ERROR(CheckNumMessages(array.size(), limits));
  Context context{limits, card, unknown};
  std::vector<Message> messages;
  for (size_t i = 0; i < array.size(); ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(Message message, ParseMessage(array[i], i, context));
    messages.push_back(std::move(message));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckOrder(messages));
  return messages;
}

absl::StatusOr<int32_t> DecodeImages(const HttpLimits& limits, std::vector<Message>& messages) {
  int32_t num_mislabelled = 0;
  for (Message& message : messages) {
    for (ContentPart& part : message.parts) {
      if (part.kind != ContentPart::Kind::kImage) {
        continue;
      }
      absl::StatusOr<UrlPicture> picture = DecodeImageUrl(part.bytes, limits.image_bytes_max);
      if (!picture.ok()) {
        return WithParam(Annotate(picture.status(), part.param), part.param);
      }
      part.bytes = std::move(picture->bytes);
      num_mislabelled += picture->is_mislabelled ? 1 : 0;
    }
  }
  return num_mislabelled;
}

}  // namespace conclave::frontend
