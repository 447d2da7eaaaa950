// Goal: the JSON files beside a vocabulary become added and control tokens with the ids that the
// original's tokenizers give them; contradictions are refused with file and token.
// Method: small folders, one file at a time and together; a vocabulary of three tokens.
#include "folder_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "text_test_support.h"

namespace conclave::text {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kConfig[] = "tokenizer_config.json";
constexpr char kMap[] = "special_tokens_map.json";
constexpr char kAdded[] = "added_tokens.json";

FolderDefaults Defaults() {
  return {.bos = "<s>", .eos = "</s>", .unk = "<unk>", .adds_bos = true, .classes = {"Some"}};
}

// "a" 0, "b" 1, "ab" 2.
int32_t IdInVocab(std::string_view token) {
  return token == "a" ? 0 : token == "b" ? 1 : token == "ab" ? 2 : -1;
}
VocabSpec Spec() {
  VocabSpec spec;
  spec.token_bytes = {"a", "b", "ab"};
  spec.symbol_lengths = {1, 1, 2};
  spec.pairs = {{0, 1, 0, 2}};
  return spec;
}

std::string ErrorOf(const TempFolder& folder) {
  const auto tokens = ReadFolderTokens(folder.path(), Defaults());
  return tokens.ok() ? "" : ReasonOf(tokens.status()) + ": " + MessageOf(tokens.status());
}

TEST(ReadFolderTokensTest, WithoutFilesTheClassDecides) {
  const TempFolder folder;
  const auto tokens = ReadFolderTokens(folder.path(), Defaults());
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->bos, "<s>");
  EXPECT_EQ(tokens->eos, "</s>");
  EXPECT_EQ(tokens->unk, "<unk>");
  EXPECT_EQ(tokens->pad, "");
  EXPECT_TRUE(tokens->adds_bos);
  EXPECT_TRUE(tokens->cleans_up_spaces);
  EXPECT_THAT(tokens->added, IsEmpty());
}

TEST(ReadFolderTokensTest, SettingsAreReadAndTheMapCountsAfterThem) {
  const TempFolder folder;
  folder.Write(kConfig, R"({"tokenizer_class":"SomeFast","add_bos_token":false,"bos_token":null,
      "eos_token":{"content":"<e>"},"pad_token":"<p>","clean_up_tokenization_spaces":false,
      "additional_special_tokens":["<x>"],
      "added_tokens_decoder":{"5":{"content":"<e>","special":true,"lstrip":true},
                              "4":{"content":"  ","rstrip":true}}})");
  folder.Write(kMap,
               R"({"pad_token":"<q>","additional_special_tokens":["<y>",{"content":"<z>"}]})");
  const auto tokens = ReadFolderTokens(folder.path(), Defaults());
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->tokenizer_class, "SomeFast");
  EXPECT_FALSE(tokens->adds_bos);
  EXPECT_FALSE(tokens->cleans_up_spaces);
  EXPECT_EQ(tokens->bos, "");
  EXPECT_EQ(tokens->eos, "<e>");
  EXPECT_EQ(tokens->pad, "<q>");
  EXPECT_THAT(tokens->additional, ElementsAre("<y>", "<z>"));
  ASSERT_EQ(tokens->added.size(), 2u);
  EXPECT_EQ(tokens->added[0].id, 5);
  EXPECT_TRUE(tokens->added[0].is_special && tokens->added[0].strips_left);
  EXPECT_FALSE(tokens->added[0].strips_right);
  EXPECT_TRUE(tokens->added[1].strips_right);
}

TEST(ReadFolderTokensTest, AddedTokensFileAddsToTheSettings) {
  const TempFolder folder;
  folder.Write(kConfig, R"({"added_tokens_decoder":{"5":{"content":"<e>","special":true}}})");
  folder.Write(kAdded, R"({"<e>":5,"<f>":6})");
  const auto tokens = ReadFolderTokens(folder.path(), Defaults());
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  ASSERT_EQ(tokens->added.size(), 2u);
  EXPECT_TRUE(tokens->added[0].is_special) << "what the settings say stays";
  EXPECT_EQ(tokens->added[1].content, "<f>");
  EXPECT_EQ(tokens->added[1].id, 6);
  folder.Write(kAdded, R"({"<g>":5})");
  EXPECT_THAT(ErrorOf(folder), HasSubstr("tokenizer_invalid: "));
  EXPECT_THAT(ErrorOf(folder), HasSubstr("its id 5 is another token's"));
}

TEST(ReadFolderTokensTest, T13_WhatIsBrokenIsInvalidAndNamesTheFile) {
  struct Case {
    const char* file;
    const char* content;
  };
  for (const Case& bad :
       {Case{kConfig, "{"}, Case{kConfig, "[]"},
        Case{kConfig, R"({"added_tokens_decoder":{"x":{"content":"a"}}})"},
        Case{kConfig, R"({"added_tokens_decoder":{"-1":{"content":"a"}}})"},
        Case{kConfig, R"({"added_tokens_decoder":{"5 ":{"content":"a"}}})"},
        Case{kConfig, R"({"added_tokens_decoder":{"99999999999":{"content":"a"}}})"},
        Case{kConfig, R"({"added_tokens_decoder":{"5":{"content":""}}})"},
        Case{kConfig, R"({"added_tokens_decoder":{"5":"a"}})"}, Case{kMap, "null"},
        Case{kAdded, R"({"<f>":-1})"}, Case{kAdded, R"({"<f>":"6"})"}, Case{kAdded, R"({"":6})"}}) {
    const TempFolder folder;
    folder.Write(bad.file, bad.content);
    EXPECT_THAT(ErrorOf(folder), HasSubstr("tokenizer_invalid: ")) << bad.content;
    EXPECT_THAT(ErrorOf(folder), HasSubstr(bad.file)) << bad.content;
  }
}

