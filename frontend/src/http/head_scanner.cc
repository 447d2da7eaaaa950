#include "http/head_scanner.h"

#include <algorithm>

#include "absl/strings/match.h"

namespace conclave::frontend {
namespace {

constexpr std::string_view kSmuggling = "the framing of the request is ambiguous";

// RFC 9110, section 5.6.2.
bool IsTokenChar(char c) {
  constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~";
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         kOthers.find(c) != std::string_view::npos;
}

bool IsToken(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), IsTokenChar);
}

bool Equals(std::string_view a, std::string_view b) {
  return absl::EqualsIgnoreCase({a.data(), a.size()}, {b.data(), b.size()});
}

std::string_view Trim(std::string_view text) {
  const auto is_space = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && is_space(text.front())) {
    text.remove_prefix(1);
  }
  while (!text.empty() && is_space(text.back())) {
    text.remove_suffix(1);
  }
  return text;
}

bool IsVisible(char c) { return static_cast<unsigned char>(c) > 0x20 && c != 0x7F; }

}  // namespace

bool HeadScanner::Bad(int status, std::string_view code, std::string_view message) {
  error_ = HttpError{status, std::string(code), std::string(message), ""};
  return false;
}

HeadScanner::Result HeadScanner::Fail(int status, std::string_view code, std::string_view message) {
  Bad(status, code, message);
  return Result::kBad;
}

bool HeadScanner::IsTooLong(size_t num_bytes) {
  if (fields_start_ == 0) {
    if (num_bytes > static_cast<size_t>(limits_.request_line_bytes_max)) {
      return !Bad(414, "uri_too_long",
                  "request line: too long; expected at most " +
                      std::to_string(limits_.request_line_bytes_max) + " bytes");
    }
    return false;
  }
  if (num_bytes - fields_start_ > static_cast<size_t>(limits_.header_bytes_max)) {
    return !Bad(431, "headers_too_large",
                "header fields: too large; expected at most " +
                    std::to_string(limits_.header_bytes_max) + " bytes");
  }
  return false;
}

HeadScanner::Result HeadScanner::Scan(std::string_view bytes) {
  // A TLS hello or other binary on this port: no need to wait for a line that never ends.
  if (!bytes.empty() && line_start_ == 0 && !IsTokenChar(bytes.front())) {
    return Fail(400, "bad_request", "request line: not HTTP; expected METHOD PATH HTTP/1.1");
  }
  while (true) {
    const size_t feed = bytes.find('\n', scanned_);
    const size_t end = feed == std::string_view::npos ? bytes.size() : feed;
    if (IsTooLong(end)) {
      return Result::kBad;
    }
    if (feed == std::string_view::npos) {
      scanned_ = bytes.size();
      return Result::kNeedMore;
    }
    if (feed == line_start_ || bytes[feed - 1] != '\r') {
      return Fail(400, "ambiguous_framing", "a line ends without a carriage return");
    }
    const std::string_view line = bytes.substr(line_start_, feed - 1 - line_start_);
    line_start_ = scanned_ = feed + 1;
    if (fields_start_ == 0) {
      if (!CheckRequestLine(line)) {
        return Result::kBad;
      }
      fields_start_ = line_start_;
    } else if (line.empty()) {
      return CheckEnd() ? Result::kComplete : Result::kBad;
    } else if (!CheckField(line)) {
      return Result::kBad;
    }
  }
}

bool HeadScanner::CheckRequestLine(std::string_view line) {
  constexpr std::string_view kExpected = "request line: expected METHOD PATH HTTP/1.1";
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last || !IsToken(line.substr(0, first))) {
    return Bad(400, "bad_request", kExpected);
  }
  const std::string_view target = line.substr(first + 1, last - first - 1);
  const std::string_view version = line.substr(last + 1);
  if (target.empty() || !std::all_of(target.begin(), target.end(), IsVisible)) {
    return Bad(400, "bad_request", kExpected);
  }
  if (version == "HTTP/1.0") {
    is_http10_ = true;
    return true;
  }
  if (version == "HTTP/1.1") {
    return true;
  }
  if (version.substr(0, 5) == "HTTP/") {
    return Bad(505, "http_version_unsupported", "expected HTTP/1.1");
  }
  return Bad(400, "bad_request", kExpected);
}

bool HeadScanner::CheckField(std::string_view line) {
  if (++num_fields_ > limits_.header_fields_max) {
    return Bad(
        431, "too_many_headers",
        "header fields: too many; expected at most " + std::to_string(limits_.header_fields_max));
  }
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos || !IsToken(line.substr(0, colon))) {
    // Folded lines and a space before the colon end here too.
    return Bad(400, "ambiguous_framing", "header fields: expected NAME: VALUE on each line");
  }
  const std::string_view value = Trim(line.substr(colon + 1));
  for (const char c : value) {
    if (!IsVisible(c) && c != ' ' && c != '\t') {
      return Bad(400, "ambiguous_framing", "header fields: a value has a control character");
    }
  }
  return CheckFraming(line.substr(0, colon), value);
}

bool HeadScanner::CheckFraming(std::string_view name, std::string_view value) {
  // Enough digits for any length we could take, few enough not to overflow.
  constexpr size_t kLengthDigitsMax = 18;
  if (Equals(name, "host")) {
    ++num_hosts_;
  } else if (Equals(name, "content-length")) {
    const bool is_number =
        !value.empty() && value.size() <= kLengthDigitsMax &&
        std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!is_number || content_length_.has_value() || is_chunked_) {
      return Bad(400, "ambiguous_framing", kSmuggling);
    }
    uint64_t length = 0;
    for (const char c : value) {
      length = length * 10 + static_cast<uint64_t>(c - '0');
    }
    content_length_ = length;
  } else if (Equals(name, "transfer-encoding")) {
    if (!Equals(value, "chunked") || is_chunked_ || content_length_.has_value() || is_http10_) {
      return Bad(400, "ambiguous_framing", kSmuggling);
    }
    is_chunked_ = true;
  }
  return true;
}

bool HeadScanner::CheckEnd() {
  if (num_hosts_ > 1 || (num_hosts_ == 0 && !is_http10_)) {
    return Bad(400, "bad_request", "header fields: expected one Host");
  }
  return true;
}

}  // namespace conclave::frontend
