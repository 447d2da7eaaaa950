// Goal: the live picture is what snapshot and deltas say, and nothing wrong gets into it.
// Method: updates as docs/live.md has them, whole and with one field wrong.
#include "live_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "conclave/base/status.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;

const char* const kSnapshot = R"({"schema":1,"seq":7,"time":100.5,"role":"router","version":"0.1.0",
"model":{"name":"demo","top_k":2,"dtype":"bf16","layers":[{"layer":0,"experts":2},{"layer":2,"experts":1}],"image":null},
"cluster":{"epoch":4294967338,"term":1,"state":"serving","blocked":"","experts_served":3,"experts_total":3,
"replicas_wanted":2,"replicas_lowest":1,"imbalance_planned":1.02,"imbalance_seen":1.31,"plan":0},
"workers":[{"id":0,"name":"w0","state":"live","experts":3,"loading":0,"memory":1024,"memory_used":512,"busy":0.5,
"queue":2,"rows_per_second":12.5,"is_distrusted":false,"call_seconds":[1,2,0]},{"id":1,"name":"w1","state":"live"}],
"frontends":[{"id":65536,"name":"f0","running":2,"waiting":1}],
"rows":[0,0,0,0,0,0,0,0,10,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],
"serving":{"prompt_text":5,"prompt_image":6,"generated":7,"ttft":[1,0],"itl":[0,1]},
"bounds":{"call_seconds":[0.1,1],"ttft":[0.1],"itl":[0.1],"recovery":[1]},
"events":[{"id":1,"time":99,"kind":"joined","worker":0,"name":"w0","text":"joined\u001b[2J \u00e9"}],
"pathways":{"layers":[]},"admin":{"is_enabled":false}})";

LiveState Snapshot() {
  LiveState state;
  const absl::Status status = state.Apply("snapshot", kSnapshot);
  EXPECT_TRUE(status.ok()) << status;
  return state;
}

TEST(LiveStateTest, ASnapshotIsRead) {
  const LiveState state = Snapshot();
  EXPECT_TRUE(state.has_snapshot());
  EXPECT_EQ(state.seq, 7);
  EXPECT_EQ(state.model, "demo");
  ASSERT_EQ(state.layers.size(), 2);
  EXPECT_EQ(state.layers[1].layer, 2);
  EXPECT_EQ(state.cluster.imbalance_seen, 1.31);
  ASSERT_EQ(state.workers.size(), 2);
  EXPECT_EQ(state.workers.at(0).queue, 2);
  EXPECT_EQ(state.running, 2);
  EXPECT_EQ(state.waiting, 1);
  EXPECT_EQ(state.rows[8], 10);
  EXPECT_EQ(state.serving.generated, 7);
  ASSERT_EQ(state.events.size(), 1);
  EXPECT_EQ(state.events[0].text.find('\x1b'), std::string::npos) << "it goes to a terminal";
  EXPECT_TRUE(state.events[0].text.ends_with(" ??")) << "a byte is a column";
  EXPECT_EQ(state.earlier(), nullptr);
}

TEST(LiveStateTest, ADeltaChangesWhatItNames) {
  LiveState state = Snapshot();
  ASSERT_TRUE(state
                  .Apply("delta", R"({"seq":8,"time":101.5,"rows":[8,25,0,3],"workers_gone":[1],
"workers":[{"id":0,"name":"w0","state":"suspect","busy":0.25}],"serving":{"generated":17},
"events":[{"id":2,"time":101,"kind":"suspect","name":"w0","text":"silent"}]})")
                  .ok());
  EXPECT_EQ(state.rows[8], 25);
  EXPECT_EQ(state.rows[0], 3);
  EXPECT_EQ(state.workers.size(), 1);
  EXPECT_EQ(state.workers.at(0).state, "suspect");
  EXPECT_EQ(state.cluster.state, "serving");
  EXPECT_EQ(state.events.size(), 2);
  ASSERT_NE(state.earlier(), nullptr);
  EXPECT_EQ(state.earlier()->time, 100.5);
  EXPECT_EQ(state.earlier()->serving.generated, 7);
  // Rates go back ten seconds and no further.
  for (int i = 0; i < 30; ++i) {
    const std::string number = std::to_string(9 + i);
    ASSERT_TRUE(
        state.Apply("delta", "{\"seq\":" + number + ",\"time\":" + std::to_string(102.5 + i) + "}")
            .ok());
  }
  EXPECT_DOUBLE_EQ(state.time - state.earlier()->time, 10);
}

