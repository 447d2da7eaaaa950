// The first look at a request's bytes.
//
// Promises: any way of cutting the bytes into pieces gives the same answer; a complete block ends
// in an empty line and has one framing at most; nothing is read behind the bytes that have come.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "http/head_scanner.h"

namespace conclave::frontend {
namespace {

using Result = HeadScanner::Result;

// Small, so that each is reached.
HttpLimits SmallLimits() {
  HttpLimits limits;
  limits.header_bytes_max = 512;
  limits.header_fields_max = 8;
  limits.request_line_bytes_max = 128;
  return limits;
}

// Feeds prefixes of growing length, each in memory of exactly its size: the address sanitizer sees
// a read behind it. `seed` decides where they end.
Result ScanInPieces(HeadScanner& scanner, std::string_view bytes, uint32_t seed) {
  Result result = Result::kNeedMore;
  for (size_t length = 0; length < bytes.size() && result == Result::kNeedMore;) {
    seed = seed * 1664525 + 1013904223;
    length = std::min(bytes.size(), length + 1 + (seed >> 24) % 40);
    const std::vector<char> piece(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    result = scanner.Scan({piece.data(), piece.size()});
  }
  return result;
}

void Check(std::string_view bytes, uint32_t seed) {
  const HttpLimits limits = SmallLimits();
  HeadScanner whole(limits);
  const Result result = bytes.empty() ? Result::kNeedMore : whole.Scan(bytes);
  HeadScanner pieces(limits);
  CONCLAVE_CHECK(ScanInPieces(pieces, bytes, seed) == result);
  if (result == Result::kBad) {
    CONCLAVE_CHECK(whole.error().status >= 400 && whole.error().status < 600);
    CONCLAVE_CHECK(!whole.error().code.empty() && whole.error().code == pieces.error().code);
    return;
  }
  if (result == Result::kComplete) {
    CONCLAVE_CHECK(whole.num_bytes() <= bytes.size());
    CONCLAVE_CHECK(bytes.substr(0, whole.num_bytes()).ends_with("\r\n\r\n"));
    CONCLAVE_CHECK(!(whole.is_chunked() && whole.content_length().has_value()));
    CONCLAVE_CHECK(whole.num_bytes() == pieces.num_bytes());
    CONCLAVE_CHECK(whole.is_chunked() == pieces.is_chunked());
    CONCLAVE_CHECK(whole.content_length() == pieces.content_length());
  }
}

}  // namespace
}  // namespace conclave::frontend

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  // The last byte chooses the cuts, so that a seed file is a request and one byte more.
  if (size == 0) {
    return 0;
  }
  conclave::frontend::Check({reinterpret_cast<const char*>(bytes), size - 1}, bytes[size - 1]);
  return 0;
}
