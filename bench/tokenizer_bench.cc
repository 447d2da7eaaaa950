// tokenizer_bench ROOT [MIB [TEXT]]: how long Encode takes on hostile text (row T05 of
// docs/design/bad-inputs.md), for every tokenizer folder below ROOT; TEXT is the name of one of
// the texts. Prints milliseconds of CPU time of the thread per MiB, the best of three runs, and
// marks what misses the goal. Neighbours on a busy machine still slow it down, through caches and
// shared cores. A time that grows with MIB shows a path that is not linear.
//
// tests/golden/data/tokenizers has every kind; a ROOT with folders of published checkpoints gives
// the figures for full vocabularies.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/cpu_time.h"
#include "conclave/text/tokenizer.h"

namespace conclave::text {
namespace {

constexpr double kGoalMsPerMebibyte = 50;
constexpr int kNumRuns = 3;
constexpr std::array<std::string_view, 5> kKinds{"arcade100k.tiktoken", "qwen.tiktoken",
                                                 "tokenizer.model", "vocab.json", "tokenizer.json"};

struct Text {
  std::string_view name;
  std::string bytes;
};

std::string Repeat(std::string_view piece, size_t num_bytes) {
  std::string text;
  text.reserve(num_bytes + piece.size());
  while (text.size() < num_bytes) text += piece;
  return text;
}

// Three-byte characters from `first` on, `count` of them, at random: hardly any pair occurs twice
// in a row.
std::string RandomWide(int32_t first, int32_t count, size_t num_bytes) {
  std::mt19937_64 random(1);
  std::string text;
  while (text.size() < num_bytes) {
    const int32_t c = first + static_cast<int32_t>(random() % static_cast<uint64_t>(count));
    text += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)),
             static_cast<char>(0x80 | (c & 0x3F))};
  }
  return text;
}

std::string RandomBytes(int first, int last, size_t num_bytes) {
  std::mt19937_64 random(1);
  std::string text(num_bytes, '\0');
  for (char& c : text)
    c = static_cast<char>(first +
                          static_cast<int>(random() % static_cast<uint64_t>(last - first + 1)));
  return text;
}

std::vector<Text> Texts(size_t num_bytes) {
  const auto repeated = [num_bytes](std::string_view piece) { return Repeat(piece, num_bytes); };
  return {
      {"prose", repeated("The quick brown fox, aged 12, doesn't jump over the lazy dog.\n")},
      {"a", repeated("a")},
      {"spaces", repeated(" ")},
      {"spaces+x", repeated("                                        x")},
      {"line ends", repeated(" \n")},
      {"one Han", repeated("\xE4\xB8\xAD")},
      {"emoji ZWJ", repeated("\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x92\xBB\xE2\x80\x8D")},
      {"marks", "e" + repeated("\xCC\x81\xCC\xA3")},
      {"letters", repeated("thequickbrownfoxjumpsoverthelazydog")},
      {"controls", repeated("<|endoftext|")},
      {"digits", repeated("1234567890")},
      {"invalid", repeated("\xFF\xE4\xB8")},
      {"any letters", RandomBytes('a', 'z', num_bytes)},
      {"any ASCII", RandomBytes(' ', '~', num_bytes)},
      {"any Han", RandomWide(0x4E00, 0x5000, num_bytes)},
      {"any Hangul", RandomWide(0xAC00, 0x2BA0, num_bytes)},
      {"any bytes", RandomBytes(0, 255, num_bytes)},
  };
}

double ThreadMs() { return std::chrono::duration<double, std::milli>(ThreadCpuTime()).count(); }

// Whether every text met the goal.
bool Measure(const std::string& name, const Tokenizer& tokenizer, const std::vector<Text>& texts) {
  bool is_met = true;
  for (const Text& text : texts) {
    const double mebibytes = static_cast<double>(text.bytes.size()) / (1 << 20);
    double best = 0;
    size_t num_ids = 0;
    for (int run = 0; run < kNumRuns; ++run) {
      const double begin = ThreadMs();
      num_ids = tokenizer.Encode(text.bytes).size();
      const double ms = (ThreadMs() - begin) / mebibytes;
      best = run == 0 ? ms : std::min(best, ms);
    }
    std::printf("%-14s %-12s %8.1f ms/MiB %12zu ids%s\n", name.c_str(),
                std::string(text.name).c_str(), best, num_ids,
                best > kGoalMsPerMebibyte ? "  MISSED" : "");
    is_met = is_met && best <= kGoalMsPerMebibyte;
  }
  return is_met;
}

int Main(const std::string& root, size_t num_mebibytes, std::string_view only) {
  std::vector<Text> texts = Texts(num_mebibytes << 20);
  if (!only.empty()) std::erase_if(texts, [only](const Text& text) { return text.name != only; });
  std::vector<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(root)) folders.push_back(entry);
  std::sort(folders.begin(), folders.end());
  bool is_met = true;
  for (const std::filesystem::path& folder : folders) {
    const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&folder](std::string_view file) {
      return std::filesystem::exists(folder / file);
    });
    if (kind == kKinds.end()) continue;
    const auto tokenizer = LoadTokenizerFromFolder(folder.string(), *kind);
    if (!tokenizer.ok()) {
      std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
      return 1;
    }
    is_met = Measure(folder.filename().string(), **tokenizer, texts) && is_met;
  }
  return is_met ? 0 : 1;
}

}  // namespace
}  // namespace conclave::text

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: tokenizer_bench ROOT [MIB [TEXT]]\n");
    return 2;
  }
  const int64_t num_mebibytes = argc >= 3 ? std::atoll(argv[2]) : 4;
  if (num_mebibytes < 1 || num_mebibytes > 1024) {
    std::fprintf(stderr, "MIB: expected 1 to 1024\n");
    return 2;
  }
  return conclave::text::Main(argv[1], static_cast<size_t>(num_mebibytes),
                              argc == 4 ? argv[3] : "");
}
