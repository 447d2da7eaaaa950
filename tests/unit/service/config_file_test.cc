// Goal: a config file is a flat list of settings or a clear refusal with line and column (bad
// inputs, P07). Method: files as strings, through an OptionSet, so that what users see is checked.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/options.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::service {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConfigFileTest : public ::testing::Test {
 protected:
  ConfigFileTest() : set_("conclave test", "0", "") {
    set_.Add({.name = "threads", .help = ""}, &threads_, {1, 1024});
    set_.Add({.name = "ratio", .help = ""}, &ratio_, {0.0, 2.0});
    set_.Add({.name = "name", .help = ""}, &name_);
    set_.Add({.name = "insecure", .help = ""}, &insecure_);
    set_.AddPath({.name = "folder", .help = ""}, &folder_, PathKind::kAny);
    set_.AddPaths({.name = "image", .help = ""}, &images_, PathKind::kAny);
  }

  absl::Status Read(const std::string& yaml) {
    file_ = temp_.Write("c.yaml", yaml);
    const std::string args[] = {"--config", file_};
    return set_.Parse(args, {}).status();
  }

  // What follows the file's name in the message.
  std::string Tail(const absl::Status& status) const {
    const std::string message = MessageOf(status);
    return message.starts_with(file_) ? message.substr(file_.size()) : "no file name: " + message;
  }

  void ExpectRefused(const std::string& yaml, const std::string& reason, const std::string& tail) {
    SCOPED_TRACE(yaml);
    const absl::Status status = Read(yaml);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(ReasonOf(status), reason);
    EXPECT_THAT(Tail(status), HasSubstr(tail));
    EXPECT_EQ(ExitCodeOf(status, ExitCode::kInternal), ExitCode::kConfig);
  }

  testing::TempFolder temp_;
  std::string file_;
  int32_t threads_ = 1;
  double ratio_ = 1;
  std::string name_;
  bool insecure_ = false;
  std::string folder_;
  std::vector<std::string> images_;
  OptionSet set_;
};

TEST_F(ConfigFileTest, ReadsScalarsListsAndComments) {
  const absl::Status status = Read(
      "# a comment\nthreads: 4\nname: \"two words\"  # more\ninsecure: true\nratio: 0.5\n"
      "image: [a.png, b.png]\n");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(threads_, 4);
  EXPECT_EQ(name_, "two words");
  EXPECT_TRUE(insecure_);
  EXPECT_EQ(ratio_, 0.5);
  EXPECT_THAT(images_, ElementsAre("a.png", "b.png"));
}

TEST_F(ConfigFileTest, QuotedTextKeepsWhatQuotesMean) {
  ASSERT_TRUE(Read("name: 'it''s \"fine\"'\n").ok());
  EXPECT_EQ(name_, "it's \"fine\"");
  ASSERT_TRUE(Read("name: \"a \\\"b\\\" \\\\ z\u00fcrich\"\n").ok());
  EXPECT_EQ(name_, "a \"b\" \\ z\u00fcrich");
}

TEST_F(ConfigFileTest, EmptyFilesAndCommentsAloneSetNothing) {
  for (const char* yaml : {"", "\n\n", "# nothing\n", "---\n", "{}\n"}) {
    EXPECT_TRUE(Read(yaml).ok()) << yaml;
    EXPECT_EQ(threads_, 1);
  }
}

TEST_F(ConfigFileTest, P07CrlfAndByteOrderMarkAreFine) {
  ASSERT_TRUE(Read("threads: 3\r\nname: x\r\n").ok());
  EXPECT_EQ(threads_, 3);
  EXPECT_EQ(name_, "x");
  EXPECT_TRUE(Read("\xEF\xBB\xBFthreads: 5\n").ok());
  EXPECT_EQ(threads_, 5);
}

TEST_F(ConfigFileTest, P07Tabs) {
  ExpectRefused("threads: 4\n\tname: x\n", "config_syntax", ":2:1: a tab indents this line");
  ExpectRefused("image:\n  \t- a\n", "config_syntax", ":2:3: a tab indents this line");
}

TEST_F(ConfigFileTest, P07DuplicateKeys) {
  ExpectRefused("threads: 4\nname: x\nthreads: 5\n", "config_syntax",
                ":3:1: duplicate key \"threads\", first in line 1");
}

TEST_F(ConfigFileTest, P07UnknownKeySuggestsTheNearest) {
  ExpectRefused("name: x\nthread: 4\n", "config_unknown_key",
                ":2:1: unknown key \"thread\"; did you mean threads?");
  ExpectRefused("whatever: 4\n", "config_unknown_key", ":1:1: unknown key \"whatever\"");
  ExpectRefused("<<: x\n", "config_unknown_key", ":1:1: unknown key \"<<\"");
}

