// Goal: a frame shows what the state holds, fits its window whatever that is, and its keys are read
// right however the bytes come.
// Method: golden frames of a made-up cluster; every size; every way to cut the keys.
#include "top_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "terminal.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Two moments, ten seconds apart.
LiveState Sample(int32_t num_experts = 4) {
  LiveState state;
  std::string layers;
  std::string rows;
  std::string later;
  for (int l = 0; l < 2; ++l) {
    layers += std::string(l > 0 ? "," : "") + R"({"layer":)" + std::to_string(2 * l) +
              R"(,"experts":)" + std::to_string(num_experts) + "}";
    for (int e = 0; e < num_experts; ++e) {
      const int unit = l * num_experts + e;
      // Prefill of images: all of expert 0; decode of text: more for higher experts.
      later += std::string(unit > 0 ? "," : "") + std::to_string(unit * 8 + 2) + "," +
               std::to_string(100 + 100 * e);
      if (e == 0) {
        later += "," + std::to_string(unit * 8 + 1) + ",800";
      }
      for (int kind = 0; kind < 8; ++kind) {
        rows += std::string(unit + kind > 0 ? "," : "") + (kind == 2 ? "100" : "0");
      }
    }
  }
  const absl::Status first = state.Apply("snapshot", R"({"schema":1,"seq":1,"time":1764526391,
"role":"router","model":{"name":"demo","layers":[)" + layers +
                                                         R"(]},
"cluster":{"epoch":12884901900,"term":3,"state":"serving","blocked":"","experts_served":8,"experts_total":8,
"replicas_wanted":2,"replicas_lowest":1,"imbalance_planned":1.02,"imbalance_seen":1.31,"plan":5},
"workers":[{"id":0,"name":"w0","state":"live","experts":6,"loading":2,"memory":1073741824,"memory_used":536870912,
"busy":0.71,"queue":12,"rows_per_second":1234.5,"call_seconds":[100,0,0]},
{"id":1,"name":"a-rather-long-name","state":"suspect","busy":1,"memory":4294967296,"call_seconds":[0,0,0]}],
"frontends":[{"running":3,"waiting":1}],"rows":[)" + rows +
                                                         R"(],
"serving":{"prompt_text":0,"prompt_image":0,"cached":0,"generated":0,"ttft":[0,0],"itl":[0,0]},
"bounds":{"call_seconds":[0.001,0.01],"ttft":[0.5],"itl":[0.02]},
"events":[{"id":1,"time":1764526380,"kind":"joined","name":"w0","text":"on host a"}]})");
  EXPECT_TRUE(first.ok()) << first;
  const absl::Status second =
      state.Apply("delta", R"({"seq":2,"time":1764526401,"rows":[)" + later +
                               R"(],
"workers":[{"id":0,"call_seconds":[100,100,0]}],
"serving":{"prompt_text":20000,"prompt_image":5,"cached":0,"generated":120,"ttft":[4,0],"itl":[100,0]},
"events":[{"id":2,"time":1764526400,"kind":"suspect","name":"a-rather-long-name","text":"no heartbeat"}]})");
  EXPECT_TRUE(second.ok()) << second;
  return state;
}

std::vector<std::string> LinesOf(const std::string& frame) {
  std::vector<std::string> lines(1);
  for (const char c : frame) {
    if (c == '\n') {
      lines.emplace_back();
    } else {
      lines.back() += c;
    }
  }
  return lines;
}

// Columns without what sets colours.
size_t WidthOf(const std::string& line) {
  size_t width = 0;
  bool is_escape = false;
  for (const char c : line) {
    if (c == '\x1b') {
      is_escape = true;
    } else if (is_escape) {
      is_escape = c != 'm';
    } else {
      ++width;
    }
  }
  return width;
}

TEST(TopFrameTest, Golden) {
  EXPECT_EQ(Frame(Sample(), 100, 0, {}),
            R"(conclave top  router demo  epoch 3.12  serving
experts 8/8 served  replicas 1 of 2  imbalance 1.31 seen, 1.02 planned  moving experts
tokens/s: prompt 2.0k text, 0.5 image; cached 0; generated 12
p50/p99: first token 250ms/495ms, next 10ms/20ms  frontends 1, running 3, waiting 1

WORKER           STATE      BUSY            QUEUE ROWS/S    P99 EXPERTS MEMORY
w0               live       #######...  71%    12   1.2k  9.9ms     6+2 512M/1.0G
a-rather-long-na suspect    ########## 100%     0      0      -       0 0M/4.0G

EXPERTS  part of the layer's rows over a fair part: all tokens, prefill and decode
LAYER     0    1    2    3
0      2.29 0.29 0.57 0.86
2      2.29 0.29 0.57 0.86

18:13:00  joined          w0  on host a
18:13:20  suspect         a-rather-long-name  no heartbeat
)");
}

TEST(TopFrameTest, ShowsTheRowsThatWereChosen) {
  const LiveState state = Sample();
  TopOptions options;
  options.modality = TopModality::kImage;
  EXPECT_THAT(Frame(state, 100, 0, options), HasSubstr("0      4.00 0.00 0.00 0.00\n"));
  options.phase = TopPhase::kDecode;
  EXPECT_THAT(Frame(state, 100, 0, options), HasSubstr("fair part: images, decode\n"));
  EXPECT_THAT(Frame(state, 100, 0, options), HasSubstr("0         -    -    -    -\n"));
  options.modality = TopModality::kText;
  EXPECT_THAT(Frame(state, 100, 0, options), HasSubstr("0      0.00 0.67 1.33 2.00\n"));
  options.phase = TopPhase::kPrefill;
  EXPECT_THAT(Frame(state, 100, 0, options), HasSubstr("0         -    -    -    -\n"));
}

