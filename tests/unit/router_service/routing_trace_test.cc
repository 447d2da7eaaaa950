// Goal: a recording reads as what was written, whole or cut, and nothing else is taken for one; the
// core records what its workers say and what it places, within its memory.
// Method: files made by the encoder, then every prefix and every changed byte of one; a core with
// made-up workers and time.
#include "conclave/router_service/routing_trace.h"

#include <span>

#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "core_driver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

using std::chrono::microseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TraceHead Head() {
  TraceHead head;
  head.started_unix_us = 1'764'526'391'250'000;
  head.model = {"0123456789abcdef", 64, 2};
  head.replication = 2;
  head.layers = {{LayerId(1), 4}, {LayerId(3), 300}};
  head.replicas[Unit(3, 299)] = 3;
  head.pins = {{Unit(1, 2), "w0"}};
  return head;
}

TraceWorker Made(int32_t id, const std::string& name) {
  return {WorkerId(id), name, "host-" + name, 1.5, int64_t{1} << 30, 1 << 20, true};
}

TracePlacement Everything(const TraceHead& head, std::vector<WorkerId> workers) {
  TracePlacement placement;
  for (const MoeLayer& layer : head.layers) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      placement.changed.push_back({{layer.layer, ExpertId(e)}, workers});
    }
  }
  return placement;
}

std::string Sample() {
  const TraceHead head = Head();
  const TraceEncoder encoder(head.layers);
  TraceWorker second = Made(7, "w7");
  second.takes_experts = false;
  return TraceStart(head) + encoder.Workers({Made(0, "w0"), second}) +
         encoder.Placement(Everything(head, {WorkerId(7), WorkerId(0)})) +
         encoder.Window(microseconds(1'000'123), {{Unit(3, 299), {1, 0, uint64_t{1} << 40, 0}},
                                                  {Unit(1, 0), {0, 0, 0, 300}},
                                                  {Unit(3, 299), {1, 0, 0, 0}},
                                                  {Unit(2, 0), {5, 5, 5, 5}},
                                                  {Unit(1, 1), {0, 0, 0, 0}}}) +
         encoder.Workers({Made(0, "w0")}) +
         encoder.Placement({{{Unit(1, 3), {WorkerId(0)}}, {Unit(3, 0), {}}}}) +
         encoder.Window(microseconds(999'000), {}) + encoder.End(TraceEnd::kStopped);
}

TEST(RoutingTraceTest, ReadsWhatWasWritten) {
  const auto trace = ReadTrace(Sample());
  ASSERT_TRUE(trace.ok()) << trace.status();
  const TraceHead wanted = Head();
  EXPECT_EQ(trace->head.started_unix_us, wanted.started_unix_us);
  EXPECT_EQ(trace->head.model, wanted.model);
  EXPECT_EQ(trace->head.replicas, wanted.replicas);
  EXPECT_EQ(trace->head.pins, wanted.pins);
  ASSERT_EQ(trace->head.layers.size(), 2);
  EXPECT_EQ(trace->head.layers[1].num_experts, 300);
  EXPECT_EQ(trace->end, TraceEnd::kStopped);
  ASSERT_EQ(trace->records.size(), 6);
  const auto& workers = std::get<TraceWorkers>(trace->records[0]).workers;
  ASSERT_EQ(workers.size(), 2);
  EXPECT_EQ(workers[0], Made(0, "w0"));
  EXPECT_FALSE(workers[1].takes_experts);
  EXPECT_EQ(std::get<TracePlacement>(trace->records[1]).changed.size(), 304);
  const auto& window = std::get<TraceWindow>(trace->records[2]);
  EXPECT_EQ(window.length, microseconds(1'000'123));
  // Ascending, twins added up within the limit, what the layers lack and zeros left out.
  ASSERT_EQ(window.rows.size(), 2);
  EXPECT_EQ(window.rows[0].unit, Unit(1, 0));
  EXPECT_THAT(window.rows[0].rows, ElementsAre(0, 0, 0, 300));
  EXPECT_EQ(window.rows[1].unit, Unit(3, 299));
  EXPECT_THAT(window.rows[1].rows, ElementsAre(2, 0, uint64_t{1} << 40, 0));
  const auto& changed = std::get<TracePlacement>(trace->records[4]).changed;
  ASSERT_EQ(changed.size(), 2);
  EXPECT_EQ(changed[0].first, Unit(1, 3));
  EXPECT_THAT(changed[0].second, ElementsAre(WorkerId(0)));
  EXPECT_TRUE(changed[1].second.empty());
}

TEST(RoutingTraceTest, ACutFileGivesItsWholeParts) {
  const std::string whole = Sample();
  size_t most = 0;
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto trace = ReadTrace(whole.substr(0, length));
    if (!trace.ok()) {
      // Only where not even the head is there.
      EXPECT_EQ(most, 0) << length;
      EXPECT_EQ(ReasonOf(trace.status()), "trace_corrupt");
      continue;
    }
    EXPECT_EQ(trace->end, TraceEnd::kCut);
    EXPECT_GE(trace->records.size(), most);
    most = trace->records.size();
  }
  EXPECT_EQ(most, 6);
}

TEST(RoutingTraceTest, AChangedByteIsFound) {
  const std::string whole = Sample();
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x40);
    const auto trace = ReadTrace(changed);
    // A length that points behind the file reads as a cut one; nothing reads as the whole one.
    EXPECT_TRUE(!trace.ok() || trace->end == TraceEnd::kCut) << at;
  }
}

