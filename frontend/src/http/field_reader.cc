#include "http/field_reader.h"

#include <algorithm>
#include <boost/json/value.hpp>
#include <charconv>
#include <cmath>
#include <utility>

#include "conclave/base/status.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

std::string NumberText(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return {text, end.ptr};
}

std::string RangeError(std::string_view kind, std::string_view range, std::string_view param,
                       const boost::json::value& found) {
  return std::string(param) + ": out of range; expected " + std::string(kind) + " in " +
         std::string(range) + ", found " + Describe(found);
}

}  // namespace

void UnknownFields::Add(std::string_view scope, std::string_view name) {
  if (is_full()) {
    return;
  }
  ++num_reported_;
  if (on_unknown_) {
    on_unknown_(Excerpt(std::string(scope) + std::string(name)));
  }
}

absl::Status FieldError(std::string_view reason, std::string_view param, std::string_view message) {
  return WithParam(InvalidArgument(reason, std::string(param) + ": " + std::string(message)),
                   param);
}

std::string Describe(const boost::json::value& value) {
  switch (value.kind()) {
    case boost::json::kind::null:
      return "null";
    case boost::json::kind::bool_:
      return value.get_bool() ? "true" : "false";
    case boost::json::kind::int64:
      return std::to_string(value.get_int64());
    case boost::json::kind::uint64:
      return std::to_string(value.get_uint64());
    case boost::json::kind::double_:
      return std::isfinite(value.get_double()) ? NumberText(value.get_double())
                                               : "a number beyond the range of a double";
    case boost::json::kind::string:
      return "a string";
    case boost::json::kind::array:
      return "an array";
    case boost::json::kind::object:
      break;
  }
  return "an object";
}

FieldReader::FieldReader(const boost::json::object& object, std::string scope,
                         std::string report_scope, UnknownFields& unknown)
    : object_(object),
      scope_(std::move(scope)),
      report_scope_(std::move(report_scope)),
      unknown_(unknown) {}

const boost::json::value* FieldReader::Find(std::string_view name) {
  known_.push_back(name);
  const boost::json::value* value = object_.if_contains({name.data(), name.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

void FieldReader::Know(std::initializer_list<std::string_view> names) {
  known_.insert(known_.end(), names.begin(), names.end());
}

absl::Status FieldReader::Number(std::string_view name, NumberRange range, float& out) {
  const boost::json::value* value = Find(name);
  if (value == nullptr) {
    return absl::OkStatus();
  }
  const double number = value->is_double()   ? value->get_double()
                        : value->is_int64()  ? static_cast<double>(value->get_int64())
                        : value->is_uint64() ? static_cast<double>(value->get_uint64())
                                             : std::nan("");
  // Written so that NaN fails.
  const bool is_in =
      (range.is_min_open ? number > range.min : number >= range.min) && number <= range.max;
  if (!is_in) {
    const std::string text = (range.is_min_open ? "(" : "[") + NumberText(range.min) + ", " +
                             NumberText(range.max) + "]";
    return WithParam(InvalidArgument(std::string(name) + "_out_of_range",
                                     RangeError("a number", text, Param(name), *value)),
                     Param(name));
  }
  out = static_cast<float>(number);
  return absl::OkStatus();
}

absl::Status FieldReader::Integer(std::string_view name, int64_t min, int64_t max, int32_t& out) {
  const boost::json::value* value = Find(name);
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (!value->is_int64() || value->get_int64() < min || value->get_int64() > max) {
    const std::string text = "[" + std::to_string(min) + ", " + std::to_string(max) + "]";
    return WithParam(InvalidArgument(std::string(name) + "_out_of_range",
                                     RangeError("an integer", text, Param(name), *value)),
                     Param(name));
  }
  out = static_cast<int32_t>(value->get_int64());
  return absl::OkStatus();
}

absl::Status FieldReader::Unsigned(std::string_view name, uint64_t& out) {
  const boost::json::value* value = Find(name);
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (value->is_uint64()) {
    out = value->get_uint64();
  } else if (value->is_int64() && value->get_int64() >= 0) {
    out = static_cast<uint64_t>(value->get_int64());
  } else {
    return WithParam(InvalidArgument(std::string(name) + "_out_of_range",
                                     RangeError("an integer", "[0, 2^64)", Param(name), *value)),
                     Param(name));
  }
  return absl::OkStatus();
}

absl::Status FieldReader::Bool(std::string_view name, bool& out) {
  const boost::json::value* value = Find(name);
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (!value->is_bool()) {
    return FieldError("invalid_" + std::string(name), Param(name),
                      "expected true or false, found " + Describe(*value));
  }
  out = value->get_bool();
  return absl::OkStatus();
}

void FieldReader::ReportUnknown() {
  for (const auto& entry : object_) {
    if (unknown_.is_full()) {
      return;
    }
    const std::string_view name(entry.key().data(), entry.key().size());
    if (std::find(known_.begin(), known_.end(), name) == known_.end()) {
      unknown_.Add(report_scope_, name);
    }
  }
}

}  // namespace conclave::frontend
