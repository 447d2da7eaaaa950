#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <span>
#include <utility>

#include "chat_rules.h"
#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "grpc/chat_wire.h"
#include "http/chat_response.h"
#include "inference.pb.h"

namespace conclave::frontend {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// Of ChatRequest and below it, for the count of fields.
enum class Level { kRequest, kMessage, kLeaf };

// What the fields of a message at `level` that are messages themselves hold.
std::optional<Level> Below(Level level, int field) {
  if (level == Level::kRequest && field == v1::ChatRequest::kMessagesFieldNumber) {
    return Level::kMessage;
  }
  if ((level == Level::kRequest && field == v1::ChatRequest::kSamplingFieldNumber) ||
      (level == Level::kMessage && field == v1::ChatMessage::kContentFieldNumber)) {
    return Level::kLeaf;
  }
  return std::nullopt;
}

// Counts down `num_left`; false when the bytes are no message or there are more fields than that.
bool CountFields(CodedInputStream& in, Level level, int64_t& num_left) {
  while (true) {
    const uint32_t tag = in.ReadTag();
    if (tag == 0) {
      return in.ConsumedEntireMessage();
    }
    if (--num_left < 0) {
      return false;
    }
    const std::optional<Level> below = Below(level, WireFormatLite::GetTagFieldNumber(tag));
    if (!below.has_value() ||
        WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&in, tag)) {
        return false;
      }
      continue;
    }
    uint32_t size = 0;
    if (!in.ReadVarint32(&size) || size > static_cast<uint32_t>(INT32_MAX)) {
      return false;
    }
    const CodedInputStream::Limit limit = in.PushLimit(static_cast<int>(size));
    const bool is_sound = CountFields(in, *below, num_left) && in.BytesUntilLimit() == 0;
    in.PopLimit(limit);
    if (!is_sound) {
      return false;
    }
  }
}

absl::Status ParseBytes(const grpc::ByteBuffer& bytes, const HttpLimits& limits,
                        v1::ChatRequest& message) {
  // The readers only look; their interface does not say so.
  grpc::ByteBuffer buffer(bytes);
  // Twice a part: the field and what it holds. A quarter more is left for fields of later versions.
  int64_t num_left = int64_t{limits.messages_max} * (2 + 2 * limits.content_parts_max) * 5 / 4 + 64;
  const int64_t fields_max = num_left;
  {
    grpc::ProtoBufferReader reader(&buffer);
    CodedInputStream in(&reader);
    const bool is_sound = CountFields(in, Level::kRequest, num_left);
    if (num_left < 0) {
      return InvalidArgument("too_many_fields", "request: too many fields; expected at most " +
                                                    std::to_string(fields_max));
    }
    if (!is_sound) {
      return InvalidArgument("protobuf_syntax",
                             "request: expected a conclave.v1.ChatRequest, found other bytes");
    }
  }
  grpc::ProtoBufferReader reader(&buffer);
  if (!message.ParseFromZeroCopyStream(&reader)) {
    // Sound as fields: what is left is a string.
    return InvalidArgument("protobuf_syntax",
                           "request: expected a conclave.v1.ChatRequest with strings in UTF-8, "
                           "found other bytes");
  }
  return absl::OkStatus();
}

