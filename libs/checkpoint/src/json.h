// Strict JSON for files from outside: no duplicate keys, bounded depth and number of values.
// Boost.JSON alone keeps the last of two equal keys, so two readers of one file could see two
// different models. Boost.JSON's headers are heavy: only the .cc files that walk values include
// this one.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::checkpoint {

struct JsonLimits {
  int32_t depth_max = 32;
  // Values, keys included: bounds the memory that a hostile file can ask for.
  int64_t values_max = 1'000'000;
};

// Parses one document. The error's message is "at byte N: <why>" and carries no reason; the caller
// adds file and reason.
absl::StatusOr<boost::json::value> ParseStrict(std::string_view text, const JsonLimits& limits);

// `value` as indented text with a newline at the end. Doubles are the shortest decimals that read
// back the same.
std::string Pretty(const boost::json::value& value);

// `text` as Boost.JSON keeps it: it takes no std::string.
inline boost::json::string Word(std::string_view text) {
  return boost::json::string(text.data(), text.size());
}

// `value` as in messages: at most 64 bytes.
std::string Shown(const boost::json::value& value);

}  // namespace conclave::checkpoint
