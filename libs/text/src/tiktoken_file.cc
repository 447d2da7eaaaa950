#include "tiktoken_file.h"

#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "conclave/base/status.h"
#include "quote.h"
#include "tokenizer_files.h"

namespace conclave::text {
namespace {

// The published files have at most 151,643 tokens of at most 128 bytes in 2.6 MB.
constexpr int64_t kFileBytesMax = 32 << 20;
constexpr size_t kTokenBytesMax = 768;
constexpr size_t kRankDigitsMax = 8;

absl::Status Invalid(const std::string& file, size_t line, const std::string& what) {
  return InvalidArgument("tokenizer_invalid", file + ":" + std::to_string(line) + ": " + what);
}

// -1: not in the standard alphabet of RFC 4648.
int Base64Digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

// RFC 4648, section 4, strictly: padded, unused bits zero, nothing else in between.
std::optional<std::string> DecodeBase64(std::string_view text) {
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  size_t num_digits = text.size();
  while (num_digits > text.size() - 2 && text[num_digits - 1] == '=') --num_digits;
  std::string bytes;
  uint32_t bits = 0;
  int num_bits = 0;
  for (const char c : text.substr(0, num_digits)) {
    const int digit = Base64Digit(c);
    if (digit < 0) return std::nullopt;
    bits = (bits << 6 | static_cast<uint32_t>(digit)) & 0xFFFF;
    num_bits += 6;
    if (num_bits >= 8) {
      num_bits -= 8;
      bytes.push_back(static_cast<char>(bits >> num_bits & 0xFF));
    }
  }
  if ((bits & ((1u << num_bits) - 1)) != 0) return std::nullopt;
  return bytes;
}

std::optional<uint32_t> ParseRank(std::string_view text) {
  if (text.empty() || text.size() > kRankDigitsMax) return std::nullopt;
  uint32_t rank = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    rank = rank * 10 + static_cast<uint32_t>(c - '0');
  }
  return rank;
}

struct Line {
  size_t number;
  uint32_t rank;
  std::string token;
};

absl::StatusOr<Line> ParseLine(const std::string& file, size_t number, std::string_view text) {
  const size_t space = text.find(' ');
  if (space == std::string_view::npos) {
    return Invalid(file, number,
                   "no space in the line; expected \"<base64> <rank>\", found " + Quote(text));
  }
  const std::string_view encoded = text.substr(0, space);
  const std::string_view digits = text.substr(space + 1);
  if (encoded.size() > kTokenBytesMax / 3 * 4) {
    return Invalid(file, number,
                   "token is too long; expected at most " + std::to_string(kTokenBytesMax) +
                       " bytes, found " + std::to_string(encoded.size() / 4 * 3));
  }
  std::optional<std::string> token = DecodeBase64(encoded);
  if (!token.has_value()) {
    return Invalid(file, number,
                   "token is no base64; expected padded standard base64, found " + Quote(encoded));
  }
  const std::optional<uint32_t> rank = ParseRank(digits);
  if (!rank.has_value()) {
    return Invalid(file, number,
                   "rank is no number; expected 1 to " + std::to_string(kRankDigitsMax) +
                       " digits, found " + Quote(digits));
  }
  return Line{number, *rank, *std::move(token)};
}

absl::StatusOr<std::vector<Line>> ParseLines(const std::string& file, std::string_view content) {
  std::vector<Line> lines;
  size_t number = 0;
  while (!content.empty()) {
    ++number;
    const size_t end = content.find('\n');
    std::string_view text = content.substr(0, end);
    content.remove_prefix(end == std::string_view::npos ? content.size() : end + 1);
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (text.empty()) continue;
    CONCLAVE_ASSIGN_OR_RETURN(Line line, ParseLine(file, number, text));
    lines.push_back(std::move(line));
  }
  if (lines.empty())
    return Invalid(file, 1, "file has no token; expected one \"<base64> <rank>\" per line");
  return lines;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadTiktokenFile(const std::string& file) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string content,
                            ReadTokenizerFile(file, kFileBytesMax, "a .tiktoken rank file"));
  CONCLAVE_ASSIGN_OR_RETURN(std::vector<Line> lines, ParseLines(file, content));
  std::vector<std::string> tokens(lines.size());
  std::unordered_set<std::string_view> seen;
  seen.reserve(lines.size());
  for (Line& line : lines) {
    if (line.rank >= lines.size()) {
      return Invalid(file, line.number,
                     "a rank is missing; expected each of 0 to " +
                         std::to_string(lines.size() - 1) + " once, found " +
                         std::to_string(line.rank));
    }
    std::string& token = tokens[line.rank];
    if (!token.empty()) {
      return Invalid(file, line.number,
                     "rank " + std::to_string(line.rank) + " is there twice; expected once");
    }
    token = std::move(line.token);
    if (!seen.insert(token).second) {
      return Invalid(file, line.number,
                     "token is there twice, again as rank " + std::to_string(line.rank));
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    if (!seen.contains(std::string_view(&text, 1))) {
      return Invalid(
          file, lines.back().number,
          "no token of the single byte " + std::to_string(byte) + " in the file; expected all 256");
    }
  }
  return tokens;
}

}  // namespace conclave::text
