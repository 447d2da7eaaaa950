// Goal: a broken vocab.json, merges.txt, tokenizer.json, tokenizer.model or settings file is
// refused with its place, and what is not known is refused by name.
// Method: one change to a small good folder per row of the catalogue of bad inputs (T13, T14).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "text_test_support.h"

namespace conclave::text {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

constexpr char kMark[] = "\xE2\x96\x81";  // U+2581

void AppendUtf8(int code_point, std::string& out) {
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
    return;
  }
  out.push_back(static_cast<char>(0xC0 | code_point >> 6));
  out.push_back(static_cast<char>(0x80 | (code_point & 0x3F)));
}

// GPT-2's spelling of a byte.
std::string Spelled(int byte) {
  int others = 0;
  const auto is_own = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b != 173); };
  for (int b = 0; b < byte; ++b) others += is_own(b) ? 0 : 1;
  std::string text;
  AppendUtf8(is_own(byte) ? byte : 256 + others, text);
  return text;
}

std::string BytePiece(int byte) {
  char text[8];
  std::snprintf(text, sizeof(text), "<0x%02X>", byte);
  return text;
}

// 256 bytes, "ab" 256, "abc" 257.
json::object Vocab() {
  json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[Spelled(byte)] = byte;
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  return vocab;
}

json::object Config() {
  return json::parse(R"({"tokenizer_class": "CodeGenTokenizer", "eos_token": "<|endoftext|>",
    "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
    "added_tokens_decoder": {"258": {"content": "<|endoftext|>", "special": true}}})")
      .as_object();
}

json::object ByteLevelJson() {
  json::object root = json::parse(R"({"added_tokens": [
    {"id": 258, "content": "<|endoftext|>", "special": true, "normalized": false}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "merges": ["a b", ["ab", "c"]]}})")
                          .as_object();
  root["model"].as_object()["vocab"] = Vocab();
  return root;
}

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}
std::string NumberField(int number, uint64_t value) {
  return Varint(static_cast<uint64_t>(number) << 3) + Varint(value);
}
std::string BytesField(int number, const std::string& bytes) {
  return Varint(static_cast<uint64_t>(number) << 3 | 2) + Varint(bytes.size()) + bytes;
}
std::string PieceField(const std::string& text, float score, int type) {
  uint32_t bits = 0;
  std::memcpy(&bits, &score, sizeof(bits));
  std::string fixed(4, '\0');
  for (size_t i = 0; i < 4; ++i) fixed[i] = static_cast<char>(bits >> (8 * i) & 0xFF);
  return BytesField(1, BytesField(1, text) + Varint(2 << 3 | 5) + fixed +
                           NumberField(3, static_cast<uint64_t>(type)));
}
std::string Trainer(int type = 2, bool fallback = true) {
  return BytesField(
      2, NumberField(3, static_cast<uint64_t>(type)) + NumberField(35, fallback ? 1 : 0));
}
std::string Normalizer(const std::string& table = "", bool prefix = true, bool removes = false) {
  return BytesField(3, BytesField(1, "identity") + BytesField(2, table) +
                           NumberField(3, prefix ? 1 : 0) + NumberField(4, removes ? 1 : 0));
}
std::string Pieces(int first_byte = 0) {
  std::string pieces =
      PieceField("<unk>", 0, 2) + PieceField("<s>", 0, 3) + PieceField("</s>", 0, 3);
  for (int byte = first_byte; byte < 256; ++byte) pieces += PieceField(BytePiece(byte), 0, 6);
  return pieces + PieceField(kMark, -1, 1) + PieceField("a", -2, 1) + PieceField("b", -3, 1) +
         PieceField("ab", -4, 1);
}

struct Row {
  const char* name;  // begins with the row of the catalogue
  std::function<void(const TempFolder&)> change;
  std::string message;
  std::string reason = "tokenizer_invalid";
};
void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

