// The first look at a request's bytes: where its header block ends, and whether two parsers in a
// row could read it differently (request smuggling). Stricter than RFC 9112 allows: no folded
// lines, no bare line feeds, one framing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "conclave/frontend/http_server.h"
#include "http/api_error.h"

namespace conclave::frontend {

// Fed with the same growing buffer until it decides. One per request.
class HeadScanner {
 public:
  // `limits` outlives it.
  explicit HeadScanner(const HttpLimits& limits) : limits_(limits) {}

  enum class Result { kNeedMore, kComplete, kBad };

  // `bytes` starts at the request and only grows between calls; lines already seen are not scanned
  // again.
  Result Scan(std::string_view bytes);

  // Once complete: bytes of the block with its empty line.
  size_t num_bytes() const { return line_start_; }
  std::optional<uint64_t> content_length() const { return content_length_; }
  bool is_chunked() const { return is_chunked_; }

  // Once bad. Codes: uri_too_long (414), headers_too_large, too_many_headers (431),
  // ambiguous_framing, bad_request (400), http_version_unsupported (505).
  const HttpError& error() const { return error_; }

 private:
  Result Fail(int status, std::string_view code, std::string_view message);
  // Limits on what is there without a whole line.
  bool IsTooLong(size_t num_bytes);
  bool CheckRequestLine(std::string_view line);
  bool CheckField(std::string_view line);
  bool CheckFraming(std::string_view name, std::string_view value);
  bool CheckEnd();
  bool Bad(int status, std::string_view code, std::string_view message);

  const HttpLimits& limits_;
  size_t line_start_ = 0;
  size_t scanned_ = 0;
  size_t fields_start_ = 0;  // 0: the request line is not complete yet
  int32_t num_fields_ = 0;
  int32_t num_hosts_ = 0;
  bool is_http10_ = false;
  bool is_chunked_ = false;
  std::optional<uint64_t> content_length_;
  HttpError error_;
};

}  // namespace conclave::frontend
