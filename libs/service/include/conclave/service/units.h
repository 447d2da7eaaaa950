// Sizes and durations as people write them: a number and its unit, without a space. A bare number
// is refused, because "10" has been bytes, KiB and MiB in too many places.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::service {

// A number of bytes.
struct ByteSize {
  int64_t bytes = 0;
  friend auto operator<=>(const ByteSize&, const ByteSize&) = default;
};

// "4GiB", "512MiB", "1.5GiB", "100MB", "64KiB", "0B": B, KiB, MiB, GiB, TiB (powers of 1024), KB,
// MB, GB, TB (of 1000). kInvalidArgument with "expected a size with a unit, such as 512MiB or 4GiB,
// found ..."; kOutOfRange beyond 2^63-1 bytes. A fraction of a byte is cut off.
absl::StatusOr<ByteSize> ParseByteSize(std::string_view text);

// The shortest exact form, which ParseByteSize reads back: "4GiB", "1000B".
std::string ToString(ByteSize size);

// "250ms", "30s", "1.5s", "5m", "2h". kInvalidArgument as above; kOutOfRange beyond 10,000 hours.
// Below a millisecond is cut off.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view text);
std::string ToString(std::chrono::milliseconds duration);

// A whole decimal number: digits with an optional '-', no leading zeros (0644 is no number that two
// people read alike), no '+', no spaces. kInvalidArgument or kOutOfRange.
absl::StatusOr<int64_t> ParseInt(std::string_view text);

// A finite decimal number such as 0.7, 1 or 1e-3.
absl::StatusOr<double> ParseNumber(std::string_view text);

// "true", "false", "on", "off", "yes", "no", "1", "0".
absl::StatusOr<bool> ParseBool(std::string_view text);

// `text` in double quotes, printable, at most 64 bytes of it: for "found ..." in messages.
std::string Quoted(std::string_view text);

}  // namespace conclave::service
