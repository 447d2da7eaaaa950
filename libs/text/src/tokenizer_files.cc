#include "tokenizer_files.h"

#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::text {

absl::Status InvalidTokenizer(const std::string& where, const std::string& what) {
  return InvalidArgument("tokenizer_invalid", where + ": " + what);
}

absl::Status UnsupportedTokenizer(const std::string& where, const std::string& what) {
  return InvalidArgument("tokenizer_unsupported", where + ": " + what);
}

bool HasFile(const std::string& file) {
  std::error_code error;
  return std::filesystem::is_regular_file(file, error);
}

absl::StatusOr<std::string> ReadTokenizerFile(const std::string& file, int64_t bytes_max,
                                              std::string_view expected) {
  if (!HasFile(file)) {
    return NotFound("tokenizer_missing",
                    file + ": no such file; expected " + std::string(expected));
  }
  std::error_code error;
  const uintmax_t num_bytes = std::filesystem::file_size(file, error);
  if (!error && num_bytes > static_cast<uintmax_t>(bytes_max)) {
    return InvalidTokenizer(file + ":1", "file is too large; expected at most " +
                                             std::to_string(bytes_max) + " bytes, found " +
                                             std::to_string(num_bytes));
  }
  std::ifstream stream(file, std::ios::binary);
  std::string content(error ? 0 : num_bytes, '\0');
  if (error || !stream.read(content.data(), static_cast<std::streamsize>(content.size()))) {
    return NotFound("tokenizer_missing",
                    file + ": cannot be read; expected " + std::string(expected));
  }
  return content;
}

absl::StatusOr<boost::json::object> ReadJsonObject(const std::string& file, int64_t bytes_max,
                                                   std::string_view expected) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string content,
                            ReadTokenizerFile(file, bytes_max, expected));
  boost::json::parse_options options;
  options.max_depth = 32;
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(content, error, {}, options);
  if (error) {
    return InvalidTokenizer(file,
                            "no JSON: " + error.message() + "; expected " + std::string(expected));
  }
  if (!value.is_object())
    return InvalidTokenizer(file, "no JSON object; expected " + std::string(expected));
  return std::move(value.get_object());
}

const boost::json::object* ObjectAt(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains({key.data(), key.size()});
  return value == nullptr ? nullptr : value->if_object();
}

const boost::json::array* ArrayAt(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains({key.data(), key.size()});
  return value == nullptr ? nullptr : value->if_array();
}

std::string_view TextAt(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains({key.data(), key.size()});
  const boost::json::string* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string_view() : std::string_view(text->data(), text->size());
}

bool FlagAt(const boost::json::object& object, std::string_view key, bool fallback) {
  const boost::json::value* value = object.if_contains({key.data(), key.size()});
  const bool* flag = value == nullptr ? nullptr : value->if_bool();
  return flag == nullptr ? fallback : *flag;
}

int32_t IdOf(const boost::json::value& value) {
  const int64_t* number = value.if_int64();
  return number == nullptr || *number < 0 || *number >= kIdsMax ? -1
                                                                : static_cast<int32_t>(*number);
}

}  // namespace conclave::text
