#include "conclave/text/detokenizer.h"

#include <algorithm>
#include <utility>

#include "utf8.h"

namespace conclave::text {
namespace {

std::vector<size_t> BordersOf(std::string_view text) {
  std::vector<size_t> borders(text.size(), 0);
  size_t border = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (border > 0 && text[i] != text[border]) border = borders[border - 1];
    if (text[i] == text[border]) ++border;
    borders[i] = border;
  }
  return borders;
}

// Moves all of `bytes` that can change no more to the end of `out`, broken parts as U+FFFD.
void DecodeComplete(std::string& bytes, std::string& out) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const size_t num_valid = ValidUtf8Prefix(rest);
    out.append(rest.substr(0, num_valid));
    rest.remove_prefix(num_valid);
    if (rest.empty()) break;
    const Utf8Unit unit = DecodeUtf8(rest, 0);
    if (unit.kind == Utf8Kind::kIncomplete) break;
    out.append(kReplacementCharacter);
    rest.remove_prefix(unit.num_bytes);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

}  // namespace

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string rest(bytes);
  std::string text;
  text.reserve(bytes.size());
  DecodeComplete(rest, text);
  if (!rest.empty()) text.append(kReplacementCharacter);
  return text;
}

IncrementalDetokenizer::IncrementalDetokenizer(const Tokenizer& tokenizer,
                                               const std::vector<std::string>& stops,
                                               bool keep_special)
    : tokenizer_(tokenizer), keep_special_(keep_special) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    // Valid, so that a match begins and ends between code points.
    std::string text = ReplaceInvalidUtf8(stop);
    std::vector<size_t> borders = BordersOf(text);
    stops_.push_back({std::move(text), std::move(borders)});
  }
}

IncrementalDetokenizer::Delta IncrementalDetokenizer::Push(int32_t token) {
  if (stopped_) return {"", true};
  bytes_.append(tokenizer_.DecodeNext(token, keep_special_, state_));
  std::string decoded;
  DecodeComplete(bytes_, decoded);
  return Advance(decoded);
}

std::string IncrementalDetokenizer::Finish() {
  if (stopped_) return {};
  std::string text = Advance(bytes_.empty() ? std::string_view() : kReplacementCharacter).text;
  if (!stopped_) text.append(pending_);
  stopped_ = true;
  return text;
}

IncrementalDetokenizer::Delta IncrementalDetokenizer::Advance(std::string_view decoded) {
  for (const char c : decoded) {
    pending_.push_back(c);
    size_t stop_bytes = 0;
    for (Stop& stop : stops_) {
      while (stop.num_matched > 0 && stop.text[stop.num_matched] != c) {
        stop.num_matched = stop.fallback[stop.num_matched - 1];
      }
      if (stop.text[stop.num_matched] == c) ++stop.num_matched;
      if (stop.num_matched == stop.text.size()) stop_bytes = std::max(stop_bytes, stop.text.size());
    }
    if (stop_bytes > 0) {
      stopped_ = true;
      pending_.resize(pending_.size() - stop_bytes);
      return {std::exchange(pending_, {}), true};
    }
  }
  size_t held = 0;
  for (const Stop& stop : stops_) held = std::max(held, stop.num_matched);
  Delta delta{pending_.substr(0, pending_.size() - held), false};
  pending_.erase(0, pending_.size() - held);
  return delta;
}

}  // namespace conclave::text
