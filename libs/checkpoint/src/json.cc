#include "json.h"

#include <boost/json/basic_parser_impl.hpp>
#include <charconv>
#include <unordered_set>
#include <utility>
#include <vector>

#include "conclave/base/status.h"

namespace conclave::checkpoint {
namespace {

// Events of Boost.JSON's parser; keeps the keys of the objects that are open. Returning false with
// an error set stops the parser.
class StrictHandler {
 public:
  static constexpr size_t max_object_size = SIZE_MAX;
  static constexpr size_t max_array_size = SIZE_MAX;
  static constexpr size_t max_key_size = SIZE_MAX;
  static constexpr size_t max_string_size = SIZE_MAX;
  using ErrorCode = boost::json::error_code;
  using View = boost::json::string_view;

  explicit StrictHandler(int64_t values_max) : values_left_(values_max) {}

  const std::string& why() const { return why_; }

  bool on_document_begin(ErrorCode&) { return true; }
  bool on_document_end(ErrorCode&) { return true; }
  bool on_object_begin(ErrorCode& ec) {
    open_.emplace_back();
    return Count(ec);
  }
  bool on_object_end(size_t, ErrorCode&) {
    open_.pop_back();
    return true;
  }
  bool on_array_begin(ErrorCode& ec) { return Count(ec); }
  bool on_array_end(size_t, ErrorCode&) { return true; }
  bool on_key_part(View part, size_t, ErrorCode&) {
    key_.append(part.data(), part.size());
    return true;
  }
  bool on_key(View part, size_t, ErrorCode& ec) {
    key_.append(part.data(), part.size());
    if (!open_.back().insert(key_).second) {
      why_ = "key \"" + key_.substr(0, 64) + "\" stands twice in one object";
      ec = boost::json::error::syntax;
      return false;
    }
    key_.clear();
    return Count(ec);
  }
  bool on_string_part(View, size_t, ErrorCode&) { return true; }
  bool on_string(View, size_t, ErrorCode& ec) { return Count(ec); }
  bool on_number_part(View, ErrorCode&) { return true; }
  bool on_int64(int64_t, View, ErrorCode& ec) { return Count(ec); }
  bool on_uint64(uint64_t, View, ErrorCode& ec) { return Count(ec); }
  bool on_double(double, View, ErrorCode& ec) { return Count(ec); }
  bool on_bool(bool, ErrorCode& ec) { return Count(ec); }
  bool on_null(ErrorCode& ec) { return Count(ec); }
  bool on_comment_part(View, ErrorCode&) { return true; }
  bool on_comment(View, ErrorCode&) { return true; }

 private:
  bool Count(ErrorCode& ec) {
    if (--values_left_ >= 0) {
      return true;
    }
    why_ = "more values than such a file can have";
    ec = boost::json::error::syntax;
    return false;
  }

  int64_t values_left_;
  std::vector<std::unordered_set<std::string>> open_;
  std::string key_;
  std::string why_;
};

void AppendNumber(double value, std::string& out) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  const std::string_view digits(buffer, static_cast<size_t>(end - buffer));
  out += digits;
  if (digits.find_first_of(".e") == std::string_view::npos) {
    out += ".0";
  }
}

bool IsPlain(const boost::json::value& value) { return !value.is_object() && !value.is_array(); }

void Append(const boost::json::value& value, int indent, std::string& out);

void AppendArray(const boost::json::array& array, int indent, std::string& out) {
  bool is_flat = true;
  for (const auto& item : array) {
    is_flat = is_flat && IsPlain(item);
  }
  out += '[';
  bool is_first = true;
  for (const auto& item : array) {
    out += is_first ? "" : (is_flat ? ", " : ",");
    is_first = false;
    if (!is_flat) {
      out += '\n' + std::string(static_cast<size_t>(indent) + 2, ' ');
    }
    Append(item, indent + 2, out);
  }
  if (!is_flat) {
    out += '\n' + std::string(static_cast<size_t>(indent), ' ');
  }
  out += ']';
}

void Append(const boost::json::value& value, int indent, std::string& out) {
  if (value.is_array()) {
    AppendArray(value.get_array(), indent, out);
  } else if (value.is_double()) {
    AppendNumber(value.get_double(), out);
  } else if (!value.is_object()) {
    out += boost::json::serialize(value);
  } else if (value.get_object().empty()) {
    out += "{}";
  } else {
    out += '{';
    bool is_first = true;
    for (const auto& member : value.get_object()) {
      out += is_first ? "\n" : ",\n";
      is_first = false;
      out += std::string(static_cast<size_t>(indent) + 2, ' ');
      out += boost::json::serialize(boost::json::value(member.key())) + ": ";
      Append(member.value(), indent + 2, out);
    }
    out += '\n' + std::string(static_cast<size_t>(indent), ' ') + '}';
  }
}

}  // namespace

absl::StatusOr<boost::json::value> ParseStrict(std::string_view text, const JsonLimits& limits) {
  boost::json::parse_options options;
  options.max_depth = static_cast<size_t>(limits.depth_max);
  boost::json::error_code ec;
  boost::json::basic_parser<StrictHandler> parser(options, limits.values_max);
  const size_t used = parser.write_some(false, text.data(), text.size(), ec);
  if (!ec && used < text.size()) {
    ec = boost::json::error::extra_data;
  }
  if (ec) {
    const std::string& why = parser.handler().why();
    return InvalidArgument(
        "", "at byte " + std::to_string(used) + ": " + (why.empty() ? ec.message() : why));
  }
  boost::json::value value = boost::json::parse({text.data(), text.size()}, ec, {}, options);
  if (ec) {
    return InvalidArgument("", ec.message());
  }
  return value;
}

std::string Pretty(const boost::json::value& value) {
  std::string out;
  Append(value, 0, out);
  out += '\n';
  return out;
}

std::string Shown(const boost::json::value& value) {
  std::string text = boost::json::serialize(value);
  return text.size() <= 64 ? text : text.substr(0, 61) + "...";
}

}  // namespace conclave::checkpoint
