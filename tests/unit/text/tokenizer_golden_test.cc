// Goal: ids and text equal those of the original tokenizer classes, id by id.
// Method: recordings of 362 strings and 64 prompts per tokenizer, for every folder of tokenizers;
// the prompts of the cases, and the demo.
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "text_test_support.h"

namespace conclave::text {
namespace {

struct Recording {
  const char* name;
  const char* folder;
  std::unique_ptr<Tokenizer> (*load)();
};

void PrintTo(const Recording& param, std::ostream* out) { *out << param.name; }

class TokenizerRecordingTest : public testing::TestWithParam<Recording> {
 protected:
  std::string File(const std::string& name) const {
    return SourcePath(std::string(GetParam().folder) + "/" + name);
  }
};

TEST_P(TokenizerRecordingTest, HasTheRecordedLengthAndSpecialTokens) {
  const auto tokenizer = GetParam().load();
  const auto recorded = ReadJson(File("tokenizer_case.json")).as_object();
  EXPECT_EQ(tokenizer->size(), recorded.at("length").to_number<int32_t>());
  int32_t num_specials = 0;
  for (const auto& [special, id] : recorded.at("special_or_added").as_object()) {
    const std::string text(special.data(), special.size());
    EXPECT_EQ(tokenizer->SpecialId(text), id.to_number<int32_t>()) << text;
    EXPECT_EQ(tokenizer->TokenBytes(id.to_number<int32_t>(), /*keep_special=*/true), text);
    EXPECT_EQ(tokenizer->TokenBytes(id.to_number<int32_t>()), "");
    ++num_specials;
  }
  for (int32_t id = 0; id < tokenizer->size(); ++id)
    num_specials -= tokenizer->IsSpecial(id) ? 1 : 0;
  EXPECT_EQ(num_specials, 0);
  EXPECT_EQ(tokenizer->eos(), tokenizer->SpecialId(ToString(recorded.at("eos"))));
  EXPECT_EQ(tokenizer->bos(), -1);
}

struct RecordedFolder {
  const char* name;  // below tests/golden/data/tokenizers
  const char* file;
};

void PrintTo(const RecordedFolder& param, std::ostream* out) { *out << param.name; }

class TokenizerFolderTest : public testing::TestWithParam<RecordedFolder> {
 protected:
  static std::string Folder() {
    return SourcePath(std::string("tests/golden/data/tokenizers/") + GetParam().name);
  }
  static std::unique_ptr<Tokenizer> Loaded() {
    auto tokenizer = LoadTokenizerFromFolder(Folder(), GetParam().file);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }
};

TEST_P(TokenizerFolderTest, EncodesEveryStringAsRecorded) {
  const auto tokenizer = Loaded();
  ASSERT_NE(tokenizer, nullptr);
  const auto recorded = ReadJson(Folder() + "/tokenizer_case.json").as_object();
  EXPECT_EQ(tokenizer->size(), recorded.at("length").to_number<int32_t>());
  int64_t num_strings = 0;
  for (const auto& line : ReadJsonLines(Folder() + "/strings.jsonl")) {
    const std::string text = ToString(line.at("text"));
    SCOPED_TRACE(boost::json::serialize(line.at("text")));
    EXPECT_EQ(tokenizer->EncodeWithSpecials(text), ToIds(line.at("ids")));
    EXPECT_EQ(tokenizer->Encode(text), ToIds(line.at("ids_plain")));
    ++num_strings;
  }
  EXPECT_EQ(num_strings, recorded.at("strings").to_number<int64_t>());
}

TEST_P(TokenizerFolderTest, DecodesEveryStringAsTheOriginal) {
  const auto tokenizer = Loaded();
  ASSERT_NE(tokenizer, nullptr);
  for (const auto& line : ReadJsonLines(Folder() + "/strings.jsonl")) {
    SCOPED_TRACE(boost::json::serialize(line.at("text")));
    const std::vector<int32_t> ids = ToIds(line.at("ids"));
    EXPECT_EQ(tokenizer->DecodeAsOriginal(ids), ToString(line.at("decoded")));
    EXPECT_EQ(tokenizer->DecodeAsOriginal(ids, /*keep_special=*/true),
              ToString(line.at("decoded_keep_special")));
    if (line.contains("decoded_clean")) {
      EXPECT_EQ(tokenizer->Decode(ids), ToString(line.at("decoded_clean")));
    }
  }
}

// The folders of tokenizer.json have no recordings of prompts.
TEST_P(TokenizerFolderTest, EncodesPromptsWithImagesAsRecorded) {
  const std::string file = Folder() + "/image_prompts.jsonl";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "no prompts were recorded";
  const auto tokenizer = Loaded();
  ASSERT_NE(tokenizer, nullptr);
  for (const auto& line : ReadJsonLines(file)) {
    SCOPED_TRACE(boost::json::serialize(line.at("prompt")));
    EXPECT_EQ(EncodeAsOriginal(*tokenizer, ToString(line.at("prompt"))), ToIds(line.at("ids")));
  }
}

const RecordedFolder kFolders[] = {
    {"stablelm", "arcade100k.tiktoken"}, {"qwen", "qwen.tiktoken"},
    {"qwen1.5", "vocab.json"},           {"phi", "vocab.json"},
    {"llama", "tokenizer.model"},        {"openchat", "tokenizer.model"},
    {"minicpm", "tokenizer.model"},      {"json-llama", "tokenizer.json"},
    {"json-phi", "tokenizer.json"},      {"json-qwen1.5", "tokenizer.json"}};

INSTANTIATE_TEST_SUITE_P(Recorded, TokenizerFolderTest, testing::ValuesIn(kFolders),
                         [](const auto& tested) {
                           std::string name = tested.param.name;
                           std::erase_if(name, [](char c) { return c == '-' || c == '.'; });
                           return name;
                         });

TEST(TokenizerFoldersTest, EveryRecordedFolderIsAbove) {
  std::set<std::string> known;
  for (const RecordedFolder& folder : kFolders) known.insert(folder.name);
  std::set<std::string> found;
  for (const auto& entry :
       std::filesystem::directory_iterator(SourcePath("tests/golden/data/tokenizers"))) {
    found.insert(entry.path().filename().string());
  }
  EXPECT_EQ(found, known);
}

INSTANTIATE_TEST_SUITE_P(
    Recorded, TokenizerRecordingTest,
    testing::Values(Recording{"stablelm", "tests/golden/data/tokenizers/stablelm", LoadArcade},
                    Recording{"qwen", "tests/golden/data/tokenizers/qwen", LoadQwen}),
    [](const auto& tested) { return tested.param.name; });

struct RecordedCase {
  const char* name;
  const char* folder;
  const char* file;
};

class CasePromptTest : public testing::TestWithParam<RecordedCase> {};

// The whole path of a request: template, images, tokens.
TEST_P(CasePromptTest, RendersAndEncodesEveryPromptAsRecorded) {
  const std::string folder =
      SourcePath(std::string("tests/golden/data/cases/") + GetParam().folder);
  const auto recorded = ReadJson(folder + "/case.json").as_object();
  const auto tokenizer = LoadTokenizerFromFolder(folder + "/checkpoint", GetParam().file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->size(), recorded.at("tokenizer_length").to_number<int32_t>());
  ASSERT_FALSE(recorded.at("prompts").as_array().empty());
  for (const auto& prompt : recorded.at("prompts").as_array()) {
    SCOPED_TRACE(ToString(prompt.at("name")));
    const PromptTemplate* prompt_template = FindTemplate(ToString(prompt.at("template")));
    ASSERT_NE(prompt_template, nullptr);
    std::vector<Turn> turns;
    for (const auto& text : prompt.at("turns").as_array())
      turns.push_back(RecordedTurn(turns.size() % 2 == 0, text));
    const auto spans = Render(*prompt_template, turns, std::nullopt, **tokenizer);
    EXPECT_EQ(Flatten(spans), ToString(prompt.at("prompt")));
    EXPECT_EQ(EncodePrompt(**tokenizer, spans), ToIds(prompt.at("input_ids")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Recorded, CasePromptTest,
    testing::Values(RecordedCase{"Stablelm", "stablelm-clip", "arcade100k.tiktoken"},
                    RecordedCase{"Identity", "stablelm-identity", "arcade100k.tiktoken"},
                    RecordedCase{"Qwen", "qwen-clip", "qwen.tiktoken"},
                    RecordedCase{"Phi", "phi-clip", "vocab.json"},
                    RecordedCase{"Openchat", "openchat-clip", "tokenizer.model"},
                    RecordedCase{"Llama", "llama-clip", "tokenizer.model"},
                    RecordedCase{"Qwen15", "qwen1.5-siglip", "vocab.json"},
                    RecordedCase{"Minicpm", "minicpm-clip", "tokenizer.model"}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(DemoTokenizerTest, RendersEverySampleAsTrainedAndRoundTrips) {
  const auto tokenizer = LoadTokenizerFromFolder(SourcePath("models/demo"), "arcade100k.tiktoken");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->size(), 608);
  EXPECT_EQ((*tokenizer)->eos(), 576);
  for (const auto& sample : ReadJsonLines(SourcePath("models/demo/samples/samples.jsonl"))) {
    const std::string prompt = ToString(sample.at("prompt"));
    SCOPED_TRACE(prompt);
    const int32_t num_images = sample.at("image").is_null() ? 0 : 1;
    std::vector<Turn> turns;
    for (const auto& past : sample.at("history").as_array()) {
      turns.push_back(UserTurn(ToString(past.at("question")), turns.empty() ? num_images : 0));
      turns.push_back(AssistantTurn(ToString(past.at("answer"))));
    }
    turns.push_back(UserTurn(ToString(sample.at("question")), turns.empty() ? num_images : 0));
    turns.push_back(OpenTurn());
    const auto spans = Render(*FindTemplate("stablelm"), turns, std::nullopt, **tokenizer);
    EXPECT_EQ(Flatten(spans), prompt);

    const std::vector<int32_t> ids = EncodePrompt(**tokenizer, spans);
    EXPECT_EQ(ids, EncodeAsOriginal(**tokenizer, prompt));
    std::string decoded;
    for (const int32_t id : ids) {
      decoded += id == kImageToken
                     ? "<image>"
                     : (*tokenizer)->Decode(std::vector<int32_t>{id}, /*keep_special=*/true);
    }
    EXPECT_EQ(decoded, prompt);
  }
}

}  // namespace
}  // namespace conclave::text