// 0 means off, as an absent field does.
absl::Status ReadNumber(float value, std::string_view name, NumberRange range, float& out) {
  const std::string param = "sampling." + std::string(name);
  if (!(value == 0) && !IsWithin(range, value)) {
    return OutOfRange(name, param, range, NumberText(value));
  }
  if (value != 0) {
    out = value;
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const v1::SamplingParams& wire, WireChat& chat) {
  SamplingParams& sampling = chat.request.sampling;
  CONCLAVE_RETURN_IF_ERROR(
      ReadNumber(wire.temperature(), "temperature", kTemperatureRange, sampling.temperature));
  CONCLAVE_RETURN_IF_ERROR(ReadNumber(wire.top_p(), "top_p", kTopPRange, sampling.top_p));
  if (wire.top_k() < kTopKMin) {
    return OutOfRange("top_k", "sampling.top_k", kTopKMin, INT32_MAX, std::to_string(wire.top_k()));
  }
  sampling.top_k = wire.top_k();
  CONCLAVE_RETURN_IF_ERROR(ReadNumber(wire.min_p(), "min_p", kMinPRange, sampling.min_p));
  CONCLAVE_RETURN_IF_ERROR(ReadNumber(wire.repetition_penalty(), "repetition_penalty",
                                      kRepetitionPenaltyRange, sampling.repetition_penalty));
  CONCLAVE_RETURN_IF_ERROR(ReadNumber(wire.presence_penalty(), "presence_penalty", kPenaltyRange,
                                      sampling.presence_penalty));
  CONCLAVE_RETURN_IF_ERROR(ReadNumber(wire.frequency_penalty(), "frequency_penalty", kPenaltyRange,
                                      sampling.frequency_penalty));
  chat.has_seed = wire.has_seed();
  sampling.seed = wire.seed();
  return absl::OkStatus();
}

absl::StatusOr<ContentPart> ReadPart(v1::ContentPart& wire, const std::string& param,
                                     Message::Role role, const HttpLimits& limits,
                                     const ModelCard& card, int32_t& num_images) {
  ContentPart part;
  switch (wire.part_case()) {
    case v1::ContentPart::kText:
      part.bytes = std::move(*wire.mutable_text());
      part.param = param + ".text";
      return part;
    case v1::ContentPart::kImage:
      part.kind = ContentPart::Kind::kImage;
      part.param = param + ".image";
      CONCLAVE_RETURN_IF_ERROR(AdmitImage(role, part.param, limits, card, num_images));
      CONCLAVE_RETURN_IF_ERROR(WithParam(
          Annotate(
              CheckImageBytes(static_cast<int64_t>(wire.image().size()), limits.image_bytes_max),
              part.param),
          part.param));
      part.bytes = std::move(*wire.mutable_image());
      return part;
    case v1::ContentPart::PART_NOT_SET:
      break;
  }
  return FieldError("invalid_content_part", param, "expected \"text\" or \"image\", found neither");
}

absl::Status ReadMessages(v1::ChatRequest& wire, const HttpLimits& limits, const ModelCard& card,
                          std::vector<Message>& messages) {
  CONCLAVE_RETURN_IF_ERROR(CheckNumMessages(static_cast<size_t>(wire.messages_size()), limits));
  int32_t num_images = 0;
  for (v1::ChatMessage& from : *wire.mutable_messages()) {
    const std::string where = "messages[" + std::to_string(messages.size()) + "]";
    const std::string param = where + ".content";
    Message message;
    CONCLAVE_ASSIGN_OR_RETURN(message.role, RoleNamed(from.role(), where + ".role"));
    CONCLAVE_RETURN_IF_ERROR(
        CheckNumParts(static_cast<size_t>(from.content_size()), param, limits));
    for (v1::ContentPart& part : *from.mutable_content()) {
      CONCLAVE_ASSIGN_OR_RETURN(
          ContentPart made, ReadPart(part, param + "[" + std::to_string(message.parts.size()) + "]",
                                     message.role, limits, card, num_images));
      message.parts.push_back(std::move(made));
    }
    CONCLAVE_RETURN_IF_ERROR(CheckHasContent(message, param));
    messages.push_back(std::move(message));
  }
  return CheckOrder(messages);
}

}  // namespace

absl::StatusOr<WireChat> ReadChat(const grpc::ByteBuffer& bytes, const HttpLimits& limits,
                                  const ModelCard& card) {
  v1::ChatRequest wire;
  CONCLAVE_RETURN_IF_ERROR(ParseBytes(bytes, limits, wire));
  if (!wire.model().empty()) {
    CONCLAVE_RETURN_IF_ERROR(CheckModelName(wire.model(), card));
  }
  WireChat chat;
  ChatRequest& request = chat.request;
  CONCLAVE_RETURN_IF_ERROR(ReadSampling(wire.sampling(), chat));
  if (wire.max_tokens() > static_cast<uint32_t>(card.max_model_len)) {
    return OutOfRange("max_tokens", "max_tokens", 0, card.max_model_len,
                      std::to_string(wire.max_tokens()));
  }
  request.max_tokens = static_cast<int32_t>(wire.max_tokens());
  CONCLAVE_RETURN_IF_ERROR(CheckNumStops(static_cast<size_t>(wire.stop_size()), limits));
  for (const std::string& stop : wire.stop()) {
    CONCLAVE_RETURN_IF_ERROR(AddStop(stop, limits, request.stops));
  }
  request.return_token_ids = wire.return_token_ids();
  chat.deadline = std::chrono::milliseconds(wire.deadline_ms());
  CONCLAVE_RETURN_IF_ERROR(ReadMessages(wire, limits, card, request.messages));
  return chat;
}

grpc::ByteBuffer WritePiece(const ChatPiece& piece) {
  v1::ChatResponse wire;
  wire.set_text(piece.text);
  wire.mutable_token_ids()->Add(piece.token_ids.begin(), piece.token_ids.end());
  if (piece.usage.has_value()) {
    wire.set_finish_reason(std::string(FinishText(piece.reason)));
    v1::Usage& usage = *wire.mutable_usage();
    usage.set_prompt_tokens(static_cast<uint32_t>(piece.usage->prompt_tokens));
    usage.set_completion_tokens(static_cast<uint32_t>(piece.usage->completion_tokens));
    usage.set_cached_tokens(static_cast<uint32_t>(piece.usage->cached_tokens));
  }
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  // Fails for messages of 2 GiB only; a piece is bounded by HttpLimits::pending_bytes_max.
  CONCLAVE_CHECK(
      (grpc::GenericSerialize<grpc::ProtoBufferWriter, v1::ChatResponse>(wire, &bytes, &own_buffer)
           .ok()));
  return bytes;
}

}  // namespace conclave::frontend