TEST(RoutingTraceTest, RefusesWhatNoRecordingHolds) {
  const TraceHead head = Head();
  const TraceEncoder encoder(head.layers);
  const std::string start = TraceStart(head);
  const std::string workers = encoder.Workers({Made(0, "w0")});
  const std::string placement = encoder.Placement(Everything(head, {WorkerId(0)}));
  const std::string window = encoder.Window(microseconds(1), {});
  ASSERT_TRUE(ReadTrace(start + workers + placement + window).ok());
  TraceWorker slow = Made(1, "w1");
  slow.speed = 0;
  TraceWorker renamed = Made(0, "other");
  const std::pair<const char*, std::string> cases[] = {
      {"nothing", ""},
      {"no head", "CNCLVRT1" + workers},
      {"two heads", start + start.substr(8)},
      {"a window before workers", start + window},
      {"a placement before workers", start + placement},
      {"a placement of a part", start + workers + encoder.Placement({{{Unit(1, 0), {}}}})},
      {"an unknown worker", start + workers + encoder.Placement(Everything(head, {WorkerId(1)}))},
      {"a worker twice",
       start + workers + encoder.Placement(Everything(head, {WorkerId(0), WorkerId(0)}))},
      {"one name twice", start + encoder.Workers({Made(0, "w0"), Made(1, "w0")})},
      {"ids that fall", start + encoder.Workers({Made(1, "w1"), Made(0, "w0")})},
      {"another name for an id", start + workers + encoder.Workers({renamed})},
      {"no speed", start + encoder.Workers({slow})},
      {"something behind the end",
       start + workers + placement + encoder.End(TraceEnd::kStopped) + window},
      {"half a part behind the end", start + workers + encoder.End(TraceEnd::kStopped) + "x"},
      {"no layers", TraceStart({})},
  };
  for (const auto& [what, bytes] : cases) {
    const auto trace = ReadTrace(bytes);
    ASSERT_FALSE(trace.ok()) << what;
    EXPECT_EQ(ReasonOf(trace.status()), "trace_corrupt") << what;
    EXPECT_THAT(MessageOf(trace.status()), HasSubstr("byte ")) << what;
  }
}

// A length that is as long as what is left with the length itself was once taken for text.
TEST(RoutingTraceTest, TextEndsWithItsPart) {
  TraceHead head = Head();
  head.pins = {{Unit(1, 0), "a"}};
  std::string file = TraceStart(head);
  const std::string body = file.substr(12, file.size() - 12 - 5);  // type and body but the "a"
  std::string cut = file.substr(0, 8);
  for (size_t i = 0; i < 4; ++i) {
    cut.push_back(static_cast<char>((body.size() - 1) >> (8 * i)));
  }
  cut += body;
  const uint32_t crc = Crc32c(std::as_bytes(std::span(body.data(), body.size())));
  for (size_t i = 0; i < 4; ++i) {
    cut.push_back(static_cast<char>(crc >> (8 * i)));
  }
  EXPECT_EQ(ReasonOf(ReadTrace(cut).status()), "trace_corrupt");
  EXPECT_THAT(MessageOf(ReadTrace(cut).status()), HasSubstr("holds what a recording does not"));
}

std::string FileOf(const Recording& recording) {
  std::string file;
  for (const auto& piece : recording.pieces) {
    file += *piece;
  }
  return file;
}

class RecordingTest : public ::testing::Test {
 protected:
  explicit RecordingTest(CoreOptions options = CoreDriver::Defaults())
      : driver_(std::move(options)) {}

  void Start(int num_workers) {
    for (int w = 0; w < num_workers; ++w) {
      driver_.Join(driver_.Add("w" + std::to_string(w)));
    }
    driver_.Run(milliseconds(5000));
  }
  void SendRows(const std::string& worker, ExpertUnit unit, uint64_t rows) {
    LoadEvent event;
    event.session = *driver_.workers.at(worker).session;
    event.seq = ++seq_;
    event.experts = {{unit, {rows, 0, 0, 1}}};
    driver_.Send(event);
  }
  RoutingTrace Read() {
    const auto recording = driver_.core().CurrentRecording();
    EXPECT_TRUE(recording.ok()) << recording.status();
    const auto trace = ReadTrace(FileOf(*recording));
    EXPECT_TRUE(trace.ok()) << trace.status();
    return trace.value_or(RoutingTrace{});
  }

  CoreDriver driver_;
  uint64_t seq_ = 0;
};

