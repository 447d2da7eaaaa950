// The `messages` of a chat request.
#pragma once

#include <boost/json/value.hpp>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"
#include "http/field_reader.h"

namespace conclave::frontend {

// Checks roles, their order and every part. `value` is null when the field is absent. Image parts
// hold their URL, not the picture, until DecodeImages: base64 is the dearest step.
absl::StatusOr<std::vector<Message>> ParseMessages(const boost::json::value* value,
                                                   const HttpLimits& limits, const ModelCard& card,
                                                   UnknownFields& unknown);

// Replaces the URL of every image part by the encoded picture. How many of them have a media type
// that is not theirs.
absl::StatusOr<int32_t> DecodeImages(const HttpLimits& limits, std::vector<Message>& messages);

}  // namespace conclave::frontend
