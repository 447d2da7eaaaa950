// Typed, range-checked access to one JSON object of a config file. The first thing that is wrong is
// kept with its key path ("config.json: moe.num_experts[1]: ..."); from then on every getter
// returns its fallback, so a reader is read through without a check per key, and status() is asked
// before any arithmetic on the values.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "json.h"

namespace conclave::checkpoint {

class ConfigReader {
 public:
  // `file` for messages; a value out of range fails with `range_reason`, a missing key or wrong
  // type with "config_key". `object` and `status` outlive the reader.
  ConfigReader(std::string file, const boost::json::object& object, std::string_view range_reason,
               absl::Status* status)
      : file_(std::move(file)), object_(&object), range_reason_(range_reason), status_(status) {}

  bool ok() const { return status_->ok(); }
  const absl::Status& status() const { return *status_; }
  const std::string& file() const { return file_; }

  // Present and not null.
  bool Has(std::string_view key) const;
  // Present and null.
  bool IsNull(std::string_view key) const;
  // The first of `keys` that the object has; the first when it has none.
  std::string_view FirstOf(std::initializer_list<std::string_view> keys) const;

  // Required. Bounds are inclusive.
  int32_t Int(std::string_view key, int64_t min, int64_t max);
  double Number(std::string_view key, double min, double max);
  bool Bool(std::string_view key);
  std::string String(std::string_view key);

  // `fallback` when the key is absent or null.
  int32_t IntOr(std::string_view key, int32_t fallback, int64_t min, int64_t max);
  double NumberOr(std::string_view key, double fallback, double min, double max);
  bool BoolOr(std::string_view key, bool fallback);
  std::string StringOr(std::string_view key, std::string_view fallback);
  std::vector<int32_t> IntsOr(std::string_view key, int64_t min, int64_t max);
  std::vector<double> NumbersOr(std::string_view key, double min, double max);

  // A reader of the object under `key`, empty when absent or null.
  std::optional<ConfigReader> Object(std::string_view key, std::string_view range_reason);

  const boost::json::value* Find(std::string_view key) const;

  // Records an error at `key` (empty: the object itself).
  void Fail(std::string_view reason, std::string_view key, const std::string& why);
  // The same with the reader's range reason.
  void OutOfRange(std::string_view key, const std::string& why) { Fail(range_reason_, key, why); }

  // "config.json: moe.top_k_experts": how messages name a key.
  std::string Where(std::string_view key) const;

 private:
  const boost::json::value* Required(std::string_view key);
  int32_t ToInt(std::string_view key, const boost::json::value& value, int64_t min, int64_t max);
  double ToNumber(std::string_view key, const boost::json::value& value, double min, double max);
  bool ToBool(std::string_view key, const boost::json::value& value);
  std::string ToString(std::string_view key, const boost::json::value& value);
  void WrongType(std::string_view key, std::string_view expected, const boost::json::value& found);

  std::string file_;
  const boost::json::object* object_;
  std::string_view range_reason_;
  absl::Status* status_;
  std::string prefix_;  // "moe."
};

// Parses a config file: strict JSON, an object. Everything wrong with it is "config_key".
absl::StatusOr<boost::json::value> ParseConfig(const std::string& file, std::string_view text);

// `value` as in messages, beside Shown of json.h.
std::string Shown(double value);

}  // namespace conclave::checkpoint
