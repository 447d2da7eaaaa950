// Goal: a synthetic checkpoint is a checkpoint: it opens without a warning, has the published
// layout, and the same seed gives the same bytes with any number of threads. Method: "tiny" is
// written and read back; of the large models only files and shards are laid out, nothing is
// written.
#include "conclave/checkpoint/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/model_summary.h"
#include "small_model.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class SynthTest : public ::testing::Test {
 protected:
  absl::Status Make(const std::string& like, const fs::path& folder, uint64_t seed = 7) {
    return Synthesize({.like = like, .folder = folder.string(), .seed = seed, .progress = {}},
                      pool_);
  }

  // Nothing but `wanted` may lie in the work folder: no leftovers.
  void ExpectOnly(const std::vector<std::string>& wanted) {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(work_.path())) {
      found.push_back(entry.path().filename().string());
    }
    EXPECT_THAT(found, ::testing::UnorderedElementsAreArray(wanted));
  }

  ThreadPool pool_{2};
  TemporaryFolder work_;
};

// Strings of a .tiktoken file in rank order; lines are checked to be in order.
std::vector<std::string> ParseRanks(const std::string& text) {
  const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<std::string> ranks;
  std::istringstream lines(text);
  std::string base64;
  size_t rank = 0;
  while (lines >> base64 >> rank) {
    EXPECT_EQ(rank, ranks.size());
    EXPECT_EQ(base64.size() % 4, 0u);
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    for (const char c : base64) {
      if (c == '=') break;
      bits = bits << 6 | static_cast<uint32_t>(digits.find(c));
      count += 6;
      if (count >= 8) {
        count -= 8;
        bytes += static_cast<char>(bits >> count);
      }
    }
    ranks.push_back(bytes);
  }
  return ranks;
}

void ExpectWellFormed(const std::vector<std::string>& ranks) {
  std::set<std::string> earlier;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::string& piece = ranks[rank];
    if (rank < 256) {
      ASSERT_EQ(piece.size(), 1u);
    } else {
      bool is_pair = false;
      for (size_t cut = 1; cut < piece.size(); ++cut) {
        is_pair = is_pair ||
                  (earlier.contains(piece.substr(0, cut)) && earlier.contains(piece.substr(cut)));
      }
      ASSERT_TRUE(is_pair) << "rank " << rank << " \"" << piece << "\" is no pair of earlier ranks";
    }
    ASSERT_TRUE(earlier.insert(piece).second) << "rank " << rank << " stands twice";
  }
}

TEST_F(SynthTest, TinyOpensWithoutAWarning) {
  ASSERT_TRUE(Make("tiny", work_ / "t").ok()) << Make("tiny", work_ / "t");
  ExpectOnly({"t"});
  const auto checkpoint = Checkpoint::Open((work_ / "t").string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelDesc& desc = (*checkpoint)->desc();
  EXPECT_THAT(desc.warnings, IsEmpty());
  EXPECT_GE(desc.moe.layers.size(), 4u);
  EXPECT_EQ(desc.moe.layers[0].num_experts, 4);
  EXPECT_EQ(desc.vision.kind, TowerKind::kClip);
  EXPECT_EQ(desc.tokenizer.file, "arcade100k.tiktoken");
  EXPECT_LT(desc.eos_token, desc.vocab_rows);
  for (const char* file :
       {"config.json", "preprocessor_config.json", "generation_config.json",
        "tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json"}) {
    EXPECT_TRUE(fs::exists(work_ / "t" / file)) << file;
  }
}

// Each stream keeps the deviation it was asked for, so that no layer explodes or dies.
TEST_F(SynthTest, TinyWeightsHaveTheirScales) {
  ASSERT_TRUE(Make("tiny", work_ / "t").ok());
  const auto checkpoint = Checkpoint::Open((work_ / "t").string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const ExpectedTensor& expected : ExpectedTensors((*checkpoint)->desc())) {
    const TensorView* tensor = (*checkpoint)->Find(expected.name);
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->dtype, expected.part == TensorPart::kGate ? DType::kF32 : DType::kBf16)
        << expected.name;
    const auto values = ToFloats(*tensor);
    ASSERT_TRUE(values.ok()) << values.status();
    const Spread spread = SpreadOf(expected, (*checkpoint)->desc());
    double sum = 0;
    double squares = 0;
    for (const float value : *values) {
      sum += value - spread.offset;
      squares += (value - spread.offset) * (value - spread.offset);
    }
    const auto num = static_cast<double>(values->size());
    // Six standard errors of the mean, and of the deviation of a uniform distribution.
    EXPECT_NEAR(sum / num, 0, 6 * spread.deviation / std::sqrt(num) + 0.004 * spread.offset)
        << expected.name;
    EXPECT_NEAR(std::sqrt(squares / num) / spread.deviation, 1, 6 * 0.45 / std::sqrt(num) + 0.01)
        << expected.name;
  }
}