TEST(ReadFolderTokensTest, WhatChangesHowTextIsReadIsUnsupported) {
  for (const char* content :
       {R"({"tokenizer_class":"Other"})", R"({"legacy":false})", R"({"add_prefix_space":true})",
        R"({"add_eos_token":true})", R"({"split_special_tokens":true})",
        R"({"added_tokens_decoder":{"5":{"content":"a","single_word":true}}})"}) {
    const TempFolder folder;
    folder.Write(kConfig, content);
    EXPECT_THAT(ErrorOf(folder), HasSubstr("tokenizer_unsupported: ")) << content;
  }
}

FolderTokens Tokens() {
  FolderTokens tokens;
  tokens.bos = "<s>";
  tokens.eos = "</s>";
  tokens.adds_bos = true;
  return tokens;
}

TEST(ApplyFolderTokensTest, ControlTokensWithoutAnIdGetTheNextOnes) {
  FolderTokens tokens = Tokens();
  tokens.added = {{.id = 5, .content = "  "}};
  tokens.unk = "a";  // of the vocabulary
  VocabSpec spec = Spec();
  ASSERT_TRUE(ApplyFolderTokens("folder", tokens, IdInVocab, spec).ok());
  EXPECT_EQ(spec.bos, 6);
  EXPECT_EQ(spec.eos, 7);
  EXPECT_THAT(spec.hidden, ElementsAre(6, 7, 0));
  std::vector<int32_t> ids;
  for (const AddedToken& token : spec.added) ids.push_back(token.id);
  EXPECT_THAT(ids, ElementsAre(0, 5, 6, 7));
  EXPECT_FALSE(spec.added[1].is_special);
  EXPECT_TRUE(spec.added[0].is_special && spec.added[2].is_special);
  EXPECT_THAT(spec.spaced, ElementsAre(5)) << "those that decoding does not hide";
}

TEST(ApplyFolderTokensTest, NoBosIsPutInFrontWhereNoneIsAsked) {
  FolderTokens tokens = Tokens();
  tokens.adds_bos = false;
  VocabSpec spec = Spec();
  ASSERT_TRUE(ApplyFolderTokens("folder", tokens, IdInVocab, spec).ok());
  EXPECT_EQ(spec.bos, -1);
  EXPECT_GE(spec.eos, 3);
}

TEST(ApplyFolderTokensTest, MergesThatMakeAControlTokenAreTakenOut) {
  FolderTokens tokens = Tokens();
  VocabSpec spec = Spec();
  ASSERT_TRUE(ApplyFolderTokens("folder", tokens, IdInVocab, spec).ok());
  EXPECT_EQ(spec.pairs.size(), 1u);
  tokens.eos = "ab";
  spec = Spec();
  ASSERT_TRUE(ApplyFolderTokens("folder", tokens, IdInVocab, spec).ok());
  EXPECT_EQ(spec.eos, 2);
  EXPECT_TRUE(spec.pairs.empty());
}

TEST(ApplyFolderTokensTest, T13_ContradictionsAreInvalid) {
  struct Case {
    std::vector<AddedToken> added;
    const char* why;
  };
  for (const Case& bad : {Case{{{.id = 5, .content = "x"}, {.id = 5, .content = "y"}}, "twice"},
                          Case{{{.id = 5, .content = "x"}, {.id = 6, .content = "x"}}, "twice"},
                          Case{{{.id = 1, .content = "x"}}, "not its own"},
                          Case{{{.id = 5, .content = "ab"}}, "as in the vocabulary"},
                          Case{{{.id = 5, .content = std::string(1 << 20, 'x')}}, "too long"}}) {
    FolderTokens tokens = Tokens();
    tokens.added = bad.added;
    VocabSpec spec = Spec();
    const absl::Status status = ApplyFolderTokens("folder", tokens, IdInVocab, spec);
    EXPECT_EQ(ReasonOf(status), "tokenizer_invalid") << bad.why;
    EXPECT_THAT(MessageOf(status), HasSubstr(bad.why));
    EXPECT_LT(MessageOf(status).size(), 300u) << "a token of 1 MiB is not quoted whole";
  }
}

TEST(ApplyFolderTokensTest, WithoutAnEndOfTextTokenIsInvalid) {
  FolderTokens tokens = Tokens();
  tokens.eos.clear();
  VocabSpec spec = Spec();
  const absl::Status status = ApplyFolderTokens("folder", tokens, IdInVocab, spec);
  EXPECT_EQ(ReasonOf(status), "tokenizer_invalid");
  EXPECT_THAT(MessageOf(status), HasSubstr("eos_token"));
}

}  // namespace
}  // namespace conclave::text
