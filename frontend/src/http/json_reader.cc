#include "http/json_reader.h"

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/value.hpp>
#include <boost/json/value_stack.hpp>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "conclave/base/status.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

namespace json = boost::json;

constexpr size_t kValuesMax = size_t{1} << 20;

// Builds the value as Boost.JSON's own parser does and adds what that one lacks: duplicate keys are
// seen, numbers beyond a double are told apart, the number of values is bounded.
class TreeBuilder {
 public:
  static constexpr size_t max_object_size = kValuesMax;
  static constexpr size_t max_array_size = kValuesMax;
  static constexpr size_t max_key_size = std::numeric_limits<size_t>::max();
  static constexpr size_t max_string_size = std::numeric_limits<size_t>::max();

  bool on_document_begin(json::error_code&) {
    stack_.reset();
    return true;
  }
  bool on_document_end(json::error_code&) { return true; }

  bool on_object_begin(json::error_code& ec) {
    keys_.emplace_back();
    return Count(ec);
  }
  bool on_object_end(size_t n, json::error_code&) {
    keys_.pop_back();
    stack_.push_object(n);
    return true;
  }
  bool on_array_begin(json::error_code& ec) { return Count(ec); }
  bool on_array_end(size_t n, json::error_code&) {
    stack_.push_array(n);
    return true;
  }

  bool on_key_part(json::string_view part, size_t, json::error_code&) {
    key_.append(part.data(), part.size());
    stack_.push_chars(part);
    return true;
  }
  bool on_key(json::string_view rest, size_t, json::error_code& ec) {
    key_.append(rest.data(), rest.size());
    if (!keys_.back().insert(key_).second) {
      duplicate_key_ = key_;
      has_duplicate_ = true;
      ec = json::make_error_code(json::error::syntax);
      return false;
    }
    key_.clear();
    stack_.push_key(rest);
    return true;
  }

  bool on_string_part(json::string_view part, size_t, json::error_code&) {
    stack_.push_chars(part);
    return true;
  }
  bool on_string(json::string_view rest, size_t, json::error_code& ec) {
    stack_.push_string(rest);
    return Count(ec);
  }

  bool on_number_part(json::string_view part, json::error_code&) {
    number_.append(part.data(), part.size());
    return true;
  }
  bool on_int64(int64_t value, json::string_view, json::error_code& ec) {
    number_.clear();
    stack_.push_int64(value);
    return Count(ec);
  }
  bool on_uint64(uint64_t value, json::string_view, json::error_code& ec) {
    number_.clear();
    stack_.push_uint64(value);
    return Count(ec);
  }
  bool on_double(double, json::string_view rest, json::error_code& ec) {
    number_.append(rest.data(), rest.size());
    double value = 0;
    const auto result = std::from_chars(number_.data(), number_.data() + number_.size(), value);
    if (result.ec != std::errc()) {
      value = std::numeric_limits<double>::quiet_NaN();
    }
    number_.clear();
    stack_.push_double(value);
    return Count(ec);
  }
  bool on_bool(bool value, json::error_code& ec) {
    stack_.push_bool(value);
    return Count(ec);
  }
  bool on_null(json::error_code& ec) {
    stack_.push_null();
    return Count(ec);
  }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

  json::value Release() { return stack_.release(); }
  bool has_duplicate() const { return has_duplicate_; }
  const std::string& duplicate_key() const { return duplicate_key_; }

 private:
  bool Count(json::error_code& ec) {
    if (++num_values_ > kValuesMax) {
      ec = json::make_error_code(json::error::array_too_large);
      return false;
    }
    return true;
  }

  json::value_stack stack_;
  // One set per open object; abseil's hash is salted, so keys cannot be made to collide.
  std::vector<absl::flat_hash_set<std::string>> keys_;
  std::string key_;
  std::string number_;
  std::string duplicate_key_;
  bool has_duplicate_ = false;
  size_t num_values_ = 0;
};

absl::Status ErrorAt(std::string_view reason, std::string_view what, size_t offset) {
  return InvalidArgument(
      reason, "request body: " + std::string(what) + " at byte " + std::to_string(offset));
}

// Whether the escape of a leading surrogate, alone, ends at or one byte before the offset of a
// syntax error: Boost.JSON has no error of its own for that.
bool FollowsHalfPair(std::string_view body, size_t offset) {
  constexpr size_t kEscapeBytes = 6;
  for (const size_t end : {offset, offset - 1}) {
    if (end < kEscapeBytes || end > body.size()) {
      continue;
    }
    const std::string_view escape = body.substr(end - kEscapeBytes, kEscapeBytes);
    constexpr std::string_view kThird = "89abAB";
    if (escape[0] == '\\' && escape[1] == 'u' && (escape[2] == 'd' || escape[2] == 'D') &&
        kThird.find(escape[3]) != std::string_view::npos) {
      return true;
    }
  }
  return false;
}

absl::Status ParseError(const json::error_code& ec, const TreeBuilder& builder,
                        std::string_view body, size_t offset, int depth_max) {
  if (builder.has_duplicate()) {
    return InvalidArgument("duplicate_key",
                           "request body: the key \"" + Excerpt(builder.duplicate_key()) +
                               "\" appears twice in one object; expected each key once");
  }
  const std::string depth = std::to_string(depth_max);
  if (ec == json::error::too_deep) {
    return ErrorAt("json_too_deep", "nested deeper than " + depth + " levels", offset);
  }
  if (ec == json::error::array_too_large || ec == json::error::object_too_large) {
    return InvalidArgument("json_too_large", "request body: too many values; expected at most " +
                                                 std::to_string(kValuesMax));
  }
  if (ec == json::error::illegal_leading_surrogate ||
      ec == json::error::illegal_trailing_surrogate || ec == json::error::expected_utf16_escape ||
      (ec == json::error::syntax && FollowsHalfPair(body, offset))) {
    return ErrorAt("invalid_utf8", "half of a surrogate pair", offset);
  }
  if (ec == json::error::incomplete) {
    return ErrorAt("json_syntax", "the JSON document is cut off", offset);
  }
  return ErrorAt("json_syntax", "not valid JSON", offset);
}

}  // namespace

absl::StatusOr<json::object> ParseJsonObject(std::string_view body, int depth_max) {
  if (body.empty()) {
    return InvalidArgument("body_not_object", "request body: empty; expected a JSON object");
  }
  if (const size_t bad = FindInvalidUtf8(body); bad != std::string_view::npos) {
    return ErrorAt("invalid_utf8", "invalid UTF-8", bad);
  }
  try {
    json::parse_options options;
    options.max_depth = static_cast<size_t>(depth_max);
    json::basic_parser<TreeBuilder> parser(options);
    json::error_code ec;
    const size_t used = parser.write_some(false, body.data(), body.size(), ec);
    if (ec) {
      return ParseError(ec, parser.handler(), body, used, depth_max);
    }
    if (used < body.size()) {
      return ErrorAt("json_syntax", "something follows the JSON document", used);
    }
    json::value value = parser.handler().Release();
    if (!value.is_object()) {
      return InvalidArgument("body_not_object", "request body: not a JSON object");
    }
    return std::move(value.get_object());
  } catch (const std::exception&) {
    return Error(absl::StatusCode::kUnavailable, "out_of_memory",
                 "request body: too large for the memory that is left");
  }
}

}  // namespace conclave::frontend
