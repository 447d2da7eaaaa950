#include "http/field_reader.h"

#include <algorithm>
#include <boost/json/value.hpp>
#include <cmath>
#include <utility>

#include "conclave/base/status.h"
#include "http/utf8.h"

namespace conclave::frontend {
void UnknownFields::Add(std::string_view scope, std::string_view name) {
  if (is_full()) {
    return;
  }
  ++num_reported_;
  if (on_unknown_) {
    on_unknown_(Excerpt(std::string(scope) + std::string(name)));
  }
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
  if (!IsWithin(range, number)) {
    return OutOfRange(name, Param(name), range, Describe(*value));
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
    return OutOfRange(name, Param(name), min, max, Describe(*value));
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
                                     Param(name) +
                                         ": out of range; expected an integer in "
                                         "[0, 2^64), found " +
                                         Describe(*value)),
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