TEST_F(SynthTest, SameSeedSameBytesWithAnyThreads) {
  ASSERT_TRUE(Make("tiny", work_ / "a").ok());
  ThreadPool one(1);
  ASSERT_TRUE(
      Synthesize({.like = "tiny", .folder = (work_ / "b").string(), .seed = 7, .progress = {}}, one)
          .ok());
  ASSERT_TRUE(Make("tiny", work_ / "c", 8).ok());
  size_t num_files = 0;
  for (const auto& entry : fs::directory_iterator(work_ / "a")) {
    const std::string name = entry.path().filename().string();
    const std::string bytes = ReadFile(entry.path());
    EXPECT_EQ(bytes, ReadFile(work_ / "b" / name)) << name;
    const bool is_seeded = name.ends_with(".safetensors") || name.ends_with(".tiktoken");
    EXPECT_EQ(bytes != ReadFile(work_ / "c" / name), is_seeded) << name;
    ++num_files;
  }
  EXPECT_GE(num_files, 8u);
}

TEST_F(SynthTest, ProgressEndsAtTheTotal) {
  std::vector<SynthProgress> calls;
  ASSERT_TRUE(Synthesize({.like = "tiny",
                          .folder = (work_ / "t").string(),
                          .seed = 1,
                          .progress = [&calls](const SynthProgress& p) { calls.push_back(p); }},
                         pool_)
                  .ok());
  ASSERT_FALSE(calls.empty());
  EXPECT_EQ(calls.back().bytes_done, calls.back().bytes_total);
  for (size_t i = 1; i < calls.size(); ++i) {
    EXPECT_GT(calls[i].bytes_done, calls[i - 1].bytes_done);
  }
}

TEST_F(SynthTest, EmptyFolderIsFilledAndAFullOneRefused) {
  fs::create_directory(work_ / "empty");
  EXPECT_TRUE(Make("tiny", work_ / "empty").ok());
  fs::create_directory(work_ / "full");
  WriteFile(work_ / "full" / "thesis.txt", "years of work");
  const absl::Status status = Make("tiny", work_ / "full");
  EXPECT_EQ(ReasonOf(status), "folder_not_empty");
  EXPECT_THAT(MessageOf(status), HasSubstr("full"));
  EXPECT_EQ(ReasonOf(Make("tiny", work_ / "full" / "thesis.txt")), "folder_not_empty");
  EXPECT_EQ(ReadFile(work_ / "full" / "thesis.txt"), "years of work");
  ExpectOnly({"empty", "full"});
}

TEST_F(SynthTest, SlashAtTheEndAndNewParents) {
  EXPECT_TRUE(Make("tiny", work_ / "new/parent/t/").ok());
  EXPECT_TRUE(fs::exists(work_ / "new/parent/t/config.json"));
}

TEST_F(SynthTest, UnknownNamesAreRefusedWithWhatIsKnown) {
  for (const std::string name : {"qwen-1.8b-4e", "phi2-2.7b-4e", "", "stablelm"}) {
    const absl::Status status = Make(name, work_ / "x");
    EXPECT_EQ(ReasonOf(status), "synth_unknown");
    EXPECT_THAT(MessageOf(status), HasSubstr("not built yet: a later version"));
    EXPECT_THAT(MessageOf(status), HasSubstr("stablelm-1.6b-4e, stablelm-1.6b-4e-384, tiny"));
  }
  ExpectOnly({});
}

