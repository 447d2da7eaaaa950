// Goal: a caller's trace is taken exactly where the specification says so; what is traced follows
// the caller, else the ratio; the queue is bounded; a request's span ends behind its parts.
// Method: the functions themselves, on good, malformed and random text.
#include "conclave/observability/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <set>
#include <string>
#include <thread>

namespace conclave::observability {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr std::string_view kTrace = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr std::string_view kParent = "00f067aa0ba902b7";

std::string Traceparent(const std::string& version, const std::string& flags) {
  return version + "-" + std::string(kTrace) + "-" + std::string(kParent) + "-" + flags;
}

TEST(TraceContextTest, ReadsWhatCallersSend) {
  const std::optional<TraceContext> context = ParseTraceparent(Traceparent("00", "01"));
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(Hex(context->trace_id), kTrace);
  EXPECT_EQ(Hex(context->span_id), kParent);
  EXPECT_TRUE(context->is_sampled);
  EXPECT_FALSE(ParseTraceparent(Traceparent("00", "00"))->is_sampled);
  // Flags that nobody knows yet are passed over.
  EXPECT_FALSE(ParseTraceparent(Traceparent("00", "fe"))->is_sampled);
  EXPECT_TRUE(ParseTraceparent(Traceparent("00", "ff"))->is_sampled);
}

TEST(TraceContextTest, ALaterVersionIsReadAsFarAsItIsKnown) {
  EXPECT_TRUE(ParseTraceparent(Traceparent("01", "01")).has_value());
  EXPECT_TRUE(ParseTraceparent(Traceparent("fe", "01-what-comes-later")).has_value());
  EXPECT_TRUE(ParseTraceparent(Traceparent("cc", "01-")).has_value());
  EXPECT_FALSE(ParseTraceparent(Traceparent("cc", "01.what")).has_value());
  EXPECT_FALSE(ParseTraceparent(Traceparent("cc", "012")).has_value());
  EXPECT_FALSE(ParseTraceparent(Traceparent("ff", "01")).has_value());
}

TEST(TraceContextTest, RefusesEverythingElse) {
  const std::string good = Traceparent("00", "01");
  for (const std::string& bad : {
           std::string(),
           std::string("00"),
           std::string(55, '0'),
           std::string(55, '-'),
           good + "-",
           good + "0",
           good + "-00",
           " " + good,
           good.substr(1),
           good.substr(0, 54),
           Traceparent("0", "01"),
           Traceparent("0g", "01"),
           Traceparent("00", "0"),
           Traceparent("00", "1"),
           Traceparent("00", "0x"),
           "00-00000000000000000000000000000000-" + std::string(kParent) + "-01",
           "00-" + std::string(kTrace) + "-0000000000000000-01",
           "00-4BF92F3577B34DA6A3CE929D0E0E4736-" + std::string(kParent) + "-01",
           "00-" + std::string(kTrace) + "_" + std::string(kParent) + "-01",
       }) {
    EXPECT_FALSE(ParseTraceparent(bad).has_value()) << bad;
  }
  // Any one character that is changed to something else than a digit makes it none.
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = '\0';
    EXPECT_FALSE(ParseTraceparent(bad).has_value()) << i;
  }
}

TEST(TraceContextTest, WhatItReadsItWouldWriteTheSameWay) {
  constexpr std::string_view kAlphabet = "0123456789abcdefABg-- \0";
  std::mt19937_64 random(1);
  const std::string good = Traceparent("00", "01");
  for (int i = 0; i < 200'000; ++i) {
    std::string text = good;
    const int changes = static_cast<int>(random() % 4);
    for (int c = 0; c < changes; ++c) {
      text[random() % text.size()] = kAlphabet[random() % kAlphabet.size()];
    }
    text.resize(random() % 8 == 0 ? random() % 60 : text.size(), '0');
    const std::optional<TraceContext> context = ParseTraceparent(text);
    if (context.has_value() && text.starts_with("00")) {
      EXPECT_EQ(text.substr(0, 53),
                "00-" + Hex(context->trace_id) + "-" + Hex(context->span_id) + "-");
    }
  }
}

TEST(TraceContextTest, ATracestateIsCarriedOnOrDropped) {
  EXPECT_EQ(CheckedTracestate("vendor=a1, other=b2"), "vendor=a1, other=b2");
  EXPECT_EQ(CheckedTracestate(std::string(512, 'x')).size(), 512u);
  EXPECT_EQ(CheckedTracestate(std::string(513, 'x')), "");
  EXPECT_EQ(CheckedTracestate("vendor=\xc3\xa4"), "");
  EXPECT_EQ(CheckedTracestate(std::string("a\0b", 3)), "");
  EXPECT_EQ(CheckedTracestate("a\nb"), "");
}

class TracerTest : public ::testing::Test {
 protected:
  static TracerOptions Options(double ratio) {
    TracerOptions options;
    options.sample_ratio = ratio;
    options.seed = 7;
    return options;
  }
  static bool IsTraced(Tracer& tracer, const std::string& traceparent) {
    return tracer.StartRequest({traceparent, ""}, "request", steady_clock::now()) != nullptr;
  }
};