TEST(TopFrameTest, FitsEveryWindow) {
  const LiveState state = Sample(40);
  for (const TopColor color : {TopColor::kNone, TopColor::k256, TopColor::kTrue}) {
    TopOptions options;
    options.color = color;
    options.first_expert = 17;
    options.first_layer = 1;
    for (int32_t width = 1; width < 130; width += 3) {
      for (int32_t height = 1; height < 30; ++height) {
        for (const bool is_help : {false, true}) {
          options.is_help = is_help;
          const std::vector<std::string> lines = LinesOf(Frame(state, width, height, options));
          ASSERT_EQ(lines.size(), height) << width;
          for (const std::string& line : lines) {
            ASSERT_LE(WidthOf(line), width) << line;
            ASSERT_TRUE(color != TopColor::kNone || line.find('\x1b') == std::string::npos);
            // What sets a colour takes it back.
            ASSERT_TRUE(line.find('\x1b') == std::string::npos || line.ends_with("\x1b[0m") ||
                        line.rfind("\x1b[0m") == line.rfind('\x1b'))
                << line;
          }
        }
      }
    }
  }
}

TEST(TopFrameTest, MovesOverALargeModel) {
  TopOptions options;
  const LiveState state = Sample(40);
  const std::string start = Frame(state, 60, 24, options);
  EXPECT_THAT(start, HasSubstr("LAYER     0    1    2"));
  EXPECT_THAT(start, HasSubstr(" >"));
  options.first_expert = 8;
  EXPECT_THAT(Frame(state, 60, 24, options), HasSubstr("LAYER     8    9   10"));
  options.first_expert = 1000;
  EXPECT_THAT(Frame(state, 60, 24, options), HasSubstr("   38   39\n")) << "as far as it goes";
  options.first_layer = 1;
  EXPECT_THAT(Frame(state, 60, 13, options), Not(HasSubstr("\n0   ")));
}

TEST(TopFrameTest, ColoursAreOfTheTerminal) {
  TopOptions options;
  EXPECT_THAT(Frame(Sample(), 100, 24, options), Not(HasSubstr("\x1b")));
  options.color = TopColor::k256;
  EXPECT_THAT(Frame(Sample(), 100, 24, options), HasSubstr("\x1b[38;5;15;48;5;196m 2.29\x1b[0m"));
  options.color = TopColor::kTrue;
  EXPECT_THAT(Frame(Sample(), 100, 24, options), HasSubstr("48;2;220;40;40m 2.29\x1b[0m"));
}

TEST(TopFrameTest, SaysWhatIsMissing) {
  LiveState state;
  ASSERT_TRUE(state
                  .Apply("snapshot", R"({"seq":1,"time":1,"model":null,"cluster":
{"state":"recovering","blocked":"state_write_failed"}})")
                  .ok());
  const std::string frame = Frame(state, 100, 0, {});
  EXPECT_THAT(frame, HasSubstr("recovering  blocked: state_write_failed"));
  EXPECT_THAT(frame, HasSubstr("no member has said yet what the model is"));
  EXPECT_THAT(frame, HasSubstr("prompt - text"));
  EXPECT_THAT(frame, HasSubstr("none"));
  TopOptions options;
  options.trouble = "error: connect: gone";
  EXPECT_THAT(Frame(state, 100, 24, options), HasSubstr("error: connect: gone"));
  options.is_help = true;
  EXPECT_THAT(Frame(state, 100, 24, options), HasSubstr("q         quit"));
}

TEST(TopFrameTest, PercentilesAreLinearWithinABucket) {
  EXPECT_EQ(Percentile({0, 0}, {1}, 0.5), -1);
  EXPECT_EQ(Percentile({}, {}, 0.5), -1);
  EXPECT_EQ(Percentile({10, 0}, {2}, 0.5), 1);
  EXPECT_DOUBLE_EQ(Percentile({1, 1, 0}, {1, 3}, 0.75), 2);
  EXPECT_EQ(Percentile({1, 1, 98}, {1, 3}, 0.99), 3) << "beyond all bounds";
}

TEST(KeyReaderTest, AnyCutGivesTheSameKeys) {
  const std::string bytes = "q\x1b[A\x1bOB\x1b[1;2C\x1b[Dx\x1b[5~\x03\x1a?";
  const std::vector<std::pair<Key, char>> expected = {
      {Key::kOther, 'q'}, {Key::kUp, 0},  {Key::kDown, 0},    {Key::kRight, 0},  {Key::kLeft, 0},
      {Key::kOther, 'x'}, {Key::kEnd, 0}, {Key::kSuspend, 0}, {Key::kOther, '?'}};
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    KeyReader reader;
    std::vector<std::pair<Key, char>> keys;
    for (size_t at = 0; at < bytes.size(); at += piece) {
      for (const KeyPress& press : reader.Feed(std::string_view(bytes).substr(at, piece))) {
        keys.emplace_back(press.key, press.letter);
      }
    }
    ASSERT_EQ(keys, expected) << piece;
  }
}

}  // namespace
}  // namespace conclave::cli