void WriteGood(const TempFolder& folder) {
  folder.Write("vocab.json", json::serialize(Vocab()));
  folder.Write("merges.txt", "#version: 0.2\na b\nab c\n");
  folder.Write("tokenizer_config.json", json::serialize(Config()));
}

void ExpectRefused(const TempFolder& folder, std::string_view file, const Row& row) {
  const auto tokenizer = LoadTokenizerFromFolder(folder.path(), file);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(ReasonOf(tokenizer.status()), row.reason);
  const std::string message = MessageOf(tokenizer.status());
  EXPECT_THAT(message, HasSubstr(row.message));
  EXPECT_THAT(message, HasSubstr(folder.path()));
  EXPECT_LT(message.size(), folder.path().size() + 400);
  for (const char c : message) EXPECT_TRUE(c >= 0x20 && c < 0x7F) << message;
}

std::function<void(const TempFolder&)> Write(const std::string& name, const std::string& content) {
  return [=](const TempFolder& folder) { folder.Write(name, content); };
}
std::function<void(const TempFolder&)> WithVocab(const std::string& token, const json::value& id) {
  json::object vocab = Vocab();
  vocab[token] = id;
  return Write("vocab.json", json::serialize(vocab));
}
std::function<void(const TempFolder&)> WithConfig(const std::string& key,
                                                  const json::value& value) {
  json::object config = Config();
  config[key] = value;
  return Write("tokenizer_config.json", json::serialize(config));
}
std::function<void(const TempFolder&)> WithAdded(const std::string& id, const char* token) {
  json::object config = Config();
  config["added_tokens_decoder"].as_object()[id] = json::parse(token);
  return Write("tokenizer_config.json", json::serialize(config));
}

class BadVocabFolderTest : public testing::TestWithParam<Row> {};

TEST_P(BadVocabFolderTest, IsRefused) {
  const TempFolder folder;
  WriteGood(folder);
  GetParam().change(folder);
  ExpectRefused(folder, "vocab.json", GetParam());
}

