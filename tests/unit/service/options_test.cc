// Goal: one rule for flags, variables and files: what counts, what is refused and how it is said
// (bad inputs 4.9). Method: an OptionSet with one option of each type, parsed from lists of
// strings.
#include "conclave/service/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::service {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct Settings {
  std::string model;
  Address listen{"127.0.0.1", 8000};
  int32_t threads = 2;
  ByteSize kv_memory;
  milliseconds drain_timeout{30'000};
  double temperature = 0;
  std::string dtype = "bf16";
  std::string tower;
  std::vector<std::string> images;
  bool insecure = false;
  std::vector<std::string> words;
};

class OptionsTest : public ::testing::Test {
 protected:
  OptionsTest() : set_("conclave test", "1.2.3", "Tests.") {
    set_.AddPath({.name = "model", .help = "folder", .short_name = 'm', .unset_means = "the demo"},
                 &s_.model, PathKind::kAny);
    set_.Add({.name = "listen", .help = "address", .group = "Network"}, &s_.listen);
    set_.Add({.name = "threads", .help = "threads"}, &s_.threads, {1, 1024});
    set_.Add({.name = "kv-memory", .help = "memory", .unset_means = "a quarter"}, &s_.kv_memory,
             {{1 << 20}, {int64_t{1} << 40}});
    set_.Add({.name = "drain-timeout", .help = "time"}, &s_.drain_timeout,
             {milliseconds(0), milliseconds(3'600'000)});
    set_.Add({.name = "temperature", .help = "heat"}, &s_.temperature, {0.0, 2.0});
    set_.AddChoice({.name = "dtype", .help = "mode"}, &s_.dtype, {"f32", "bf16"});
    set_.AddPath({.name = "vision-tower", .help = "tower", .unset_means = "none"}, &s_.tower,
                 PathKind::kExistingFolder);
    set_.AddPaths({.name = "image", .help = "picture"}, &s_.images, PathKind::kExistingFile);
    set_.Add({.name = "insecure", .help = "open"}, &s_.insecure);
    set_.AddPositional({.name = "QUESTION", .help = "what to ask", .num_min = 0, .num_max = 2},
                       &s_.words);
    set_.Refuse("api-key", "refused: visible to everybody");
  }

  absl::StatusOr<OptionSet::Parsed> Parse(const std::vector<std::string>& args,
                                          const Variables& variables = {}) {
    return set_.Parse(args, variables);
  }

  // The message of a refused command line, which must have exit code 2.
  std::string Refusal(const std::vector<std::string>& args, const Variables& variables = {}) {
    const absl::Status status = Parse(args, variables).status();
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(ExitCodeOf(status, ExitCode::kInternal), ExitCode::kUsage) << status;
    return MessageOf(status);
  }

  Settings s_;
  OptionSet set_;
  testing::TempFolder temp_;
};

TEST_F(OptionsTest, NothingGivenLeavesDefaults) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(s_.threads, 2);
  EXPECT_EQ(s_.listen, (Address{"127.0.0.1", 8000}));
  EXPECT_EQ(set_.OriginOf("threads"), Origin::kDefault);
}

TEST_F(OptionsTest, BothFlagFormsAndShortNamesWork) {
  ASSERT_TRUE(
      Parse({"--threads", "4", "--listen=[::1]:0", "-m", "x", "--insecure", "--temperature=0.5",
             "--drain-timeout", "5s", "--kv-memory=4GiB", "--dtype", "f32"})
          .ok());
  EXPECT_EQ(s_.threads, 4);
  EXPECT_EQ(s_.listen, (Address{"::1", 0}));
  EXPECT_EQ(s_.model, "x");
  EXPECT_TRUE(s_.insecure);
  EXPECT_EQ(s_.temperature, 0.5);
  EXPECT_EQ(s_.drain_timeout, milliseconds(5000));
  EXPECT_EQ(s_.kv_memory.bytes, int64_t{4} << 30);
  EXPECT_EQ(s_.dtype, "f32");
}

