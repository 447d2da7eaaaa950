#include "conclave/service/units.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <span>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::service {
namespace {

constexpr size_t kEchoBytesMax = 64;

struct Unit {
  std::string_view name;
  int64_t scale;
};

constexpr Unit kByteUnits[] = {
    {"B", 1},
    {"KiB", int64_t{1} << 10},
    {"MiB", int64_t{1} << 20},
    {"GiB", int64_t{1} << 30},
    {"TiB", int64_t{1} << 40},
    {"KB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"TB", 1'000'000'000'000},
};

// Of milliseconds.
constexpr Unit kTimeUnits[] = {{"ms", 1}, {"s", 1'000}, {"m", 60'000}, {"h", 3'600'000}};
constexpr int64_t kDurationMax = int64_t{10'000} * 3'600'000;

absl::Status Malformed(std::string_view expected, std::string_view text) {
  return InvalidArgument("usage", "expected " + std::string(expected) + ", found " + Quoted(text));
}

absl::Status TooLarge(std::string_view expected, std::string_view text) {
  return Error(absl::StatusCode::kOutOfRange, "usage",
               "expected " + std::string(expected) + ", found " + Quoted(text));
}

// from_chars and not strtod: it knows no locale. `text` is a plain decimal number, with an exponent
// only if allowed.
bool ReadDecimal(std::string_view text, std::chars_format format, double& value) {
  if (text.empty() || text.front() == '.' || text.back() == '.') {
    return false;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, format);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

// Number and unit to a whole count of the smallest unit, within [0, max].
absl::StatusOr<int64_t> ParseScaled(std::string_view text, std::span<const Unit> units,
                                    std::string_view expected, std::string_view expected_range,
                                    int64_t max) {
  const size_t split = text.find_first_not_of("0123456789.e");
  if (split == 0 || split == std::string_view::npos) {
    return Malformed(expected, text);
  }
  const std::string_view number = text.substr(0, split);
  for (const Unit& unit : units) {
    if (text.substr(split) != unit.name) {
      continue;
    }
    // Whole numbers stay exact beyond 2^53.
    int64_t whole = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), whole);
    if (error == std::errc() && end == number.data() + number.size()) {
      if (whole > max / unit.scale) {
        return TooLarge(expected_range, text);
      }
      return whole * unit.scale;
    }
    double value = 0;
    if (error == std::errc::result_out_of_range) {
      return TooLarge(expected_range, text);
    }
    if (!ReadDecimal(number, std::chars_format::general, value)) {
      return Malformed(expected, text);
    }
    const double scaled = value * static_cast<double>(unit.scale);
    if (scaled >= static_cast<double>(max)) {
      return TooLarge(expected_range, text);
    }
    return static_cast<int64_t>(scaled);
  }
  return Malformed(expected, text);
}

std::string Shortest(int64_t count, std::span<const Unit> units) {
  const Unit* best = &units.front();
  for (const Unit& unit : units) {
    if (count != 0 && count % unit.scale == 0) {
      best = unit.scale > best->scale ? &unit : best;
    }
  }
  return std::to_string(count / best->scale) + std::string(best->name);
}

}  // namespace

absl::StatusOr<ByteSize> ParseByteSize(std::string_view text) {
  CONCLAVE_ASSIGN_OR_RETURN(
      const int64_t bytes,
      ParseScaled(text, kByteUnits, "a size with a unit, such as 512MiB or 4GiB",
                  "a size below 8388608TiB", std::numeric_limits<int64_t>::max()));
  return ByteSize{bytes};
}

std::string ToString(ByteSize size) { return Shortest(size.bytes, std::span(kByteUnits).first(5)); }

absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view text) {
  CONCLAVE_ASSIGN_OR_RETURN(
      const int64_t millis,
      ParseScaled(text, kTimeUnits, "a duration with a unit, such as 250ms or 30s",
                  "a duration up to 10000h", kDurationMax));
  return std::chrono::milliseconds(millis);
}

std::string ToString(std::chrono::milliseconds duration) {
  return Shortest(duration.count(), kTimeUnits);
}

absl::StatusOr<int64_t> ParseInt(std::string_view text) {
  constexpr std::string_view kExpected = "a whole number";
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string_view::npos) {
    return Malformed(kExpected, text);
  }
  if (digits.size() > 1 && digits.front() == '0') {
    return Malformed("a whole number without leading zeros", text);
  }
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) {
    return TooLarge("a whole number of at most 63 bits", text);
  }
  return value;
}

absl::StatusOr<double> ParseNumber(std::string_view text) {
  double value = 0;
  const std::string_view magnitude = text.starts_with('-') ? text.substr(1) : text;
  if (magnitude.starts_with('-') || !ReadDecimal(magnitude, std::chars_format::general, value)) {
    return Malformed("a number", text);
  }
  return text.starts_with('-') ? -value : value;
}

absl::StatusOr<bool> ParseBool(std::string_view text) {
  for (const std::string_view word : {"true", "on", "yes", "1"}) {
    if (text == word) {
      return true;
    }
  }
  for (const std::string_view word : {"false", "off", "no", "0"}) {
    if (text == word) {
      return false;
    }
  }
  return Malformed("true or false", text);
}

std::string Quoted(std::string_view text) {
  return '"' + observability::Printable(text, kEchoBytesMax) + '"';
}

}  // namespace conclave::service