std::vector<Row> VocabRows() {
  json::object no_byte = Vocab();
  no_byte.erase("A");
  no_byte["zz"] = 65;
  return {
      {"T13_Empty", Write("vocab.json", ""), "vocab.json:1: no JSON"},
      {"T13_Truncated", Write("vocab.json", "{\"a\": 0,\n \"b"), "vocab.json:2: no JSON"},
      {"T13_WrongMagic", Write("vocab.json", std::string("PK\x03\x04", 4)),
       "vocab.json:1: no JSON"},
      {"T13_Array", Write("vocab.json", "[1]"), "vocab.json: no JSON object"},
      {"T13_NoUtf8", Write("vocab.json", "{\"\xFF\": 0}"), "vocab.json:1: no JSON"},
      {"T13_TooDeep", Write("vocab.json", std::string(1000, '[')), "vocab.json:1: no JSON"},
      {"T13_TrailingText", Write("vocab.json", "{} {}"), "vocab.json:1: no JSON"},
      {"T13_KeyTwice", Write("vocab.json", "{\"a\": 0,\n\"a\": 0}"),
       "vocab.json:2: key \"a\" stands twice"},
      {"T13_NoToken", Write("vocab.json", "{}"), "vocab.json: no token"},
      {"T13_IdTwice", WithVocab("abc", 256), "its id 256 is there twice"},
      {"T13_IdOutside", WithVocab("abc", 300), "expected each id of 0 to 257 once, found 300"},
      {"T13_IdNegative", WithVocab("abc", -1), "found -1"},
      {"T13_IdFraction", WithVocab("abc", 257.5), "expected each id of 0 to 257 once"},
      {"T13_IdString", WithVocab("abc", "257"), "expected each id of 0 to 257 once, found \"257\""},
      {"T13_IdStringNotAscii", WithVocab("abc", "<|\xC4\x91|>"), R"(found "<|\xC4\x91|>")"},
      {"T13_IdList", WithVocab("abc", {"\xC4\x91"}), R"(found "[\x22\xC4\x91\x22]")"},
      {"T13_EmptyToken", WithVocab("", 258), "expected a token of 1 to 1024 bytes"},
      {"T13_TokenOf1MiB", WithVocab(std::string(1 << 20, 'x'), 258),
       "expected a token of 1 to 1024 bytes, found 1048576"},
      {"T13_ByteMissing", Write("vocab.json", json::serialize(no_byte)),
       "no token of the single byte 65"},
      {"T13_MergeOfMissing", Write("merges.txt", "#version: 0.2\na b\nab zz\n"),
       "\"zz\" is no token of the vocabulary"},
      {"T13_MergeMakesMissing", Write("merges.txt", "a b\nb a\n"), "\"ba\" is no token"},
      {"T13_MergeOfThree", Write("merges.txt", "a b\na b c\n"),
       "merges.txt:2: expected two tokens"},
      {"T13_MergeOfOne", Write("merges.txt", "a b\nab\n"), "merges.txt:2: expected two tokens"},
      {"T13_MergeNotUtf8", Write("merges.txt", "a b\n\xFF\xFE b\n"), "is no token"},
      {"T13_MergesCut", Write("merges.txt", "a b\nab"), "merges.txt:2: expected two tokens"},
      {"T14_NoEndOfText", WithConfig("eos_token", nullptr), "no end-of-text token"},
      {"T14_TwoTokensOneId",
       [](const TempFolder& folder) { folder.Write("added_tokens.json", R"({"<|other|>": 258})"); },
       "its id 258 is another token's"},
      {"T14_OneTokenTwoIds", WithAdded("259", R"({"content": "<|endoftext|>"})"), "is there twice"},
      {"T14_IdOfAnotherToken", WithAdded("97", R"({"content": "<|x|>"})"), "its id is not its own"},
      {"T14_OtherIdThanStored", WithAdded("300", R"({"content": "abc"})"),
       "expected 257, as in the vocabulary, found 300"},
      {"T14_NegativeId", WithAdded("-1", R"({"content": "x"})"), "expected an id below"},
      {"T14_IdBeyond64Bits", WithAdded("99999999999999999999", R"({"content": "x"})"),
       "expected an id below"},
      {"T14_NoContent", WithAdded("300", "{}"), "expected an id below"},
      {"T14_IdNotAscii",
       WithAdded("\xC4\x94"
                 "6",
                 R"({"content": "x"})"),
       R"(added_tokens_decoder: "\xC4\x946": expected an id below)"},
      {"T14_LongToken",
       WithAdded("300", ("{\"content\": \"" + std::string(2000, 'x') + "\"}").c_str()),
       "is too long"},
      {"T13_SingleWord", WithAdded("300", R"({"content": "x", "single_word": true})"),
       "single_word", "tokenizer_unsupported"},
      {"T13_OtherClass", WithConfig("tokenizer_class", "BertTokenizer"),
       "expected CodeGenTokenizer, GPT2Tokenizer, Qwen2Tokenizer, found \"BertTokenizer\"",
       "tokenizer_unsupported"},
      {"T13_AddsPrefixSpace", WithConfig("add_prefix_space", true), "add_prefix_space",
       "tokenizer_unsupported"},
      {"T13_AddsEndOfText", WithConfig("add_eos_token", true), "add_eos_token",
       "tokenizer_unsupported"},
      {"T13_MergesMissing",
       [](const TempFolder& folder) { std::filesystem::remove(folder.path() + "/merges.txt"); },
       "merges.txt: no such file", "tokenizer_missing"},
  };
}

INSTANTIATE_TEST_SUITE_P(Catalogue, BadVocabFolderTest, testing::ValuesIn(VocabRows()),
                         [](const auto& tested) { return std::string(tested.param.name); });

struct JsonRow {
  const char* name;
  std::function<void(json::object&)> change;
  std::string message;
  std::string reason = "tokenizer_unsupported";
};
void PrintTo(const JsonRow& row, std::ostream* out) { *out << row.name; }