TEST_F(OptionsTest, FlagBeatsVariableBeatsFileBeatsDefault) {
  const std::string file = temp_.Write("c.yaml", "threads: 3\nlisten: 127.0.0.1:3\ndtype: f32\n");
  const Variables variables = {{"CONCLAVE_THREADS", "4"}, {"CONCLAVE_LISTEN", "127.0.0.1:4"}};
  ASSERT_TRUE(Parse({"--config", file, "--threads", "5"}, variables).ok());
  EXPECT_EQ(s_.threads, 5);
  EXPECT_EQ(s_.listen.port, 4);
  EXPECT_EQ(s_.dtype, "f32");
  EXPECT_EQ(set_.OriginOf("threads"), Origin::kFlag);
  EXPECT_EQ(set_.OriginOf("listen"), Origin::kVariable);
  EXPECT_EQ(set_.OriginOf("dtype"), Origin::kFile);
  EXPECT_EQ(set_.OriginOf("model"), Origin::kDefault);
}

TEST_F(OptionsTest, ParsingAgainStartsFromTheDefaults) {
  ASSERT_TRUE(Parse({"--threads", "5", "a"}).ok());
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(s_.threads, 2);
  EXPECT_TRUE(s_.words.empty());
  EXPECT_EQ(set_.OriginOf("threads"), Origin::kDefault);
}

TEST_F(OptionsTest, BadValueIsRefusedEvenWhereAStrongerSourceOverrides) {
  const std::string file = temp_.Write("c.yaml", "threads: zero\n");
  EXPECT_EQ(ReasonOf(Parse({"--config", file, "--threads", "5"}).status()), "config_value");
  EXPECT_THAT(Refusal({"--threads", "5"}, {{"CONCLAVE_THREADS", "x"}}),
              HasSubstr("CONCLAVE_THREADS: "));
}

TEST_F(OptionsTest, ConfigFileMayComeFromItsVariable) {
  const std::string file = temp_.Write("c.yaml", "threads: 7\n");
  ASSERT_TRUE(Parse({}, {{"CONCLAVE_CONFIG", file}}).ok());
  EXPECT_EQ(s_.threads, 7);
}

TEST_F(OptionsTest, EmptyVariableIsNotSet) {
  ASSERT_TRUE(Parse({}, {{"CONCLAVE_THREADS", ""}, {"CONCLAVE_CONFIG", ""}}).ok());
  EXPECT_EQ(s_.threads, 2);
}

TEST_F(OptionsTest, ListsAddUpWithinASourceAndReplaceAcross) {
  const std::string a = temp_.Write("a.png", "");
  const std::string b = temp_.Write("b.png", "");
  const std::string file = temp_.Write("c.yaml", "image: [" + a + "]\n");
  ASSERT_TRUE(Parse({"--config", file}).ok());
  EXPECT_THAT(s_.images, ElementsAre(a));
  ASSERT_TRUE(Parse({"--config", file, "--image", b, "--image=" + b}).ok());
  EXPECT_THAT(s_.images, ElementsAre(b, b));
}

TEST_F(OptionsTest, PositionalsKeepTheirOrderAndBrackets) {
  ASSERT_TRUE(Parse({"cat.png", "--threads", "3", "[what, is it?]"}).ok());
  EXPECT_THAT(s_.words, ElementsAre("cat.png", "[what, is it?]"));
  ASSERT_TRUE(Parse({"--", "--is this a flag?"}).ok());
  EXPECT_THAT(s_.words, ElementsAre("--is this a flag?"));
}

TEST_F(OptionsTest, L01UnknownFlagSuggestsTheNearest) {
  EXPECT_EQ(Refusal({"--thread", "4"}), "unknown flag \"--thread\"; did you mean --threads?");
  EXPECT_EQ(Refusal({"--kv-memroy=1GiB"}),
            "unknown flag \"--kv-memroy\"; did you mean --kv-memory?");
  EXPECT_EQ(Refusal({"--quux"}), "unknown flag \"--quux\"");
  EXPECT_EQ(Refusal({"-x"}), "unknown flag \"-x\"");
}