TEST_F(RecordingTest, HasTheRowsAndWhoCameAndWent) {
  Start(3);
  EXPECT_EQ(ReasonOf(driver_.core().CurrentRecording().status()), "no_recording");
  EXPECT_EQ(ReasonOf(driver_.Ask(RecordCommand{false, 0}).status), "no_recording");
  EXPECT_FALSE(driver_.Status().recording.has_value());
  SendRows("w0", Unit(1, 0), 1000);  // before it begins
  EXPECT_TRUE(driver_.Ask(RecordCommand{true, 5}).recording.is_recording);
  SendRows("w0", Unit(1, 0), 10);
  driver_.Run(milliseconds(2500));
  SendRows("w1", Unit(1, 0), 20);
  EXPECT_EQ(driver_.Ask(RecordCommand{true, 9}).recording.rows, 11 + 21) << "it goes on";
  EXPECT_EQ(Read().end, TraceEnd::kGoesOn);
  driver_.Kill(driver_.workers.at("w2"));
  driver_.Run(milliseconds(3000));
  const RecordingStatus status = driver_.Ask(RecordCommand{false, 0}).recording;
  EXPECT_FALSE(status.is_recording || status.is_full);
  SendRows("w1", Unit(1, 0), 7);  // after its end

  const RoutingTrace trace = Read();
  EXPECT_EQ(trace.end, TraceEnd::kStopped);
  EXPECT_EQ(trace.head.started_unix_us, 5);
  uint64_t rows = 0;
  uint64_t windows = 0;
  microseconds length{0};
  size_t num_workers = 0;
  std::map<ExpertUnit, std::vector<WorkerId>> placement;
  for (const auto& record : trace.records) {
    if (const auto* window = std::get_if<TraceWindow>(&record)) {
      ++windows;
      length += window->length;
      for (const ExpertRows& expert : window->rows) {
        EXPECT_EQ(expert.unit, Unit(1, 0));
        rows += expert.rows[0] + expert.rows[3];
      }
    } else if (const auto* workers = std::get_if<TraceWorkers>(&record)) {
      num_workers = workers->workers.size();
    } else {
      for (const auto& [unit, ids] : std::get<TracePlacement>(record).changed) {
        placement[unit] = ids;
      }
    }
  }
  EXPECT_EQ(rows, 11 + 21);
  EXPECT_EQ(status.rows, rows);
  EXPECT_EQ(status.windows, windows);
  EXPECT_GE(length, microseconds(5'700'000));  // to the stop, not to the last whole second
  EXPECT_LE(length, microseconds(6'000'000));
  EXPECT_EQ(num_workers, 2);
  for (const ExpertStatus& expert : driver_.Status().experts) {
    EXPECT_EQ(placement[expert.unit], expert.workers);
  }
  ASSERT_TRUE(driver_.Status().recording.has_value());
  EXPECT_EQ(driver_.Status().recording->bytes, FileOf(*driver_.core().CurrentRecording()).size());
}

TEST_F(RecordingTest, NeedsAModelAndNoWorkers) {
  driver_.Run(milliseconds(100));
  EXPECT_EQ(ReasonOf(driver_.Ask(RecordCommand{true, 0}).status), "recording_model");
  CoreOptions options = CoreDriver::Defaults();
  options.model = {"0123456789abcdef", 64, 2};
  options.layers = {{LayerId(1), 4}};
  CoreDriver empty(options);
  EXPECT_TRUE(empty.Ask(RecordCommand{true, 0}).status.ok());
  empty.Run(milliseconds(3000));
  const auto trace = ReadTrace(FileOf(*empty.core().CurrentRecording()));
  ASSERT_TRUE(trace.ok()) << trace.status();
}

class FullRecordingTest : public RecordingTest {
 protected:
  static CoreOptions Options() {
    CoreOptions options = CoreDriver::Defaults();
    options.recording_bytes_max = 600;
    return options;
  }
  FullRecordingTest() : RecordingTest(Options()) {}
};

TEST_F(FullRecordingTest, StopsAndKeepsWhatItHas) {
  Start(2);
  ASSERT_TRUE(driver_.Ask(RecordCommand{true, 0}).status.ok());
  for (int i = 0; i < 60; ++i) {
    SendRows("w0", Unit(1, 0), 10);
    driver_.Run(milliseconds(1000));
  }
  const RecordingStatus status = *driver_.Status().recording;
  EXPECT_TRUE(status.is_full);
  EXPECT_FALSE(status.is_recording);
  EXPECT_LE(status.bytes, 600);
  const RoutingTrace trace = Read();
  EXPECT_EQ(trace.end, TraceEnd::kFull);
  EXPECT_GT(trace.records.size(), 5);
  // The next one begins with nothing.
  EXPECT_EQ(driver_.Ask(RecordCommand{true, 0}).recording.rows, 0);
  EXPECT_FALSE(driver_.Status().recording->is_full);
}

}  // namespace
}  // namespace conclave::router_service