class BadTokenizerJsonTest : public testing::TestWithParam<JsonRow> {};

TEST_P(BadTokenizerJsonTest, IsRefused) {
  const TempFolder folder;
  json::object root = ByteLevelJson();
  GetParam().change(root);
  folder.Write("tokenizer.json", json::serialize(root));
  ExpectRefused(folder, "tokenizer.json",
                {GetParam().name, nullptr, GetParam().message, GetParam().reason});
}

std::function<void(json::object&)> Set(const std::string& key, const char* value) {
  return [=](json::object& root) { root[key] = json::parse(value); };
}
std::function<void(json::object&)> SetModel(const std::string& key, const char* value) {
  return [=](json::object& root) { root["model"].as_object()[key] = json::parse(value); };
}

std::vector<JsonRow> JsonRows() {
  const std::string invalid = "tokenizer_invalid";
  return {
      {"T13_NoModel", [](json::object& root) { root.erase("model"); }, "model: is missing",
       invalid},
      {"T13_Unigram", SetModel("type", "\"Unigram\""),
       "model.type: expected BPE, found \"Unigram\""},
      {"T13_Dropout", SetModel("dropout", "0.1"), "model.dropout"},
      {"T13_Prefix", SetModel("continuing_subword_prefix", "\"##\""), "continuing_subword_prefix"},
      {"T13_Suffix", SetModel("end_of_word_suffix", "\"</w>\""), "end_of_word_suffix"},
      {"T13_NoVocab", SetModel("vocab", "[]"), "expected an object vocab", invalid},
      {"T13_NoMerges", SetModel("merges", "{}"), "array merges", invalid},
      {"T13_MergeOfMissing", SetModel("merges", R"(["a zz"])"), "\"zz\" is no token", invalid},
      {"T13_MergeOfNumber", SetModel("merges", "[7]"), "model.merges[0]: expected two tokens",
       invalid},
      {"T13_BytesMissing",
       [](json::object& root) {
         root["model"].as_object()["byte_fallback"] = true;
         root["normalizer"] = json::parse(R"({"type": "Sequence", "normalizers": [
             {"type": "Prepend", "prepend": "\u2581"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})");
         root["pre_tokenizer"] = nullptr;
       },
       "no piece of the single byte 0", invalid},
      {"T13_Truncation", Set("truncation", R"({"max_length": 5})"), "truncation"},
      {"T13_Padding", Set("padding", R"({"length": 5})"), "padding"},
      {"T13_Lowercase", Set("normalizer", R"({"type": "Lowercase"})"), "\"Lowercase\""},
      {"T13_SequenceOfNumbers", Set("normalizer", R"({"type": "Sequence", "normalizers": [1]})"),
       "normalizer"},
      {"T13_Digits", Set("pre_tokenizer", R"({"type": "Digits"})"), "\"Digits\""},
      {"T13_PrefixSpace",
       Set("pre_tokenizer", R"({"type": "ByteLevel", "add_prefix_space": true})"),
       "ByteLevel without a prefix space"},
      {"T13_RegexBomb", Set("pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false},
          {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})"),
       "\"(a+)+$\""},
      {"T13_Bert", Set("post_processor", R"({"type": "BertProcessing"})"), "\"BertProcessing\""},
      {"T13_TemplateWithEnd", Set("post_processor", R"({"type": "TemplateProcessing", "single": [
          {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|endoftext|>"}}]})"),
       "post_processor.single"},
      {"T13_WordPieceDecoder", Set("decoder", R"({"type": "WordPiece"})"), "\"WordPiece\""},
      {"T13_NoDecoder", Set("decoder", "null"), "decoder"},
      {"T14_AddedTwice",
       Set("added_tokens", R"([{"id": 258, "content": "<|endoftext|>", "special": true},
          {"id": 259, "content": "<|endoftext|>", "special": true}])"),
       "is there twice", invalid},
      {"T14_AddedIdTwice",
       Set("added_tokens", R"([{"id": 258, "content": "<|endoftext|>", "special": true},
          {"id": 258, "content": "<|x|>", "special": true}])"),
       "its id 258 is there twice", invalid},
      {"T14_AddedIdNegative", Set("added_tokens", R"([{"id": -5, "content": "<|endoftext|>"}])"),
       "added_tokens[0]: expected an id", invalid},
      {"T14_NoEndOfText", Set("added_tokens", "[]"), "no end-of-text token", invalid},
  };
}

