// Goal: a conversation becomes the request body that an OpenAI-compatible server expects.
// Method: bodies are read back with Boost.JSON; base64 against RFC 4648's vectors.
#include "conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;

boost::json::value Body(const std::vector<Turn>& turns, const AskParams& params = {}) {
  return boost::json::parse(ChatRequestBody("demo", turns, params));
}

TEST(ChatRequestBodyTest, TextQuestion) {
  const auto body =
      Body({{true, "What \"is\" it?", {}}}, {.temperature = 0.5, .max_tokens = 7, .seed = 42});
  EXPECT_EQ(body.at("model").as_string(), "demo");
  EXPECT_TRUE(body.at("stream").as_bool());
  EXPECT_EQ(body.at("temperature").as_double(), 0.5);
  EXPECT_EQ(body.at("max_tokens").as_int64(), 7);
  EXPECT_EQ(body.at("seed").as_int64(), 42);
  EXPECT_EQ(body.at_pointer("/messages/0/content").as_string(), "What \"is\" it?");
}

TEST(ChatRequestBodyTest, WhatIsNotAskedForIsNotSent) {
  const auto body = Body({{true, "x", {}}});
  EXPECT_FALSE(body.as_object().contains("max_tokens"));
  EXPECT_FALSE(body.as_object().contains("seed"));
}

TEST(ChatRequestBodyTest, ImagesComeBeforeTheTextAsDataUris) {
  const auto body =
      Body({{true, "x", {"\x89PNG\r\n\x1a\n", "\xff\xd8\xff"}}, {false, "y", {}}, {true, "z", {}}});
  EXPECT_EQ(body.at_pointer("/messages/0/content/0/image_url/url").as_string(),
            "data:image/png;base64,iVBORw0KGgo=");
  EXPECT_EQ(body.at_pointer("/messages/0/content/1/image_url/url").as_string(),
            "data:image/jpeg;base64,/9j/");
  EXPECT_EQ(body.at_pointer("/messages/0/content/2/text").as_string(), "x");
  EXPECT_EQ(body.at_pointer("/messages/1/role").as_string(), "assistant");
  EXPECT_EQ(body.at_pointer("/messages/2/content").as_string(), "z");
}

TEST(ChatRequestBodyTest, Base64HasTheVectorsOfTheRfc) {
  const std::pair<const char*, const char*> cases[] = {
      {"", ""},        {"f", "Zg=="},        {"fo", "Zm8="},
      {"foo", "Zm9v"}, {"foob", "Zm9vYg=="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : cases) {
    const auto body = Body({{true, "x", {bytes}}});
    EXPECT_EQ(body.at_pointer("/messages/0/content/0/image_url/url").as_string(),
              "data:application/octet-stream;base64," + std::string(text));
  }
}

TEST(MimeTest, KnowsPicturesByTheirFirstBytes) {
  EXPECT_EQ(MimeOf("RIFF1234WEBPVP8 "), "image/webp");
  EXPECT_EQ(MimeOf("GIF89a"), "image/gif");
  EXPECT_EQ(MimeOf("BM6"), "image/bmp");
  EXPECT_EQ(MimeOf("RIFF1234WAVE"), "application/octet-stream");
  EXPECT_EQ(MimeOf("RIFF"), "application/octet-stream");
  EXPECT_EQ(MimeOf(""), "application/octet-stream");
}

TEST(ReadImageFileTest, ReadsFilesAndRefusesOthers) {
  const testing::TempFolder temp;
  const std::string bytes("a\0b\xff", 4);
  EXPECT_EQ(*ReadImageFile(temp.Write("a.png", bytes)), bytes);
  for (const std::string& file : {temp.path(), temp.path() + "/none", std::string("/dev/zero")}) {
    const auto read = ReadImageFile(file);
    EXPECT_EQ(ReasonOf(read.status()), "usage") << file;
  }
}

TEST(ReadImageFileTest, TooLargeIsRefusedBeforeReading) {
  const testing::TempFolder temp;
  const std::string file = temp.Write("large.png", "");
  std::filesystem::resize_file(file, (10 << 20) + 1);
  EXPECT_THAT(MessageOf(ReadImageFile(file).status()), HasSubstr("expected at most 10MiB"));
  std::filesystem::resize_file(file, 10 << 20);
  EXPECT_TRUE(ReadImageFile(file).ok());
}

}  // namespace
}  // namespace conclave::cli
