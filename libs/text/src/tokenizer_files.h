// Reading the files of a tokenizer: sizes first, then JSON without surprises.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::text {

// Ids are below this: as many embedding rows as any model has, and then some.
inline constexpr int32_t kIdsMax = 1 << 22;
// Published tokens have at most 128 characters. How a token may be cut in two costs the square of
// this.
inline constexpr size_t kTokenBytesMax = 1024;

// "tokenizer_invalid": `where` is the file, with a place in it where there is one.
absl::Status InvalidTokenizer(const std::string& where, const std::string& what);
// "tokenizer_unsupported"
absl::Status UnsupportedTokenizer(const std::string& where, const std::string& what);

bool HasFile(const std::string& file);

// The bytes of a regular file of at most `bytes_max`; `expected` names it in messages ("a .tiktoken
// rank file"). "tokenizer_missing", and "tokenizer_invalid" for one that is larger, which is then
// not read.
absl::StatusOr<std::string> ReadTokenizerFile(const std::string& file, int64_t bytes_max,
                                              std::string_view expected);

// A file that holds one JSON object.
absl::StatusOr<boost::json::object> ReadJsonObject(const std::string& file, int64_t bytes_max,
                                                   std::string_view expected);

// Fields of an object; null, or the fallback, when absent or of another type.
const boost::json::object* ObjectAt(const boost::json::object& object, std::string_view key);
const boost::json::array* ArrayAt(const boost::json::object& object, std::string_view key);
std::string_view TextAt(const boost::json::object& object, std::string_view key);
bool FlagAt(const boost::json::object& object, std::string_view key, bool fallback);
// An id, or -1 when `value` is none.
int32_t IdOf(const boost::json::value& value);

}  // namespace conclave::text