INSTANTIATE_TEST_SUITE_P(Catalogue, BadTokenizerJsonTest, testing::ValuesIn(JsonRows()),
                         [](const auto& tested) { return std::string(tested.param.name); });

class BadSentencePieceTest : public testing::TestWithParam<Row> {};

TEST_P(BadSentencePieceTest, IsRefused) {
  const TempFolder folder;
  GetParam().change(folder);
  ExpectRefused(folder, "tokenizer.model", GetParam());
}

std::function<void(const TempFolder&)> Model(const std::string& content) {
  return Write("tokenizer.model", content);
}

std::vector<Row> ModelRows() {
  const std::string good = Pieces() + Trainer() + Normalizer();
  const std::string unsupported = "tokenizer_unsupported";
  return {
      {"T13_Empty", Model(""), "is cut or no SentencePiece model"},
      {"T13_WrongMagicJson", Model("{\"a\": 0}"), "tokenizer.model: "},
      {"T13_CutInPieces", Model(good.substr(0, 1000)), "no protocol buffer at byte"},
      {"T13_CutBehindPieces", Model(Pieces()), "is cut or no SentencePiece model"},
      {"T13_CutInNormalizer", Model(good.substr(0, good.size() - 1)), "no protocol buffer at byte"},
      {"T13_VarintOf11Bytes", Model(good + "\x08" + std::string(11, '\xFF')), "no protocol buffer"},
      {"T13_VarintOf65Bits", Model(good + "\x08" + std::string(9, '\xFF') + "\x02"),
       "no protocol buffer"},
      {"T13_LengthBeyondEnd", Model(good + "\x0A" + Varint(1ULL << 62)), "no protocol buffer"},
      {"T13_LengthOf2To64", Model(good + "\x0A" + Varint(UINT64_MAX)), "no protocol buffer"},
      {"T13_Group", Model(good + "\x0B"), "no protocol buffer"},
      {"T13_FieldZero", Model(good + std::string("\0\0", 2)), "no protocol buffer"},
      {"T13_FixedCut", Model(good + "\x0D\x01\x02"), "no protocol buffer"},
      {"T13_EmptyPiece", Model(good + PieceField("", 0, 1)), "expected 1 to 1024 bytes"},
      {"T13_PieceOf1MiB", Model(good + PieceField(std::string(1 << 20, 'x'), 0, 1)),
       "expected 1 to 1024 bytes"},
      {"T13_PieceNotUtf8", Model(good + PieceField("\xC0\xAF", 0, 1)), "of UTF-8"},
      {"T13_PieceTwice", Model(good + PieceField("ab", -9, 1)), "\"ab\" is there twice"},
      {"T13_PieceOfUnknownType", Model(good + PieceField("zz", 0, 9)), "unknown type 9"},
      {"T13_ScoreNotANumber", Model(good + PieceField("zz", std::nanf(""), 1)), "finite score"},
      {"T13_ByteMissing", Model(Pieces(1) + Trainer() + Normalizer()),
       "no piece of the single byte 0"},
      {"T13_Unigram", Model(Pieces() + Trainer(1) + Normalizer()), "expected model_type 2, found 1",
       unsupported},
      {"T13_NoFallback", Model(Pieces() + Trainer(2, false) + Normalizer()), "no byte_fallback",
       unsupported},
      {"T13_Normalizes", Model(Pieces() + Trainer() + Normalizer("table")), "expected the identity",
       unsupported},
      {"T13_NoDummyPrefix", Model(Pieces() + Trainer() + Normalizer("", false)), "dummy prefix",
       unsupported},
      {"T13_RemovesSpaces", Model(Pieces() + Trainer() + Normalizer("", true, true)),
       "all spaces kept", unsupported},
      {"T13_Unused", Model(good + PieceField("zz", 0, 5)), "user-defined or unused", unsupported},
      {"T13_NotLegacy",
       [=](const TempFolder& folder) {
         folder.Write("tokenizer.model", good);
         folder.Write("tokenizer_config.json", "{\"legacy\": false}");
       },
       "legacy: expected true, found false", unsupported},
      {"T13_OtherClass",
       [=](const TempFolder& folder) {
         folder.Write("tokenizer.model", good);
         folder.Write("tokenizer_config.json", "{\"tokenizer_class\": \"T5Tokenizer\"}");
       },
       "expected LlamaTokenizer, found \"T5Tokenizer\"", unsupported},
  };
}

