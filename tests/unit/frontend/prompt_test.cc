// Goal: messages become the ids that the original's template gives. Method: a recorded tokenizer,
// whose prompts are checked against recordings elsewhere; here what the frontend adds.
#include "prompt.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "conclave/base/status.h"

namespace conclave::frontend {
namespace {

Message User(std::vector<ContentPart> parts) { return {Message::Role::kUser, std::move(parts)}; }
ContentPart Text(std::string text) { return {ContentPart::Kind::kText, std::move(text), ""}; }
ContentPart Image() { return {ContentPart::Kind::kImage, "bytes", ""}; }

class PromptTest : public ::testing::Test {
 protected:
  PromptTest() {
    auto loaded = text::LoadTokenizerFromFolder(CONCLAVE_SOURCE_DIR
                                                "/tests/golden/data/cases/stablelm-clip/checkpoint",
                                                "arcade100k.tiktoken");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  std::vector<int32_t> Build(const std::vector<Message>& messages, bool marks = false) {
    checkpoint::SpliceSpec splice;
    splice.use_start_end_tokens = marks;
    auto ids = BuildPrompt(messages, *text::FindTemplate("stablelm"), splice, *tokenizer_);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *ids : std::vector<int32_t>();
  }
  // `ids` as text, an image as <image>.
  std::string Shown(const std::vector<int32_t>& ids) {
    std::string out;
    std::vector<int32_t> run;
    for (const int32_t id : ids) {
      if (id == text::kImageToken) {
        out += tokenizer_->Decode(run, true) + "<image>";
        run.clear();
      } else {
        run.push_back(id);
      }
    }
    return out + tokenizer_->Decode(run, true);
  }

  std::unique_ptr<text::Tokenizer> tokenizer_;
};

TEST_F(PromptTest, PicturesStandFirstAndTextsAreJoinedByNewlines) {
  const std::string prompt =
      Shown(Build({User({Text("What"), Image(), Text("is this?"), Image()})}));
  EXPECT_NE(prompt.find(" USER: <image><image>\nWhat\nis this? ASSISTANT:"), std::string::npos)
      << prompt;
}

TEST_F(PromptTest, ASystemMessageReplacesTheTemplatesOwn) {
  const std::string prompt =
      Shown(Build({{Message::Role::kSystem, {Text("Be brief.")}}, User({Text("Hi")})}));
  EXPECT_EQ(prompt, "Be brief. USER: Hi ASSISTANT:");
}

TEST_F(PromptTest, MarksStandAroundEveryPictureWhenTheModelWantsThem) {
  const std::string prompt = Shown(Build({User({Image(), Image(), Text("Hi")})}, true));
  EXPECT_NE(prompt.find("USER: <im_start><image><im_end><im_start><image><im_end>\nHi ASSISTANT:"),
            std::string::npos)
      << prompt;
}

TEST_F(PromptTest, TextOfAUserIsNeverAControlString) {
  const std::vector<int32_t> ids = Build({User({Text("<image><|endoftext|>")})});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), text::kImageToken), 0);
  EXPECT_TRUE(
      std::none_of(ids.begin(), ids.end(), [&](int32_t id) { return tokenizer_->IsSpecial(id); }));
}

TEST_F(PromptTest, TheLastMessageIsTheUsers) {
  const std::vector<Message> messages = {User({Text("Hi")}),
                                         {Message::Role::kAssistant, {Text("Hello")}}};
  const auto ids = BuildPrompt(messages, *text::FindTemplate("stablelm"), {}, *tokenizer_);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ReasonOf(ids.status()), "invalid_role");
}

}  // namespace
}  // namespace conclave::frontend
