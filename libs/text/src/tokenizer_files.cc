#include "tokenizer_files.h"

#include <boost/json/basic_parser_impl.hpp>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <unordered_set>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "quote.h"

namespace conclave::text {
namespace {

constexpr size_t kDepthMax = 32;

// Sees the keys of all objects go by. Boost.JSON alone keeps the last of two equal ones, so that
// two readers of one file could see two different vocabularies.
class UniqueKeys {
 public:
  using Error = boost::json::error_code;
  using Text = boost::json::string_view;
  static constexpr size_t max_object_size = SIZE_MAX;
  static constexpr size_t max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX;
  static constexpr size_t max_string_size = SIZE_MAX;

  // The key that stood twice in one object, quoted.
  const std::string& repeated() const { return repeated_; }

  bool on_object_begin(Error& /*error*/) {
    open_objects_.emplace_back();
    return true;
  }
  bool on_object_end(size_t /*size*/, Error& /*error*/) {
    open_objects_.pop_back();
    return true;
  }
  bool on_key_part(Text part, size_t /*size*/, Error& /*error*/) {
    key_.append(part.data(), part.size());
    return true;
  }
  bool on_key(Text part, size_t /*size*/, Error& error) {
    key_.append(part.data(), part.size());
    if (open_objects_.back().insert(key_).second) {
      key_.clear();
      return true;
    }
    repeated_ = Quote(key_);
    error = boost::json::error::syntax;
    return false;
  }
  bool on_document_begin(Error& /*error*/) { return true; }
  bool on_document_end(Error& /*error*/) { return true; }
  bool on_array_begin(Error& /*error*/) { return true; }
  bool on_array_end(size_t /*size*/, Error& /*error*/) { return true; }
  bool on_string_part(Text /*part*/, size_t /*size*/, Error& /*error*/) { return true; }
  bool on_string(Text /*part*/, size_t /*size*/, Error& /*error*/) { return true; }
  bool on_number_part(Text /*part*/, Error& /*error*/) { return true; }
  bool on_int64(int64_t /*value*/, Text /*text*/, Error& /*error*/) { return true; }
  bool on_uint64(uint64_t /*value*/, Text /*text*/, Error& /*error*/) { return true; }
  bool on_double(double /*value*/, Text /*text*/, Error& /*error*/) { return true; }
  bool on_bool(bool /*value*/, Error& /*error*/) { return true; }
  bool on_null(Error& /*error*/) { return true; }
  bool on_comment_part(Text /*part*/, Error& /*error*/) { return true; }
  bool on_comment(Text /*part*/, Error& /*error*/) { return true; }

 private:
  std::vector<std::unordered_set<std::string>> open_objects_;
  std::string key_;
  std::string repeated_;
};

size_t LineOf(std::string_view content, size_t offset) {
  size_t line = 1;
  for (const char c : content.substr(0, offset)) line += c == '\n' ? 1 : 0;
  return line;
}

}  // namespace

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
  options.max_depth = kDepthMax;
  boost::json::error_code error;
  boost::json::basic_parser<UniqueKeys> parser(options);
  const size_t used = parser.write_some(false, content.data(), content.size(), error);
  if (!error && used < content.size()) error = boost::json::error::extra_data;
  if (error) {
    const std::string& repeated = parser.handler().repeated();
    return InvalidTokenizer(
        file + ":" + std::to_string(LineOf(content, used)),
        repeated.empty() ? "no JSON: " + error.message() + "; expected " + std::string(expected)
                         : "key " + repeated + " stands twice in one object; expected once");
  }
  boost::json::value value = boost::json::parse(content, error, {}, options);
  if (error) return InvalidTokenizer(file, "no JSON: " + error.message());
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