INSTANTIATE_TEST_SUITE_P(Catalogue, BadSentencePieceTest, testing::ValuesIn(ModelRows()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// Sparse, so that the test needs no disk; reading it would need 2 GB of memory.
TEST(TokenizerFilesTest, T13_FileOfTwoGigabytesIsRefusedUnread) {
  for (const std::string file :
       {"vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json", "tokenizer.json",
        "tokenizer.model", "qwen.tiktoken"}) {
    const TempFolder folder;
    WriteGood(folder);
    std::filesystem::resize_file(folder.Write(file, ""), 2'000'000'000);
    const std::string_view main =
        file == "merges.txt" || file == "tokenizer_config.json" || file == "added_tokens.json"
            ? "vocab.json"
            : std::string_view(file);
    const auto tokenizer = LoadTokenizerFromFolder(folder.path(), main);
    ASSERT_FALSE(tokenizer.ok()) << file;
    EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_invalid");
    EXPECT_THAT(MessageOf(tokenizer.status()), HasSubstr(file + ":1: file is too large"));
    EXPECT_THAT(MessageOf(tokenizer.status()), HasSubstr("found 2000000000"));
  }
}

TEST(TokenizerFilesTest, TheGoodFoldersAreTaken) {
  const TempFolder folder;
  WriteGood(folder);
  folder.Write("tokenizer.json", json::serialize(ByteLevelJson()));
  for (const std::string_view file : {"vocab.json", "tokenizer.json"}) {
    const auto tokenizer = LoadTokenizerFromFolder(folder.path(), file);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Encode("abcab"), (std::vector<int32_t>{257, 256}));
    EXPECT_EQ((*tokenizer)->eos(), 258);
    EXPECT_EQ((*tokenizer)->size(), 259);
  }
  const TempFolder pieces;
  pieces.Write("tokenizer.model", Pieces() + Trainer() + Normalizer());
  const auto tokenizer = LoadTokenizerFromFolder(pieces.path(), "tokenizer.model");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("ab\xC3\xA9"),
            (std::vector<int32_t>{1, 259, 262, 3 + 0xC3, 3 + 0xA9}));
}

// A user who types a control string does not get it, even where merges would make it.
TEST(TokenizerFilesTest, T02_MergesDoNotMakeControlTokens) {
  const TempFolder folder;
  WriteGood(folder);
  json::object vocab = Vocab();
  vocab["<a"] = 258;
  vocab["<a>"] = 259;
  folder.Write("vocab.json", json::serialize(vocab));
  folder.Write("merges.txt", "< a\n<a >\n");
  folder.Write("tokenizer_config.json",
               R"({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<a>", "bos_token": null,
                   "unk_token": "<a>"})");
  const auto tokenizer = LoadTokenizerFromFolder(folder.path(), "vocab.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->EncodeWithSpecials("<a>"), std::vector<int32_t>{259});
  for (const int32_t id : (*tokenizer)->Encode("<a>")) EXPECT_FALSE((*tokenizer)->IsSpecial(id));
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode("<a>")), "<a>");
}

}  // namespace
}  // namespace conclave::text