TEST_F(TracerTest, TheCallerDecidesForItsOwnTraces) {
  Tracer never(Options(0));
  Tracer always(Options(1));
  EXPECT_TRUE(IsTraced(never, Traceparent("00", "01")));
  EXPECT_FALSE(IsTraced(always, Traceparent("00", "00")));
  for (const char* none : {"", "00-1-1-01"}) {
    EXPECT_FALSE(IsTraced(never, none));
    EXPECT_TRUE(IsTraced(always, none));
  }
}

TEST_F(TracerTest, TheRatioIsKeptAndFollowsFromTheTracesId) {
  constexpr int kRequests = 100'000;
  constexpr double kRatio = 0.25;
  Tracer tracer(Options(kRatio));
  int traced = 0;
  std::set<std::string> ids;
  for (int i = 0; i < kRequests; ++i) {
    if (const auto trace = tracer.StartRequest({}, "request", steady_clock::now())) {
      ++traced;
      ids.insert(Hex(trace->context().trace_id));
      // At least (1 - ratio) · 2^56 in the last seven bytes: the top two bits are set.
      EXPECT_GE(trace->context().trace_id[9], 0xc0);
    }
  }
  EXPECT_EQ(ids.size(), static_cast<size_t>(traced));
  // Five deviations of a binomial distribution.
  EXPECT_NEAR(traced, kRequests * kRatio, 5 * std::sqrt(kRequests * kRatio * (1 - kRatio)));
}

TEST_F(TracerTest, SpanIdsNeverRepeat) {
  Tracer tracer(Options(1));
  std::set<SpanId> ids;
  for (int i = 0; i < 100'000; ++i) {
    const SpanId id = tracer.NewSpanId();
    EXPECT_NE(id, SpanId{});
    ids.insert(id);
  }
  EXPECT_EQ(ids.size(), 100'000u);
}

TEST_F(TracerTest, WhatFindsNoRoomIsDroppedAndCounted) {
  TracerOptions options = Options(1);
  options.queue_spans_max = 10;
  Tracer tracer(options);
  std::vector<Span> spans(7);
  tracer.Add(spans);
  spans.assign(7, Span());
  tracer.Add(spans);
  EXPECT_EQ(tracer.Counts().dropped, 4u);
  EXPECT_EQ(tracer.Take(milliseconds(0)).size(), 10u);
  spans.assign(3, Span());
  tracer.Add(spans);
  EXPECT_EQ(tracer.Take(milliseconds(0)).size(), 3u);
  EXPECT_EQ(tracer.Counts().dropped, 4u);
}

TEST_F(TracerTest, TheExporterIsWokenByABatchAndByTheEnd) {
  TracerOptions options = Options(1);
  options.batch_spans = 5;
  Tracer tracer(options);
  std::vector<Span> few(4);
  tracer.Add(few);
  EXPECT_EQ(tracer.Take(milliseconds(1)).size(), 4u);
  std::thread other([&tracer] {
    std::vector<Span> batch(5);
    tracer.Add(batch);
  });
  EXPECT_EQ(tracer.Take(seconds(30)).size(), 5u);
  other.join();
  tracer.Wake();
  EXPECT_EQ(tracer.Take(seconds(30)).size(), 0u);
}

TEST_F(TracerTest, ARequestsSpanEndsBehindItsPartsWhateverHappensFirst) {
  Tracer tracer(Options(0));
  const MonotonicTime start = steady_clock::now() - seconds(10);
  auto trace = tracer.StartRequest({Traceparent("00", "01"), "vendor=a1"}, "request", start);
  ASSERT_NE(trace, nullptr);
  trace->Set({"key", 1});
  trace->Set({"key", 2});
  trace->Fail("first");
  trace->Fail("second");
  trace->End(start + seconds(1));
  Span child =
      trace->MakeSpan("part", start + seconds(1), start + seconds(3), trace->context().span_id);
  const int64_t child_end = child.end_ns;
  trace->Add(std::move(child));
  trace->Add(trace->MakeSpan("backwards", start + seconds(2), start, trace->context().span_id));
  EXPECT_EQ(tracer.Take(milliseconds(0)).size(), 2u);
  trace.reset();
  const std::vector<Span> spans = tracer.Take(milliseconds(0));
  ASSERT_EQ(spans.size(), 1u);
  const Span& root = spans[0];
  EXPECT_EQ(root.name, "request");
  EXPECT_EQ(root.kind, SpanKind::kServer);
  EXPECT_EQ(Hex(root.trace_id), kTrace);
  EXPECT_EQ(Hex(root.parent_id), kParent);
  EXPECT_EQ(root.trace_state, "vendor=a1");
  EXPECT_TRUE(root.has_remote_parent);
  EXPECT_EQ(root.end_ns, child_end);
  EXPECT_EQ(root.end_ns - root.start_ns, 3'000'000'000);
  ASSERT_EQ(root.attributes.size(), 1u);
  EXPECT_EQ(std::get<int64_t>(root.attributes[0].value), 2);
  EXPECT_EQ(root.error, "first");
}

}  // namespace
}  // namespace conclave::observability
