// What a chat request may hold, whatever form it came in: the ranges, counts and orders that the
// HTTP API and the gRPC API share. Pure functions. Errors carry a reason and a param; only params
// differ between the two, as each names its own fields.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"

namespace conclave::frontend {

// kInvalidArgument with param, "<param>: <message>".
absl::Status FieldError(std::string_view reason, std::string_view param, std::string_view message);

struct NumberRange {
  double min;
  double max;
  bool is_min_open = false;
};
inline constexpr NumberRange kTemperatureRange{0, 2};
inline constexpr NumberRange kTopPRange{0, 1, true};
inline constexpr NumberRange kMinPRange{0, 1};
inline constexpr NumberRange kRepetitionPenaltyRange{0, 100, true};
// Of presence_penalty and frequency_penalty.
inline constexpr NumberRange kPenaltyRange{-2, 2};
inline constexpr int64_t kTopKMin = -1;

// False for NaN.
bool IsWithin(NumberRange range, double number);

// Reason "<name>_out_of_range"; `found` is what the request has instead.
absl::Status OutOfRange(std::string_view name, const std::string& param, NumberRange range,
                        const std::string& found);
absl::Status OutOfRange(std::string_view name, const std::string& param, int64_t min, int64_t max,
                        const std::string& found);

// A number as messages show it.
std::string NumberText(double value);

// kNotFound unless `name` is the model that is served.
absl::Status CheckModelName(std::string_view name, const ModelCard& card);

// "developer" is another word for system.
absl::StatusOr<Message::Role> RoleNamed(std::string_view role, const std::string& param);

absl::Status CheckNumMessages(size_t num_messages, const HttpLimits& limits);
absl::Status CheckNumParts(size_t num_parts, const std::string& param, const HttpLimits& limits);
// `message` has all its parts: text or a picture must be among them.
absl::Status CheckHasContent(const Message& message, const std::string& param);

// One picture more, in a message of `role`; `num_images` counts those of the request. `param` is
// the picture's.
absl::Status AdmitImage(Message::Role role, const std::string& param, const HttpLimits& limits,
                        const ModelCard& card, int32_t& num_images);
// Without a param.
absl::Status CheckImageBytes(int64_t num_bytes, int64_t image_bytes_max);

// An optional system message, then user and assistant in turn, a user message last. There is at
// least one message.
absl::Status CheckOrder(const std::vector<Message>& messages);

absl::Status CheckNumStops(size_t num_stops, const HttpLimits& limits);
absl::Status AddStop(std::string_view stop, const HttpLimits& limits,
                     std::vector<std::string>& stops);

}  // namespace conclave::frontend
