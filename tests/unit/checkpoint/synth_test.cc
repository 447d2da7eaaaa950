// Goal: a synthetic checkpoint is a checkpoint: it opens without a warning, has the published
// layout, and the same seed gives the same bytes with any number of threads. Method: the tiny ones
// are written and read back; of the large ones only what describes the weights is written.
#include "conclave/checkpoint/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <boost/json.hpp>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/model_summary.h"
#include "output_folder.h"
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

  std::unique_ptr<Checkpoint> MakeAndOpen(const std::string& like, const SynthVariant& variant) {
    const fs::path folder = work_ / (like + std::to_string(num_made_++));
    const absl::Status status = Synthesize(
        {.like = like, .folder = folder.string(), .seed = 7, .variant = variant, .progress = {}},
        pool_);
    EXPECT_TRUE(status.ok()) << status;
    auto checkpoint = Checkpoint::Open(folder.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
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
  int num_made_ = 0;
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

struct Tiny {
  const char* name;
  const char* model_type;
  const char* prompt_template;
  TokenizerKind tokenizer;
  DType dtype;
  const char* weights;  // how the files' names begin
};

TEST_F(SynthTest, EveryFamilyOpensWithoutAWarning) {
  for (const Tiny& row : {Tiny{"tiny", "moe_llava_stablelm", "stablelm", TokenizerKind::kTiktoken,
                               DType::kBf16, "model-0"},
                          Tiny{"tiny-qwen", "moe_llava_qwen", "qwen", TokenizerKind::kTiktoken,
                               DType::kF32, "pytorch_model-0"},
                          Tiny{"tiny-phi", "moe_llava_phi", "phi", TokenizerKind::kByteLevelBpe,
                               DType::kF16, "model-0"},
                          Tiny{"tiny-openchat", "moe_llava_mistral", "openchat",
                               TokenizerKind::kSentencePiece, DType::kBf16, "pytorch_model-0"},
                          Tiny{"tiny-llama", "moe_llava_llama", "vicuna_v1",
                               TokenizerKind::kSentencePiece, DType::kF16, "model-0"},
                          Tiny{"tiny-qwen1.5", "moe_llava_qwen1_5", "qwen",
                               TokenizerKind::kByteLevelBpe, DType::kBf16, "model-0"},
                          Tiny{"tiny-minicpm", "moe_llava_minicpm", "minicpm",
                               TokenizerKind::kSentencePiece, DType::kBf16, "model-0"}}) {
    SCOPED_TRACE(row.name);
    const auto checkpoint = MakeAndOpen(row.name, {});
    ASSERT_NE(checkpoint, nullptr);
    const ModelDesc& desc = checkpoint->desc();
    EXPECT_THAT(desc.warnings, IsEmpty());
    EXPECT_EQ(desc.model_type, row.model_type);
    EXPECT_EQ(desc.prompt_template, row.prompt_template);
    EXPECT_EQ(desc.tokenizer.kind, row.tokenizer);
    EXPECT_EQ(desc.moe.layers.size(), 4u);
    EXPECT_EQ(checkpoint->Find(desc.names.embed)->dtype, row.dtype);
    EXPECT_THAT(std::string(checkpoint->Find(desc.names.embed)->file),
                ::testing::StartsWith(row.weights));
    EXPECT_LT(desc.eos_token, desc.vocab_rows);
    for (const ExpectedTensor& expected : ExpectedTensors(desc)) {
      const auto tensor = checkpoint->Require(expected.name, expected.shape);
      ASSERT_TRUE(tensor.ok()) << tensor.status();
      ASSERT_TRUE(ToFloats(*tensor).ok()) << expected.name;
    }
  }
}

TEST_F(SynthTest, Variants) {
  const auto eight = MakeAndOpen("tiny-phi", {.num_experts = 8, .top_k = 1});
  ASSERT_NE(eight, nullptr);
  EXPECT_EQ(eight->desc().moe.layers[3].num_experts, 8);
  EXPECT_EQ(eight->desc().moe.top_k, 1);
  EXPECT_THAT(eight->desc().warnings, IsEmpty());
  const auto grouped = MakeAndOpen("tiny-qwen1.5", {.num_kv_heads = 2, .use_residual = true});
  ASSERT_NE(grouped, nullptr);
  EXPECT_EQ(grouped->desc().attention.num_kv_heads, 2);
  EXPECT_TRUE(grouped->desc().moe.use_residual);
  EXPECT_NE(grouped->Find("model.layers.2.mlp.coefficient.bias"), nullptr);
  EXPECT_NE(grouped->Find("model.layers.2.mlp.mlp.up_proj.weight"), nullptr);
}

// Qwen v1 has no place for fewer key-value heads: its own reader says so.
TEST_F(SynthTest, VariantThatTheFamilyDoesNotHave) {
  const absl::Status status = Synthesize({.like = "tiny-qwen",
                                          .folder = (work_ / "x").string(),
                                          .variant = {.num_kv_heads = 2},
                                          .progress = {}},
                                         pool_);
  EXPECT_EQ(ReasonOf(status), "config_range");
  ExpectOnly({});
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
  for (const std::string name : {"qwen", "", "stablelm", "tiny-gpt"}) {
    const absl::Status status = Make(name, work_ / "x");
    EXPECT_EQ(ReasonOf(status), "synth_unknown");
    EXPECT_THAT(MessageOf(status),
                HasSubstr("stablelm-1.6b-4e, stablelm-1.6b-4e-384, qwen-1.8b-4e"));
    EXPECT_THAT(MessageOf(status), HasSubstr("tiny-minicpm, found"));
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

struct Large {
  const char* name;
  const char* published;         // its config
  int64_t bytes;                 // spec 1.3
  std::vector<double> shard_gb;  // spec 1.1, where OpenChat has "4 x .bin, 32 GB"
  const char* first_shard;
  int32_t eos;
};

class SynthLargeTest : public SynthTest, public ::testing::WithParamInterface<Large> {};

void PrintTo(const Large& row, std::ostream* out) { *out << row.name; }

TEST_P(SynthLargeTest, HeadersAloneHaveThePublishedLayout) {
  const Large& row = GetParam();
  const fs::path folder = work_ / "m";
  const absl::Status status = Synthesize(
      {.like = row.name, .folder = folder.string(), .is_headers_only = true, .progress = {}},
      pool_);
  ASSERT_TRUE(status.ok()) << status;
  const auto summary = Inspect(folder.string(), 4);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_TRUE(summary->has_weights);
  EXPECT_EQ(summary->bytes.total, row.bytes);
  EXPECT_EQ(summary->desc.eos_token, row.eos);
  EXPECT_THAT(summary->desc.warnings, IsEmpty());
  std::vector<double> shard_gb;
  int64_t on_disk = 0;
  ASSERT_TRUE(fs::exists(folder / row.first_shard));
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files.insert(entry.path());
  }
  for (const fs::path& file : files) {
    struct stat st {};
    ASSERT_EQ(::stat(file.c_str(), &st), 0);
    on_disk += 512 * st.st_blocks;
    if (file.extension() == fs::path(row.first_shard).extension()) {
      shard_gb.push_back(static_cast<double>(st.st_size) * 1e-9);
    }
  }
  EXPECT_LT(on_disk, 64 << 20) << "weights are holes";
  EXPECT_THAT(shard_gb, ::testing::Pointwise(::testing::DoubleNear(0.03), row.shard_gb));
}

// Every key of the published config has the same value here.
TEST_P(SynthLargeTest, ConfigIsThePublishedOne) {
  namespace json = boost::json;
  for (const SynthModel& model : SynthModels()) {
    if (model.name != GetParam().name) {
      continue;
    }
    const json::object made = json::parse(SynthConfigs(model)[0].second).as_object();
    const json::object wanted =
        json::parse(ReadFile(fs::path(CONCLAVE_SOURCE_DIR) / "tests/golden/data/configs" /
                             GetParam().published))
            .as_object();
    for (const char* key : {"model_type",
                            "architectures",
                            "hidden_size",
                            "intermediate_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "num_key_value_heads",
                            "vocab_size",
                            "max_position_embeddings",
                            "bos_token_id",
                            "eos_token_id",
                            "pad_token_id",
                            "rope_pct",
                            "norm_eps",
                            "rms_norm_eps",
                            "layer_norm_eps",
                            "layer_norm_epsilon",
                            "partial_rotary_factor",
                            "kv_channels",
                            "seq_length",
                            "no_bias",
                            "sliding_window",
                            "use_qkv_bias",
                            "torch_dtype",
                            "mm_image_tower",
                            "mm_hidden_size",
                            "image_projector_type",
                            "mm_vision_select_layer"}) {
      const json::value* value = wanted.if_contains(key);
      if (value != nullptr && !value->is_null()) {
        ASSERT_TRUE(made.contains(key)) << key;
        EXPECT_EQ(json::serialize(made.at(key)), json::serialize(*value)) << key;
      }
    }
    EXPECT_EQ(made.at("moe").at("moe_layers_idx"), wanted.at("moe").at("moe_layers_idx"));
    EXPECT_EQ(made.at("moe").at("num_experts"), wanted.at("moe").at("num_experts"));
    return;
  }
  FAIL() << "no such model";
}

INSTANTIATE_TEST_SUITE_P(Published, SynthLargeTest,
                         ::testing::Values(Large{"stablelm-1.6b-4e",
                                                 "MoE-LLaVA-StableLM-1.6B-4e.json",
                                                 6'400'249'856,
                                                 {4.99, 1.41},
                                                 "model-00001-of-00002.safetensors",
                                                 100257},
                                           Large{"stablelm-1.6b-4e-384",
                                                 "MoE-LLaVA-StableLM-1.6B-4e-384.json",
                                                 6'650'210'432,
                                                 {4.99, 1.66},
                                                 "model-00001-of-00002.safetensors",
                                                 100257},
                                           Large{"qwen-1.8b-4e",
                                                 "MoE-LLaVA-Qwen-1.8B-4e.json",
                                                 13'456'506'880,
                                                 {9.96, 3.5},
                                                 "pytorch_model-00001-of-00002.bin",
                                                 151643},
                                           Large{"phi2-2.7b-4e",
                                                 "MoE-LLaVA-Phi2-2.7B-4e.json",
                                                 11'219'361'792,
                                                 {4.98, 4.98, 1.25},
                                                 "model-00001-of-00003.safetensors",
                                                 -1},
                                           Large{"phi2-2.7b-4e-384",
                                                 "MoE-LLaVA-Phi2-2.7B-4e-384.json",
                                                 11'469'453'440,
                                                 {4.98, 4.98, 1.50},
                                                 "model-00001-of-00003.safetensors",
                                                 -1},
                                           Large{"openchat-7b-4e",
                                                 "MoE-LLaVA-OpenChat-7B-4e.json",
                                                 32'044'429'312,
                                                 {9.99, 10.0, 10.0, 2.05},
                                                 "pytorch_model-00001-of-00004.bin",
                                                 32000}),
                         [](const ::testing::TestParamInfo<Large>& row) {
                           std::string name = row.param.name;
                           std::erase_if(name,
                                         [](unsigned char c) { return std::isalnum(c) == 0; });
                           return name;
                         });

TEST(SynthTokenizerTest, MergesSpellEveryEntryOfTheVocabulary) {
  const std::vector<std::string> pieces = SynthPieces(2000, 3);
  const std::string last[] = {"<|endoftext|>"};
  const boost::json::object vocabulary =
      boost::json::parse(BpeVocabulary(pieces, last).second).as_object();
  ASSERT_EQ(vocabulary.size(), 2001u);
  EXPECT_EQ(vocabulary.at("!").as_int64(), 0);
  EXPECT_EQ(vocabulary.at("\u0120").as_int64(), 220) << "a space";
  EXPECT_EQ(vocabulary.at("<|endoftext|>").as_int64(), 2000);
  std::istringstream lines(BpeMerges(pieces).second);
  std::string line;
  std::getline(lines, line);
  EXPECT_EQ(line, "#version: 0.2");
  int64_t id = 256;
  std::string left;
  std::string right;
  while (lines >> left >> right) {
    EXPECT_LT(vocabulary.at(left).as_int64(), id);
    EXPECT_LT(vocabulary.at(right).as_int64(), id);
    EXPECT_EQ(vocabulary.at(left + right).as_int64(), id++);
  }
  EXPECT_EQ(id, 2000);
}

TEST(SynthRanksTest, HundredThousandWellFormedRanks) {
  const std::vector<std::string> ranks = ParseRanks(TiktokenText(SynthPieces(100'256, 3)));
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
    const std::vector<std::string> ranks = ParseRanks(TiktokenText(SynthPieces(num, 3)));
    ASSERT_EQ(ranks.size(), static_cast<size_t>(num));
    ExpectWellFormed(ranks);
  }
  EXPECT_NE(SynthPieces(600, 3), SynthPieces(600, 4));
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
