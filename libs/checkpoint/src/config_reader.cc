#include "config_reader.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::checkpoint {
namespace {

std::string Bounds(const std::string& min, const std::string& max) {
  return "from " + min + " to " + max;
}

}  // namespace

std::string Shown(double value) {
  std::string text = Pretty(value);
  text.pop_back();
  return text.ends_with(".0") ? text.substr(0, text.size() - 2) : text;
}

std::string ConfigReader::Where(std::string_view key) const {
  std::string path = prefix_ + std::string(key);
  if (path.ends_with('.')) {
    path.pop_back();
  }
  return path.empty() ? file_ : file_ + ": " + path;
}

void ConfigReader::Fail(std::string_view reason, std::string_view key, const std::string& why) {
  if (status_->ok()) {
    *status_ = InvalidArgument(reason, Where(key) + ": " + why);
  }
}

void ConfigReader::WrongType(std::string_view key, std::string_view expected,
                             const boost::json::value& found) {
  Fail("config_key", key,
       "wrong type; expected " + std::string(expected) + ", found " + Shown(found));
}

const boost::json::value* ConfigReader::Find(std::string_view key) const {
  const boost::json::value* value = object_->if_contains({key.data(), key.size()});
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool ConfigReader::Has(std::string_view key) const { return Find(key) != nullptr; }

bool ConfigReader::IsNull(std::string_view key) const {
  const boost::json::value* value = object_->if_contains({key.data(), key.size()});
  return value != nullptr && value->is_null();
}

std::string_view ConfigReader::FirstOf(std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys) {
    if (Has(key)) {
      return key;
    }
  }
  return *keys.begin();
}

const boost::json::value* ConfigReader::Required(std::string_view key) {
  if (!ok()) {
    return nullptr;
  }
  const boost::json::value* value = Find(key);
  if (value == nullptr) {
    Fail("config_key", key, IsNull(key) ? "is null; a value is needed" : "missing");
  }
  return value;
}

int32_t ConfigReader::ToInt(std::string_view key, const boost::json::value& value, int64_t min,
                            int64_t max) {
  if (!value.is_int64() && !value.is_uint64()) {
    WrongType(key, "a whole number", value);
    return static_cast<int32_t>(min);
  }
  if (value.is_uint64() || value.get_int64() < min || value.get_int64() > max) {
    OutOfRange(key, "out of range; expected " + Bounds(std::to_string(min), std::to_string(max)) +
                        ", found " + Shown(value));
    return static_cast<int32_t>(min);
  }
  return static_cast<int32_t>(value.get_int64());
}

double ConfigReader::ToNumber(std::string_view key, const boost::json::value& value, double min,
                              double max) {
  if (!value.is_number()) {
    WrongType(key, "a number", value);
    return min;
  }
  const double number = value.to_number<double>();
  if (!(number >= min && number <= max)) {  // Written so that NaN fails.
    OutOfRange(key, "out of range; expected " + Bounds(Shown(min), Shown(max)) + ", found " +
                        Shown(value));
    return min;
  }
  return number;
}

bool ConfigReader::ToBool(std::string_view key, const boost::json::value& value) {
  if (!value.is_bool()) {
    WrongType(key, "true or false", value);
    return false;
  }
  return value.get_bool();
}

std::string ConfigReader::ToString(std::string_view key, const boost::json::value& value) {
  if (!value.is_string()) {
    WrongType(key, "a string", value);
    return {};
  }
  return std::string(std::string_view(value.get_string()));
}

int32_t ConfigReader::Int(std::string_view key, int64_t min, int64_t max) {
  const boost::json::value* value = Required(key);
  return value == nullptr ? static_cast<int32_t>(min) : ToInt(key, *value, min, max);
}

double ConfigReader::Number(std::string_view key, double min, double max) {
  const boost::json::value* value = Required(key);
  return value == nullptr ? min : ToNumber(key, *value, min, max);
}

bool ConfigReader::Bool(std::string_view key) {
  const boost::json::value* value = Required(key);
  return value != nullptr && ToBool(key, *value);
}

std::string ConfigReader::String(std::string_view key) {
  const boost::json::value* value = Required(key);
  return value == nullptr ? std::string() : ToString(key, *value);
}

int32_t ConfigReader::IntOr(std::string_view key, int32_t fallback, int64_t min, int64_t max) {
  return Has(key) ? Int(key, min, max) : fallback;
}

double ConfigReader::NumberOr(std::string_view key, double fallback, double min, double max) {
  return Has(key) ? Number(key, min, max) : fallback;
}

bool ConfigReader::BoolOr(std::string_view key, bool fallback) {
  return Has(key) ? Bool(key) : fallback;
}

std::string ConfigReader::StringOr(std::string_view key, std::string_view fallback) {
  return Has(key) ? String(key) : std::string(fallback);
}

std::vector<int32_t> ConfigReader::IntsOr(std::string_view key, int64_t min, int64_t max) {
  std::vector<int32_t> out;
  const boost::json::value* value = Find(key);
  if (value == nullptr || !ok()) {
    return out;
  }
  if (!value->is_array()) {
    WrongType(key, "a list of whole numbers", *value);
    return out;
  }
  const boost::json::array& items = value->get_array();
  for (size_t i = 0; i < items.size() && ok(); ++i) {
    out.push_back(ToInt(std::string(key) + "[" + std::to_string(i) + "]", items[i], min, max));
  }
  return out;
}

std::vector<double> ConfigReader::NumbersOr(std::string_view key, double min, double max) {
  std::vector<double> out;
  const boost::json::value* value = Find(key);
  if (value == nullptr || !ok()) {
    return out;
  }
  if (!value->is_array()) {
    WrongType(key, "a list of numbers", *value);
    return out;
  }
  const boost::json::array& items = value->get_array();
  for (size_t i = 0; i < items.size() && ok(); ++i) {
    out.push_back(ToNumber(std::string(key) + "[" + std::to_string(i) + "]", items[i], min, max));
  }
  return out;
}

std::optional<ConfigReader> ConfigReader::Object(std::string_view key,
                                                 std::string_view range_reason) {
  const boost::json::value* value = Find(key);
  if (value == nullptr || !ok()) {
    return std::nullopt;
  }
  if (!value->is_object()) {
    WrongType(key, "an object", *value);
    return std::nullopt;
  }
  ConfigReader reader(file_, value->get_object(), range_reason, status_);
  reader.prefix_ = prefix_ + std::string(key) + ".";
  return reader;
}

absl::StatusOr<boost::json::value> ParseConfig(const std::string& file, std::string_view text) {
  absl::StatusOr<boost::json::value> value = ParseStrict(text, JsonLimits{});
  if (!value.ok()) {
    return InvalidArgument("config_key", file + ": not valid JSON " + MessageOf(value.status()));
  }
  if (!value->is_object()) {
    return InvalidArgument("config_key", file + ": expected a JSON object, found " + Shown(*value));
  }
  return value;
}

}  // namespace conclave::checkpoint