TEST_F(ConfigFileTest, P07AnchorsAliasesAndTags) {
  ExpectRefused("name: &a x\n", "config_syntax", "anchors are not allowed");
  ExpectRefused("name: *a\n", "config_syntax", ":1:");
  ExpectRefused("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "config_syntax",
                "anchors are not allowed");
  ExpectRefused("name: !!binary aGk=\n", "config_syntax", "tags are not allowed");
  ExpectRefused("name: !local x\n", "config_syntax", "tags are not allowed");
}

TEST_F(ConfigFileTest, P07WrongShapes) {
  ExpectRefused("threads: [4]\n", "config_value",
                ":1:10: threads: expected one value, found a list");
  ExpectRefused("threads: {a: 1}\n", "config_syntax", ":1:10: settings are flat");
  ExpectRefused("threads:\n", "config_value", "threads: has no value");
  ExpectRefused("threads: ~\n", "config_value", "threads: has no value");
  ExpectRefused("threads: \"\"\n", "config_value", "threads: has no value");
  ExpectRefused("- threads\n", "config_syntax", ":1:1: a list is not allowed here");
  ExpectRefused("threads\n", "config_syntax", ":1:1: expected settings as `key: value`");
  ExpectRefused("image: [[a]]\n", "config_syntax", "a list is not allowed here");
  ExpectRefused("image: [a, ~]\n", "config_syntax", "an empty list entry");
  ExpectRefused("? [a]\n: b\n", "config_syntax", "a list is not allowed here");
}

TEST_F(ConfigFileTest, P07WrongTypesNanAndOctal) {
  ExpectRefused("threads: four\n", "config_value",
                ":1:10: threads: expected a whole number, found \"four\"");
  ExpectRefused("threads: 010\n", "config_value", "without leading zeros");
  ExpectRefused("threads: 0x10\n", "config_value", "expected a whole number");
  ExpectRefused("threads: 1.5\n", "config_value", "expected a whole number");
  ExpectRefused("name: x\nratio: .nan\n", "config_value",
                ":2:8: ratio: expected a number, found \".nan\"");
  ExpectRefused("ratio: .inf\n", "config_value", "expected a number");
  ExpectRefused("insecure: Yes please\n", "config_value", "expected true or false");
  ExpectRefused("threads: 0\n", "config_value", "expected 1..1024, found \"0\"");
}

TEST_F(ConfigFileTest, P07NotUtf8AndControlCharacters) {
  ExpectRefused("name: x\nname2: \xff\n", "config_syntax", ":2:1: this line is not valid UTF-8");
  ExpectRefused("name: \x01\n", "config_syntax", ":1:7: a control character");
  ExpectRefused(std::string("name: a\0b\n", 10), "config_syntax", ":1:8: a control character");
}

TEST_F(ConfigFileTest, P07BrokenSyntaxAndSeveralDocuments) {
  ExpectRefused("threads: 4\nname: \"open\n", "config_syntax", ":2:7: a quoted text has no end");
  ExpectRefused("name: \"open\\\"\n", "config_syntax", ":1:7: a quoted text has no end");
  ExpectRefused("name: 'it''s\n", "config_syntax", ":1:7: a quoted text has no end");
  ExpectRefused("\xEF\xBB\xBFname: \"open\n", "config_syntax", ": a quoted text has no end");
  ExpectRefused("threads: [4\n", "config_syntax", ":");
  ExpectRefused("threads: 4\n  name: x\n", "config_syntax", ":2:");
  ExpectRefused("threads: 4\n---\nthreads: 5\n", "config_syntax", ": a second document");
  ExpectRefused(std::string(100'000, '['), "config_syntax", ":1:");
  ExpectRefused(std::string(100'000, '{'), "config_syntax", ":1:");
}

TEST_F(ConfigFileTest, L07NulInAPath) {
  ExpectRefused("folder: \"a\\0b\"\n", "config_value", "folder: expected a path, found a NUL");
}

TEST_F(ConfigFileTest, L07FilesThatAreNone) {
  const auto read = [&](const std::string& file) {
    const std::string args[] = {"--config", file};
    return set_.Parse(args, {}).status();
  };
  for (const std::string& file :
       {temp_.path(), temp_.path() + "/missing.yaml", std::string("/dev/zero")}) {
    const absl::Status status = read(file);
    ASSERT_FALSE(status.ok()) << file;
    EXPECT_EQ(ReasonOf(status), "config_file");
    EXPECT_THAT(MessageOf(status), HasSubstr(file));
  }
  EXPECT_EQ(ReasonOf(read(temp_.Write("large.yaml", std::string((1 << 20) + 1, '#')))),
            "config_file");
  EXPECT_TRUE(read(temp_.Write("just-fits.yaml", std::string(1 << 20, '#'))).ok());
  EXPECT_EQ(ReasonOf(read(std::string(5000, 'x'))), "usage");
}

}  // namespace
}  // namespace conclave::service