TEST_F(OptionsTest, L01UnknownFlagNeverEchoesItsValue) {
  EXPECT_THAT(Refusal({"--api-kee=hunter2"}), Not(HasSubstr("hunter2")));
}

TEST_F(OptionsTest, L01FlagTwice) {
  EXPECT_EQ(Refusal({"--threads", "4", "--threads=4"}), "--threads: given 2 times; expected once");
  EXPECT_EQ(Refusal({"-m", "a", "--model", "b"}), "--model: given 2 times; expected once");
  EXPECT_EQ(Refusal({"--insecure", "--insecure"}), "--insecure: given 2 times; expected once");
}

TEST_F(OptionsTest, L01MissingValue) {
  EXPECT_EQ(Refusal({"--listen"}), "--listen: has no value; expected HOST:PORT");
  EXPECT_EQ(Refusal({"-m"}), "-m: has no value; expected DIR");
  EXPECT_EQ(Refusal({"--listen", "--threads", "4"}), "--listen: has no value; expected HOST:PORT");
}

TEST_F(OptionsTest, L01EmptyValue) {
  EXPECT_EQ(Refusal({"--listen="}), "--listen: has no value after '='");
  EXPECT_EQ(Refusal({"--listen=", "127.0.0.1:80"}), "--listen: has no value after '='");
  EXPECT_EQ(Refusal({"--listen", ""}), "--listen: has no value; expected HOST:PORT");
}

TEST_F(OptionsTest, L01TooManyArguments) {
  EXPECT_EQ(Refusal({"a", "b", "c"}), "unexpected argument \"c\"");
}

TEST_F(OptionsTest, L02BadAddressNamesTheFlag) {
  EXPECT_EQ(Refusal({"--listen", "127.0.0.1:80a"}),
            "--listen: expected HOST:PORT with port 0..65535, found \"127.0.0.1:80a\"");
  for (const char* address : {"127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1"}) {
    EXPECT_THAT(Refusal({"--listen", address}), HasSubstr("--listen: expected HOST:PORT"));
  }
}

TEST_F(OptionsTest, L05NumbersOutOfRange) {
  EXPECT_EQ(Refusal({"--threads", "0"}), "--threads: expected 1..1024, found \"0\"");
  EXPECT_EQ(Refusal({"--threads", "-1"}), "--threads: expected 1..1024, found \"-1\"");
  EXPECT_EQ(Refusal({"--threads", "1000000"}), "--threads: expected 1..1024, found \"1000000\"");
  EXPECT_EQ(Refusal({"--temperature", "2.1"}), "--temperature: expected 0.0..2.0, found \"2.1\"");
}

TEST_F(OptionsTest, L05SizesWithoutUnitOrOutOfRange) {
  EXPECT_THAT(Refusal({"--kv-memory", "10"}),
              HasSubstr("--kv-memory: expected a size with a unit"));
  EXPECT_THAT(Refusal({"--kv-memory", "1e30GiB"}), HasSubstr("--kv-memory: expected a size below"));
  EXPECT_EQ(Refusal({"--kv-memory", "1KiB"}), "--kv-memory: expected 1MiB..1TiB, found \"1KiB\"");
}

TEST_F(OptionsTest, L06Durations) {
  for (const char* text : {"5", "5 s", "-1s", "\u221e"}) {
    EXPECT_THAT(Refusal({"--drain-timeout", text}),
                HasSubstr("--drain-timeout: expected a duration with a unit"));
  }
  EXPECT_EQ(Refusal({"--drain-timeout", "2h"}), "--drain-timeout: expected 0ms..1h, found \"2h\"");
}

