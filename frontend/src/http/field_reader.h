// Typed access to the fields of a request object. Errors name the field (param) and say range and
// finding.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "chat_rules.h"

namespace conclave::frontend {

// Told the name of a field that is not understood: "foo", "messages[].foo"; escaped, at most 64
// bytes.
using UnknownFieldFn = std::function<void(const std::string& name)>;

// Hands on the first few unknown fields of one request; the rest is only skipped, however many
// there are.
class UnknownFields {
 public:
  explicit UnknownFields(const UnknownFieldFn& on_unknown) : on_unknown_(on_unknown) {}
  void Add(std::string_view scope, std::string_view name);
  bool is_full() const { return num_reported_ >= kReportedMax; }

 private:
  static constexpr int kReportedMax = 8;
  const UnknownFieldFn& on_unknown_;
  int num_reported_ = 0;
};

// What was found, for a message: "a string", "3", "null".
std::string Describe(const boost::json::value& value);

// A field that is absent or null leaves the output as it is. Every name that was asked for counts
// as known. `object` and `unknown` outlive the reader.
class FieldReader {
 public:
  // `scope` stands before names in params, `report_scope` in reports of unknown fields:
  // "messages[3]." and "messages[].".
  FieldReader(const boost::json::object& object, std::string scope, std::string report_scope,
              UnknownFields& unknown);

  // Null when absent or null.
  const boost::json::value* Find(std::string_view name);
  void Know(std::initializer_list<std::string_view> names);

  // Reason "<name>_out_of_range", also for a wrong type.
  absl::Status Number(std::string_view name, NumberRange range, float& out);
  absl::Status Integer(std::string_view name, int64_t min, int64_t max, int32_t& out);
  absl::Status Unsigned(std::string_view name, uint64_t& out);
  // Reason "invalid_<name>".
  absl::Status Bool(std::string_view name, bool& out);

  std::string Param(std::string_view name) const { return scope_ + std::string(name); }

  // To be called once all known names were asked for.
  void ReportUnknown();

 private:
  const boost::json::object& object_;
  std::string scope_;
  std::string report_scope_;
  UnknownFields& unknown_;
  std::vector<std::string_view> known_;
};

}  // namespace conclave::frontend
