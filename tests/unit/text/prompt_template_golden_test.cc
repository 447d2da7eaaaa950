// Goal: every template renders every recorded dialogue as the original does, blank by blank.
// Method: tests/golden/data/templates.json, recorded from the original's conversation objects.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "text_test_support.h"

namespace conclave::text {
namespace {

const boost::json::object& Recorded() {
  static const boost::json::object recorded =
      ReadJson(SourcePath("tests/golden/data/templates.json")).as_object();
  return recorded;
}

std::string StringOrEmpty(const boost::json::value& value) {
  return value.is_null() ? "" : ToString(value);
}

std::vector<Turn> Dialogue(const boost::json::value& texts) {
  std::vector<Turn> turns;
  for (const auto& text : texts.as_array())
    turns.push_back(RecordedTurn(turns.size() % 2 == 0, text));
  return turns;
}

TEST(PromptTemplateGoldenTest, HasExactlyTheRecordedTemplates) {
  std::vector<std::string> recorded;
  for (const auto& member : Recorded().at("templates").as_object())
    recorded.emplace_back(member.key());
  const std::vector<std::string_view> keys = TemplateKeys();
  std::vector<std::string> ours(keys.begin(), keys.end());
  std::sort(recorded.begin(), recorded.end());
  std::sort(ours.begin(), ours.end());
  EXPECT_EQ(ours, recorded);
}

TEST(PromptTemplateGoldenTest, FieldsAreTheRecordedOnes) {
  for (const auto& member : Recorded().at("templates").as_object()) {
    const std::string key(member.key());
    SCOPED_TRACE(key);
    const PromptTemplate* ours = FindTemplate(key);
    ASSERT_NE(ours, nullptr);
    const auto& theirs = member.value().as_object();
    EXPECT_EQ(ours->user_role, ToString(theirs.at("roles").at(0)));
    EXPECT_EQ(ours->assistant_role, ToString(theirs.at("roles").at(1)));
    EXPECT_EQ(ours->system, ToString(theirs.at("system")));
    EXPECT_EQ(ours->sep, ToString(theirs.at("sep")));
    EXPECT_EQ(ours->sep2, StringOrEmpty(theirs.at("sep2")));
    // The original stops Llama-2 at the separator that follows the end of an answer (see
    // StopString).
    const bool is_llama2 = ToString(theirs.at("style")) == "LLAMA_2";
    EXPECT_EQ(StopString(*ours), is_llama2 ? "</s>" : ToString(theirs.at("stop")));
  }
}

TEST(PromptTemplateGoldenTest, RendersEveryDialogueAsRecorded) {
  const auto tokenizer = LoadArcade();
  int num_compared = 0;
  int num_impossible = 0;
  for (const auto& member : Recorded().at("templates").as_object()) {
    const PromptTemplate* prompt_template = FindTemplate(std::string(member.key()));
    ASSERT_NE(prompt_template, nullptr);
    for (const auto& dialogue : Recorded().at("dialogues").as_object()) {
      SCOPED_TRACE(std::string(member.key()) + " " + std::string(dialogue.key()));
      const auto& rendered = member.value().at("rendered").at(dialogue.key());
      if (rendered.is_null()) {
        // The original fails on an answer in a template without a second separator.
        EXPECT_EQ(prompt_template->style, TemplateStyle::kPlain);
        ++num_impossible;
        continue;
      }
      const auto spans =
          Render(*prompt_template, Dialogue(dialogue.value()), std::nullopt, *tokenizer);
      EXPECT_EQ(Flatten(spans), ToString(rendered));
      ++num_compared;
    }
  }
  EXPECT_EQ(num_compared, 19 * 7 - 6);
  EXPECT_EQ(num_impossible, 6);
}

}  // namespace
}  // namespace conclave::text
