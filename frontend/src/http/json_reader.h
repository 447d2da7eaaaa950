// A request body as a JSON object, read strictly: what two parsers could understand differently is
// refused.
#pragma once

#include <boost/json/object.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::frontend {

// kInvalidArgument with one of the reasons
//   body_not_object  empty, or valid JSON of another kind
//   json_syntax      with the byte offset; also a byte order mark, comments, NaN, anything after
//                    the object
//   json_too_deep    more than `depth_max` levels
//   json_too_large   more than 2^20 values: each costs sixteen bytes or more, whatever its length
//   in
//                    the body
//   invalid_utf8     with the byte offset; also an escape that is half a surrogate pair
//   duplicate_key    with the key; anywhere in the document
// kUnavailable (out_of_memory) when the memory runs out. A number that no double holds (1e400,
// 1e-400) is read as NaN, which no field accepts.
absl::StatusOr<boost::json::object> ParseJsonObject(std::string_view body, int depth_max);

}  // namespace conclave::frontend