TEST_F(OptionsTest, L07Paths) {
  EXPECT_THAT(Refusal({"--model", std::string(5000, 'x')}),
              HasSubstr("--model: expected a path of at most 4095 bytes, found 5000 bytes"));
  EXPECT_THAT(Refusal({"--image", temp_.path()}),
              HasSubstr("--image: expected a file, found the folder"));
  EXPECT_THAT(Refusal({"--vision-tower", temp_.Write("f", "")}),
              HasSubstr("--vision-tower: expected a folder, found the file"));
  EXPECT_THAT(Refusal({"--image", temp_.path() + "/none"}), HasSubstr("expected an existing file"));
  EXPECT_THAT(Refusal({"--model", ""}), HasSubstr("--model: has no value"));
}

TEST_F(OptionsTest, L08SecretOnTheCommandLine) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"--api-key", "hunter2"},
                                               std::vector<std::string>{"--api-key=hunter2"}}) {
    const std::string message = Refusal(args);
    EXPECT_THAT(message, HasSubstr("--api-key: refused"));
    EXPECT_THAT(message, Not(HasSubstr("hunter2")));
  }
}

TEST_F(OptionsTest, L10BadVariableNamesTheVariable) {
  EXPECT_EQ(Refusal({}, {{"CONCLAVE_DTYPE", "7"}}),
            "CONCLAVE_DTYPE: expected one of f32, bf16, found \"7\"");
  EXPECT_EQ(Refusal({}, {{"CONCLAVE_INSECURE", "maybe"}}),
            "CONCLAVE_INSECURE: expected true or false, found \"maybe\"");
}

TEST_F(OptionsTest, ChoiceSuggestsTheNearest) {
  EXPECT_EQ(Refusal({"--dtype", "bf61"}),
            "--dtype: expected one of f32, bf16, found \"bf61\"; did you mean bf16?");
}

TEST_F(OptionsTest, SwitchTakesAWordOnlyBehindEquals) {
  ASSERT_TRUE(Parse({"--insecure=false"}).ok());
  EXPECT_FALSE(s_.insecure);
  ASSERT_TRUE(Parse({"--insecure", "false"}).ok());
  EXPECT_TRUE(s_.insecure);
  EXPECT_THAT(s_.words, ElementsAre("false"));
  EXPECT_THAT(Refusal({"--insecure=maybe"}), HasSubstr("--insecure: expected true or false"));
}

TEST_F(OptionsTest, L15HelpShowsGroupsDefaultsAndVariables) {
  const auto parsed = Parse({"--help"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->action, OptionSet::Action::kPrint);
  EXPECT_THAT(parsed->output, HasSubstr("Usage: conclave test [options] [QUESTION]"));
  EXPECT_THAT(parsed->output, HasSubstr("\nNetwork:\n"));
  EXPECT_THAT(parsed->output, HasSubstr("address (default: 127.0.0.1:8000) [CONCLAVE_LISTEN]"));
  EXPECT_THAT(parsed->output, HasSubstr("-m, --model DIR"));
  EXPECT_THAT(parsed->output, HasSubstr("folder (default: the demo) [CONCLAVE_MODEL]"));
  EXPECT_THAT(parsed->output, HasSubstr("--print-config"));
}

TEST_F(OptionsTest, L15HelpAndVersionWinOverWhatIsWrong) {
  EXPECT_EQ(Parse({"--help", "--quux"})->action, OptionSet::Action::kPrint);
  EXPECT_EQ(Parse({"-h"})->action, OptionSet::Action::kPrint);
  EXPECT_EQ(Parse({"--version"})->output, "conclave 1.2.3\n");
}

TEST_F(OptionsTest, L15CheckConfigReadsEverythingAndRunsNothing) {
  EXPECT_EQ(Parse({"--check-config"})->action, OptionSet::Action::kCheckConfig);
  const std::string file = temp_.Write("c.yaml", "threads: 0\n");
  EXPECT_EQ(ReasonOf(Parse({"--check-config", "--config", file}).status()), "config_value");
}

TEST_F(OptionsTest, PrintConfigNamesOrigins) {
  const std::string file = temp_.Write("c.yaml", "\nthreads: 3\n");
  const auto parsed = Parse({"--print-config", "--config", file, "--model", "two words"},
                            {{"CONCLAVE_DTYPE", "f32"}});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->action, OptionSet::Action::kPrint);
  const auto line_of = [&](const std::string& key) {
    const size_t at = parsed->output.find("\n" + key);
    const std::string rest = at == std::string::npos ? "" : parsed->output.substr(at + 1);
    return rest.substr(0, rest.find('\n'));
  };
  EXPECT_THAT(line_of("threads:"), ::testing::MatchesRegex("threads: 3 +# file .*c\\.yaml:2"));
  EXPECT_THAT(line_of("dtype:"), ::testing::MatchesRegex("dtype: f32 +# variable CONCLAVE_DTYPE"));
  EXPECT_THAT(line_of("model:"), ::testing::MatchesRegex("model: \"two words\" +# flag --model"));
  EXPECT_THAT(line_of("listen:"),
              ::testing::MatchesRegex("listen: 127\\.0\\.0\\.1:8000 +# default"));
  EXPECT_THAT(line_of("# kv-memory:"),
              ::testing::MatchesRegex("# kv-memory: \\(a quarter\\) +# default"));
}