TEST_F(SynthTest, UnwritablePlaceIsAnError) {
  WriteFile(work_ / "file", "x");
  EXPECT_EQ(ReasonOf(Make("tiny", work_ / "file/t")), "file_write_error");
  ExpectOnly({"file"});
}

TEST_F(SynthTest, DiskSpaceIsCheckedFirst) {
  EXPECT_TRUE(CheckFreeSpace(work_.path(), 1).ok());
  const absl::Status status = CheckFreeSpace(work_.path(), INT64_MAX);
  EXPECT_EQ(ReasonOf(status), "disk_full");
  EXPECT_THAT(MessageOf(status), HasSubstr("9223372036854775807"));
}

TEST_F(SynthTest, LargeModelsHaveThePublishedSizesAndShards) {
  struct Case {
    const char* name;
    int64_t parameters;
    double shard_gb[2];  // spec 1.1
  };
  for (const Case& c : {Case{"stablelm-1.6b-4e", 3'200'124'928, {4.99, 1.41}},
                        Case{"stablelm-1.6b-4e-384", 3'325'105'216, {4.99, 1.66}}}) {
    const SynthModel* model = nullptr;
    for (const SynthModel& candidate : SynthModels()) {
      model = candidate.name == c.name ? &candidate : model;
    }
    ASSERT_NE(model, nullptr) << c.name;
    const fs::path folder = work_ / c.name;
    fs::create_directory(folder);
    for (const auto& [file, text] : SynthTextFiles(*model)) {
      WriteFile(folder / file, text);
    }
    const auto summary = Inspect(folder.string(), 1);
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_EQ(summary->parameters.total, c.parameters);
    EXPECT_EQ(summary->desc.eos_token, 100257);
    const std::vector<ExpectedTensor> list = ExpectedTensors(summary->desc);
    const auto shards = CutShards(list, model->has_f32_gate, model->shard_bytes_max);
    ASSERT_EQ(shards.size(), 2u);
    for (size_t s = 0; s < 2; ++s) {
      int64_t elements = 0;
      for (const size_t index : shards[s]) {
        elements += list[index].num_elements();
      }
      EXPECT_NEAR(static_cast<double>(elements) * 2e-9, c.shard_gb[s], 0.02)
          << c.name << " shard " << s;
    }
  }
}

TEST(SynthRanksTest, HundredThousandWellFormedRanks) {
  const std::vector<std::string> ranks = ParseRanks(SynthRanks(100'256, 3));
  ASSERT_EQ(ranks.size(), 100'256u);
  ExpectWellFormed(ranks);
  size_t num_words = 0;
  for (const std::string& piece : ranks) {
    const size_t start = piece[0] == ' ' ? 1 : 0;
    bool is_word = piece.size() > start + 1;
    for (size_t i = start; i < piece.size(); ++i) {
      is_word = is_word && piece[i] >= 'a' && piece[i] <= 'z';
    }
    num_words += is_word ? 1 : 0;
  }
  EXPECT_GT(num_words, 99'000u) << "mostly word-like";
  EXPECT_THAT(ranks, Contains(" assistant"));
}

TEST(SynthRanksTest, SmallTables) {
  for (const int32_t num : {256, 257, 600}) {
    const std::vector<std::string> ranks = ParseRanks(SynthRanks(num, 3));
    ASSERT_EQ(ranks.size(), static_cast<size_t>(num));
    ExpectWellFormed(ranks);
  }
  EXPECT_NE(SynthRanks(600, 3), SynthRanks(600, 4));
}

// A tensor may be drawn in pieces.
TEST(SynthFillTest, PiecesEqualTheWhole) {
  const Spread spread{.offset = 1, .deviation = 0.5f};
  std::vector<uint16_t> whole(1003);
  FillBf16(99, 0, spread, whole);
  std::vector<uint16_t> piece(whole.size() - 400);
  FillBf16(99, 400, spread, piece);
  EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + 400));
  std::vector<float> f32(1003);
  FillF32(99, 0, spread, f32);
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_EQ(ToBf16(f32[i]).bits, whole[i]);
  }
}

}  // namespace
}  // namespace conclave::checkpoint