TEST(LiveStateTest, AGapAsksForASnapshot) {
  LiveState state = Snapshot();
  EXPECT_EQ(ReasonOf(state.Apply("delta", R"({"seq":9,"time":1})")), "live_gap");
  EXPECT_EQ(ReasonOf(state.Apply("delta", R"({"seq":7,"time":1})")), "live_gap");
  EXPECT_TRUE(state.Apply("snapshot", kSnapshot).ok());
  EXPECT_TRUE(state.Apply("comment", "anything").ok());
  LiveState empty;
  EXPECT_EQ(ReasonOf(empty.Apply("delta", R"({"seq":1})")), "live_update");
}

TEST(LiveStateTest, AWrongFieldIsNamedAndChangesNothing) {
  const std::pair<const char*, const char*> cases[] = {
      {"no JSON", "expected an object"},
      {"[]", "expected an object"},
      {R"({"time":1})", "seq: expected a number"},
      {R"({"seq":8,"time":"now"})", "time: expected a number"},
      {R"({"seq":8,"time":1e999})", "expected"},
      {R"({"seq":8,"workers":[{"name":"w"}]})", "workers[0].id: expected 0 to 2147483647"},
      {R"({"seq":8,"workers":[{"id":0,"busy":"much"}]})", "workers[0].busy: expected a number"},
      {R"({"seq":8,"workers":{}})", "workers: expected a list"},
      {R"({"seq":8,"rows":[24,1]})", "rows: expected indices below 24"},
      {R"({"seq":8,"rows":[1]})", "rows: expected pairs"},
      {R"({"seq":8,"rows":[-1,1]})", "rows: expected numbers"},
      {R"({"seq":8,"model":{"name":"m","layers":[{"layer":0,"experts":0}]}})",
       "model.layers[0]: expected a layer"},
      {R"({"seq":8,"cluster":[]})", "cluster: expected an object"},
      {R"({"seq":8,"bounds":{"ttft":[2,1]}})", "bounds: expected ascending bounds"},
      {R"({"seq":8,"events":[1]})", "events[0]: expected an object"},
  };
  for (const auto& [json, expected] : cases) {
    LiveState state = Snapshot();
    const absl::Status status = state.Apply("delta", json);
    EXPECT_EQ(ReasonOf(status), "live_update") << json;
    EXPECT_THAT(MessageOf(status), HasSubstr(expected)) << json;
    EXPECT_EQ(state.seq, 7) << json;
    EXPECT_EQ(state.workers.at(0).busy, 0.5) << json;
  }
  LiveState state;
  EXPECT_THAT(MessageOf(state.Apply("snapshot", R"({"schema":2,"seq":1})")),
              HasSubstr("schema: expected 1"));
  EXPECT_THAT(MessageOf(state.Apply("snapshot", R"({"seq":1,"rows":[1]})")),
              HasSubstr("rows: expected 0 of them"));
}

TEST(LiveStateTest, AModelMayComeLater) {
  LiveState state;
  ASSERT_TRUE(state.Apply("snapshot", R"({"seq":1,"time":1,"model":null,"rows":[]})").ok());
  EXPECT_TRUE(state.layers.empty());
  ASSERT_TRUE(state
                  .Apply("delta", R"({"seq":2,"time":2,"rows":[15,4],
"model":{"name":"m","layers":[{"layer":3,"experts":2}]}})")
                  .ok());
  EXPECT_EQ(state.rows.size(), 16);
  EXPECT_EQ(state.rows[15], 4);
}

}  // namespace
}  // namespace conclave::cli