TEST_F(OptionsTest, PrintedConfigReadsBackTheSame) {
  const std::string picture = temp_.Write("a \"b\".png", "");
  const std::vector<std::string> args = {"--model",    " odd: #\\\"x", "--listen",      "[::1]:1",
                                         "--image",    picture,        "--temperature", "0.25",
                                         "--insecure", "--kv-memory",  "3GiB"};
  std::vector<std::string> print = args;
  print.emplace_back("--print-config");
  const std::string file = temp_.Write("c.yaml", Parse(print)->output);
  const absl::Status status = Parse({"--config", file}).status();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(s_.model, " odd: #\\\"x");
  EXPECT_EQ(s_.listen, (Address{"::1", 1}));
  EXPECT_THAT(s_.images, ElementsAre(picture));
  EXPECT_EQ(s_.temperature, 0.25);
  EXPECT_TRUE(s_.insecure);
  EXPECT_EQ(s_.kv_memory.bytes, int64_t{3} << 30);
}

TEST_F(OptionsTest, MissingArgumentIsNamed) {
  std::vector<std::string> folders;
  OptionSet set("conclave inspect", "1", "");
  set.AddPositional({.name = "DIR", .help = "", .num_min = 1, .num_max = 1}, &folders);
  EXPECT_EQ(MessageOf(set.Parse({}, {}).status()), "DIR is missing; see conclave inspect --help");
}

TEST_F(OptionsTest, SummaryHasWhatIsSet) {
  ASSERT_TRUE(Parse({"--threads", "9"}).ok());
  EXPECT_THAT(set_.Summary(), HasSubstr("threads=9"));
  EXPECT_THAT(set_.Summary(), Not(HasSubstr("model=")));
}

TEST(OptionsDeathTest, NameDeclaredTwiceIsAMistake) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  int32_t x = 1;
  OptionSet set("c", "1", "");
  set.Add({.name = "x", .help = ""}, &x, {0, 2});
  EXPECT_DEATH(set.Add({.name = "x", .help = ""}, &x, {0, 2}), "broken invariant");
  EXPECT_DEATH(set.Add({.name = "help", .help = ""}, &x, {0, 2}), "broken invariant");
}

TEST(NearestWordTest, FindsTypingErrorsOnly) {
  const std::vector<std::string> words = {"serve", "ask", "inspect"};
  EXPECT_EQ(NearestWord("serv", words), "serve");
  EXPECT_EQ(NearestWord("sevre", words), "serve");
  EXPECT_EQ(NearestWord("inspekt", words), "inspect");
  EXPECT_EQ(NearestWord("version", words), "");
  EXPECT_EQ(NearestWord("", words), "");
  EXPECT_EQ(NearestWord(std::string(100'000, 'x'), words), "");
  EXPECT_EQ(NearestWord("serve", {}), "");
}

TEST(VariableTest, NameFollowsTheFlag) { EXPECT_EQ(VariableOf("kv-memory"), "CONCLAVE_KV_MEMORY"); }

}  // namespace
}  // namespace conclave::service
