#include "nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "utf8.h"

namespace conclave::text {
namespace {

constexpr auto kNfcOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
// Canonical decompositions have at most 4 code points.
constexpr size_t kDecomposedMax = 8;
// Runs of combining marks up to this length are sorted by insertion, which needs no tables.
constexpr size_t kShortRun = 16;

// Below U+0300, and from U+4000 to U+9FFF (Han, hexagrams), nothing is reordered, changed, or
// appended to what precedes it, so text may be cut in front of such a code point. Their UTF-8
// begins with a byte below 0xCC, or with one from 0xE4 to 0xE9; continuation bytes (0x80 to 0xBF)
// belong to what they follow.
bool BeginsUnaffected(char byte) {
  const auto value = static_cast<uint8_t>(byte);
  return value < 0x80 || (value >= 0xC0 && value < 0xCC) || (value >= 0xE4 && value <= 0xE9);
}

bool BeginsAffected(char byte) {
  const auto value = static_cast<uint8_t>(byte);
  return value >= 0xCC && (value < 0xE4 || value > 0xE9);
}

uint8_t CombiningClass(int32_t code_point) {
  return static_cast<uint8_t>(utf8proc_get_property(code_point)->combining_class);
}

struct Decomposed {
  std::vector<int32_t> code_points;
  std::vector<uint8_t> classes;
};

void Decompose(std::string_view text, Decomposed& out) {
  out.code_points.clear();
  out.classes.clear();
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Unit unit = DecodeUtf8(text, pos);
    pos += unit.num_bytes;
    std::array<utf8proc_int32_t, kDecomposedMax> parts;
    int boundary_state = 0;
    const utf8proc_ssize_t num_parts = utf8proc_decompose_char(
        unit.code_point, parts.data(), kDecomposedMax, kNfcOptions, &boundary_state);
    CONCLAVE_CHECK(num_parts >= 0 && num_parts <= static_cast<utf8proc_ssize_t>(kDecomposedMax));
    for (utf8proc_ssize_t i = 0; i < num_parts; ++i) {
      out.code_points.push_back(parts[i]);
      out.classes.push_back(CombiningClass(parts[i]));
    }
  }
}

// Stable counting sort of one run of combining marks by class.
void SortLongRun(size_t begin, size_t end, Decomposed& text) {
  std::array<size_t, 256> next{};
  for (size_t i = begin; i < end; ++i) ++next[text.classes[i]];
  size_t sum = 0;
  for (size_t& slot : next) sum += std::exchange(slot, sum);
  std::vector<int32_t> code_points(end - begin);
  std::vector<uint8_t> classes(end - begin);
  for (size_t i = begin; i < end; ++i) {
    const size_t to = next[text.classes[i]]++;
    code_points[to] = text.code_points[i];
    classes[to] = text.classes[i];
  }
  std::copy(code_points.begin(), code_points.end(),
            text.code_points.begin() + static_cast<ptrdiff_t>(begin));
  std::copy(classes.begin(), classes.end(), text.classes.begin() + static_cast<ptrdiff_t>(begin));
}

void SortShortRun(size_t begin, size_t end, Decomposed& text) {
  for (size_t i = begin + 1; i < end; ++i) {
    for (size_t j = i; j > begin && text.classes[j - 1] > text.classes[j]; --j) {
      std::swap(text.classes[j - 1], text.classes[j]);
      std::swap(text.code_points[j - 1], text.code_points[j]);
    }
  }
}

// Canonical ordering (Unicode 15, section 3.11, D109): marks between two starters in the order of
// their classes.
void OrderMarks(Decomposed& text) {
  const size_t size = text.classes.size();
  for (size_t begin = 0; begin < size;) {
    if (text.classes[begin] == 0) {
      ++begin;
      continue;
    }
    size_t end = begin + 1;
    while (end < size && text.classes[end] != 0) ++end;
    if (end - begin <= kShortRun) {
      SortShortRun(begin, end, text);
    } else {
      SortLongRun(begin, end, text);
    }
    begin = end;
  }
}

void AppendNormalized(std::string_view text, Decomposed& scratch, std::string& out) {
  Decompose(text, scratch);
  OrderMarks(scratch);
  const utf8proc_ssize_t num_composed = utf8proc_normalize_utf32(
      scratch.code_points.data(), static_cast<utf8proc_ssize_t>(scratch.code_points.size()),
      kNfcOptions);
  CONCLAVE_CHECK(num_composed >= 0);
  for (utf8proc_ssize_t i = 0; i < num_composed; ++i) AppendUtf8(scratch.code_points[i], out);
}

}  // namespace

std::string ToNfc(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Decomposed scratch;
  size_t copied = 0;
  while (true) {
    const auto affected =
        std::find_if(text.begin() + static_cast<ptrdiff_t>(copied), text.end(), BeginsAffected);
    if (affected == text.end()) break;
    // What stands directly before may compose with the first mark.
    auto begin = static_cast<size_t>(affected - text.begin());
    if (begin > copied) {
      --begin;
      while (begin > copied && !BeginsUnaffected(text[begin])) --begin;
    }
    const auto end =
        static_cast<size_t>(std::find_if(affected, text.end(), BeginsUnaffected) - text.begin());
    out.append(text, copied, begin - copied);
    AppendNormalized(text.substr(begin, end - begin), scratch, out);
    copied = end;
  }
  out.append(text, copied);
  return out;
}

}  // namespace conclave::text
