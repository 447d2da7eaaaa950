#include "chat_rules.h"

#include <algorithm>
#include <charconv>

#include "conclave/base/status.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

absl::Status OutOfRangeOf(std::string_view name, const std::string& param, std::string_view kind,
                          const std::string& range, const std::string& found) {
  return WithParam(InvalidArgument(std::string(name) + "_out_of_range",
                                   param + ": out of range; expected " + std::string(kind) +
                                       " in " + range + ", found " + found),
                   param);
}

}  // namespace

absl::Status FieldError(std::string_view reason, std::string_view param, std::string_view message) {
  return WithParam(InvalidArgument(reason, std::string(param) + ": " + std::string(message)),
                   param);
}

bool IsWithin(NumberRange range, double number) {
  // Written so that NaN fails.
  return (range.is_min_open ? number > range.min : number >= range.min) && number <= range.max;
}

absl::Status OutOfRange(std::string_view name, const std::string& param, NumberRange range,
                        const std::string& found) {
  return OutOfRangeOf(
      name, param, "a number",
      (range.is_min_open ? "(" : "[") + NumberText(range.min) + ", " + NumberText(range.max) + "]",
      found);
}

absl::Status OutOfRange(std::string_view name, const std::string& param, int64_t min, int64_t max,
                        const std::string& found) {
  return OutOfRangeOf(name, param, "an integer",
                      "[" + std::to_string(min) + ", " + std::to_string(max) + "]", found);
}

std::string NumberText(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return {text, end.ptr};
}

absl::Status CheckModelName(std::string_view name, const ModelCard& card) {
  if (name == card.id) {
    return absl::OkStatus();
  }
  return WithParam(
      NotFound("model_not_found", "model: \"" + Excerpt(name) + "\" is not served here"), "model");
}

absl::StatusOr<Message::Role> RoleNamed(std::string_view role, const std::string& param) {
  if (role == "system" || role == "developer") {
    return Message::Role::kSystem;
  }
  if (role == "user") {
    return Message::Role::kUser;
  }
  if (role == "assistant") {
    return Message::Role::kAssistant;
  }
  return FieldError(
      "invalid_role", param,
      "expected \"system\", \"user\" or \"assistant\", found \"" + Excerpt(role) + "\"");
}

absl::Status CheckNumMessages(size_t num_messages, const HttpLimits& limits) {
  if (num_messages == 0) {
    return FieldError("messages_required", "messages",
                      "expected an array with at least one message");
  }
  if (num_messages > static_cast<size_t>(limits.messages_max)) {
    return FieldError("too_many_messages", "messages",
                      "expected at most " + std::to_string(limits.messages_max) + ", found " +
                          std::to_string(num_messages));
  }
  return absl::OkStatus();
}

absl::Status CheckNumParts(size_t num_parts, const std::string& param, const HttpLimits& limits) {
  if (num_parts > static_cast<size_t>(limits.content_parts_max)) {
    return FieldError("too_many_content_parts", param,
                      "expected at most " + std::to_string(limits.content_parts_max) +
                          " parts, found " + std::to_string(num_parts));
  }
  return absl::OkStatus();
}

absl::Status CheckHasContent(const Message& message, const std::string& param) {
  const bool has_content =
      std::any_of(message.parts.begin(), message.parts.end(), [](const ContentPart& part) {
        return !part.bytes.empty() || part.kind == ContentPart::Kind::kImage;
      });
  return has_content ? absl::OkStatus()
                     : FieldError("invalid_content", param, "empty; expected text or a picture");
}

absl::Status AdmitImage(Message::Role role, const std::string& param, const HttpLimits& limits,
                        const ModelCard& card, int32_t& num_images) {
  if (role != Message::Role::kUser) {
    return FieldError("image_not_allowed", param, "pictures belong into user messages");
  }
  if (!card.has_vision) {
    return FieldError("image_not_allowed", param, "the model takes text only");
  }
  if (++num_images > limits.images_max) {
    return FieldError("too_many_images", "messages",
                      "expected at most " + std::to_string(limits.images_max) + " pictures");
  }
  return absl::OkStatus();
}

absl::Status CheckImageBytes(int64_t num_bytes, int64_t image_bytes_max) {
  if (num_bytes == 0) {
    return InvalidArgument("image_empty", "the picture holds no bytes");
  }
  if (num_bytes > image_bytes_max) {
    return InvalidArgument("image_too_large", "the picture has " + std::to_string(num_bytes) +
                                                  " bytes; expected at most " +
                                                  std::to_string(image_bytes_max));
  }
  return absl::OkStatus();
}

absl::Status CheckOrder(const std::vector<Message>& messages) {
  Message::Role want = Message::Role::kUser;
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message::Role role = messages[i].role;
    const std::string param = "messages[" + std::to_string(i) + "].role";
    if (role == Message::Role::kSystem) {
      if (i != 0) {
        return FieldError("invalid_role", param,
                          "expected one system message at most, as the first");
      }
      continue;
    }
    if (role != want) {
      return FieldError("invalid_role", param,
                        want == Message::Role::kUser
                            ? "user and assistant must alternate, user first; expected \"user\""
                            : "user and assistant must alternate; expected \"assistant\"");
    }
    want = want == Message::Role::kUser ? Message::Role::kAssistant : Message::Role::kUser;
  }
  if (messages.back().role != Message::Role::kUser) {
    return FieldError("invalid_role", "messages[" + std::to_string(messages.size() - 1) + "].role",
                      "the last message must be the user's");
  }
  return absl::OkStatus();
}

absl::Status CheckNumStops(size_t num_stops, const HttpLimits& limits) {
  if (num_stops > static_cast<size_t>(limits.stops_max)) {
    return FieldError("invalid_stop", "stop",
                      "expected at most " + std::to_string(limits.stops_max) + " strings");
  }
  return absl::OkStatus();
}

absl::Status AddStop(std::string_view stop, const HttpLimits& limits,
                     std::vector<std::string>& stops) {
  if (stop.empty() || stop.size() > static_cast<size_t>(limits.stop_bytes_max)) {
    return FieldError(
        "invalid_stop", "stop",
        "expected strings of 1 to " + std::to_string(limits.stop_bytes_max) + " bytes");
  }
  stops.emplace_back(stop);
  return absl::OkStatus();
}

}  // namespace conclave::frontend
