// Goal: what a collector gets is OTLP to the letter; a collector that is busy, slow, broken or away
// costs its spans and nothing else. Method: the text of one request against the text that the
// protocol asks for; an exporter against a server that answers by script.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/service/otlp_exporter.h"
#include "otlp_json.h"

namespace conclave::service {
namespace {

using observability::Span;
using observability::SpanKind;
using observability::Tracer;
using observability::TracerOptions;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr std::chrono::seconds kPatience{30};

TEST(OtlpJsonTest, IsWhatTheProtocolAsksFor) {
  Span span;
  span.name = "dispatch";
  span.kind = SpanKind::kClient;
  span.trace_id = {0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6,
                   0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36};
  span.id = {0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7};
  span.parent_id = {1, 2, 3, 4, 5, 6, 7, 8};
  span.has_remote_parent = true;
  span.trace_state = "vendor=\"a1\"";
  span.start_ns = 1'700'000'000'000'000'001;
  span.end_ns = 1'700'000'000'000'000'002;
  span.attributes = {{"yes", true},
                     {"number", int64_t{-5}},
                     {"share", 0.25},
                     {"text", "a\nb"},
                     {"list", std::vector<std::string>{"stop", "length"}}};
  span.events.push_back({"token", 1'700'000'000'000'000'001, {{"index", 0}}});
  span.links.push_back({span.trace_id, span.parent_id});
  span.is_error = true;
  span.error = "timeout";
  EXPECT_EQ(
      OtlpJson(std::vector<OtlpResourceField>{{"service.name", "conclave"}}, "1.2.3",
               std::span(&span, 1)),
      R"({"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":)"
      R"({"stringValue":"conclave"}}]},"scopeSpans":[{"scope":{"name":"conclave","version":)"
      R"("1.2.3"},"spans":[{"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","spanId":)"
      R"("00f067aa0ba902b7","traceState":"vendor=\"a1\"","parentSpanId":"0102030405060708",)"
      R"("flags":769,"name":"dispatch","kind":3,"startTimeUnixNano":"1700000000000000001",)"
      R"("endTimeUnixNano":"1700000000000000002","attributes":[{"key":"yes","value":)"
      R"({"boolValue":true}},{"key":"number","value":{"intValue":"-5"}},{"key":"share","value":)"
      R"({"doubleValue":2.5E-1}},{"key":"text","value":{"stringValue":"a\nb"}},{"key":"list",)"
      R"("value":{"arrayValue":{"values":[{"stringValue":"stop"},{"stringValue":"length"}]}}}],)"
      R"("events":[{"timeUnixNano":"1700000000000000001","name":"token","attributes":)"
      R"([{"key":"index","value":{"intValue":"0"}}]}],"links":[{"traceId":)"
      R"("4bf92f3577b34da6a3ce929d0e0e4736","spanId":"0102030405060708"}],"status":{"code":2,)"
      R"("message":"timeout"}}]}]}]})");
}

TEST(OtlpJsonTest, LeavesOutWhatIsNotThere) {
  Span span;
  span.name = "request";
  const std::string text = OtlpJson({}, "", std::span(&span, 1));
  for (const char* key : {"parentSpanId", "traceState", "events", "links", "status"}) {
    EXPECT_EQ(text.find(key), std::string::npos) << key;
  }
  EXPECT_THAT(text, HasSubstr(R"("flags":257,"name":"request","kind":1)"));
}

TEST(OtlpAnswerTest, RejectedSpansAreFoundInEitherForm) {
  EXPECT_EQ(RejectedSpans(R"({"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}})"), 3u);
  EXPECT_EQ(RejectedSpans(R"({"partialSuccess":{"rejectedSpans":4}})"), 4u);
  for (const char* none : {"", "{}", "[]", "nonsense", R"({"partialSuccess":null})",
                           R"({"partialSuccess":{"rejectedSpans":"-3"}})",
                           R"({"partialSuccess":{"rejectedSpans":[1]}})"}) {
    EXPECT_EQ(RejectedSpans(none), 0u) << none;
  }
}

TEST(OtlpAnswerTest, RetryAfterIsANumberOfSeconds) {
  EXPECT_EQ(ParseRetryAfter("7"), seconds(7));
  EXPECT_EQ(ParseRetryAfter("0"), seconds(0));
  EXPECT_EQ(ParseRetryAfter("999999999"), seconds(3600));
  for (const char* none :
       {"", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "99999999999999999999999"}) {
    EXPECT_EQ(ParseRetryAfter(none), std::nullopt) << none;
  }
}

TEST(OtlpEndpointTest, TakesWhatOperatorsWrite) {
  const auto text = [](const char* url) {
    const absl::StatusOr<ServerUrl> parsed = ParseOtlpEndpoint(url);
    return parsed.ok() ? parsed->Authority() + parsed->path : ReasonOf(parsed.status());
  };
  EXPECT_EQ(text("http://collector"), "collector:4318/v1/traces");
  EXPECT_EQ(text("http://collector/"), "collector:4318/v1/traces");
  EXPECT_EQ(text("http://10.0.0.1:80/otlp/"), "10.0.0.1:80/otlp/v1/traces");
  EXPECT_EQ(text("http://[::1]:4318/v1/traces"), "[::1]:4318/v1/traces");
  for (const char* bad :
       {"", "collector", "collector:4318", "ftp://collector", "http://", "http://a b",
        "http://collector:0", "http://collector:70000", "http://user:word@collector",
        "http://collector?x=1", "http://collector#x", "https://collector"}) {
    EXPECT_EQ(text(bad), "usage") << bad;
  }
  EXPECT_THAT(MessageOf(ParseOtlpEndpoint("https://collector").status()), HasSubstr("without TLS"));
}

// Takes one request per connection and answers it by script: a whole HTTP answer, or "" to close
// without a word. When the script is over, 200.
class FakeCollector {
 public:
  explicit FakeCollector(std::vector<std::string> answers) : answers_(std::move(answers)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 16), 0);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    url_.host = "127.0.0.1";
    url_.port = std::to_string(ntohs(address.sin_port));
    url_.path = "/v1/traces";
    thread_ = std::thread([this] { Serve(); });
  }
  ~FakeCollector() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }

  const ServerUrl& url() const { return url_; }

  // The bodies so far, when there are `count` of them.
  std::vector<std::string> WaitForBodies(size_t count) {
    const auto deadline = steady_clock::now() + kPatience;
    MutexLock lock(mu_);
    while (bodies_.size() < count && steady_clock::now() < deadline) {
      changed_.WaitFor(mu_, milliseconds(100));
    }
    return bodies_;
  }
  std::vector<steady_clock::time_point> times() {
    MutexLock lock(mu_);
    return times_;
  }

 private:
  void Serve() {
    while (true) {
      const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (connection < 0) {
        return;
      }
      std::string request;
      std::array<char, 65536> buffer{};
      size_t wanted = std::string::npos;
      while (request.size() < wanted) {
        const ssize_t got = ::recv(connection, buffer.data(), buffer.size(), 0);
        if (got <= 0) {
          break;
        }
        request.append(buffer.data(), static_cast<size_t>(got));
        const size_t head = request.find("\r\n\r\n");
        if (wanted == std::string::npos && head != std::string::npos) {
          const size_t at = request.find("Content-Length: ");
          wanted = head + 4 + std::stoul(request.substr(at + 16));
        }
      }
      std::string answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
      {
        MutexLock lock(mu_);
        if (bodies_.size() < answers_.size()) {
          answer = answers_[bodies_.size()];
        }
        bodies_.push_back(request.substr(std::min(request.size(), request.find("\r\n\r\n") + 4)));
        times_.push_back(steady_clock::now());
        changed_.NotifyAll();
      }
      (void)::send(connection, answer.data(), answer.size(), MSG_NOSIGNAL);
      ::close(connection);
    }
  }

  ServerUrl url_;
  int listener_ = -1;
  const std::vector<std::string> answers_;
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> bodies_ ABSL_GUARDED_BY(mu_);
  std::vector<steady_clock::time_point> times_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // last
};

std::string Status(const std::string& status, const std::string& fields = "") {
  return "HTTP/1.1 " + status + "\r\n" + fields + "Content-Length: 0\r\n\r\n";
}

class OtlpExporterTest : public ::testing::Test {
 protected:
  static OtlpExporterOptions Options(const ServerUrl& endpoint) {
    OtlpExporterOptions options;
    options.endpoint = endpoint;
    options.version = "1.2.3";
    options.batch_time = milliseconds(10);
    options.backoff_min = milliseconds(20);
    options.backoff_max = milliseconds(40);
    options.flush_timeout = milliseconds(500);
    return options;
  }
  void Add(size_t count) {
    std::vector<Span> spans(count);
    for (Span& span : spans) {
      span.name = "part";
    }
    tracer_.Add(spans);
  }
  static size_t NumSpans(const std::string& body) {
    return boost::json::parse(body)
        .at_pointer("/resourceSpans/0/scopeSpans/0/spans")
        .as_array()
        .size();
  }
  // Nobody is told when a counter changes, so it is looked at again and again.
  static bool WaitFor(const std::function<bool()>& condition) {
    const auto deadline = steady_clock::now() + kPatience;
    Mutex mu;
    CondVar never;
    MutexLock lock(mu);
    while (!condition() && steady_clock::now() < deadline) {
      never.WaitFor(mu, milliseconds(1));
    }
    return condition();
  }

  Tracer tracer_{TracerOptions{.sample_ratio = 1, .seed = 1}};
};

TEST_F(OtlpExporterTest, SendsInBatchesAndCounts) {
  FakeCollector collector({});
  OtlpExporter exporter(tracer_, Options(collector.url()));
  Add(1300);
  const std::vector<std::string> bodies = collector.WaitForBodies(3);
  ASSERT_EQ(bodies.size(), 3u);
  EXPECT_EQ(NumSpans(bodies[0]) + NumSpans(bodies[1]) + NumSpans(bodies[2]), 1300u);
  EXPECT_LE(NumSpans(bodies[0]), 512u);
  EXPECT_TRUE(WaitFor([&] { return tracer_.Counts().exported == 1300; }));
}

TEST_F(OtlpExporterTest, TheSameBatchIsSentAgainWhileTheCollectorIsBusy) {
  FakeCollector collector({Status("429 Too Many Requests"), Status("502 Bad Gateway"),
                           Status("503 Service Unavailable"), Status("504 Gateway Timeout"), "",
                           "nonsense\r\n\r\n"});
  OtlpExporter exporter(tracer_, Options(collector.url()));
  Add(3);
  const std::vector<std::string> bodies = collector.WaitForBodies(7);
  ASSERT_EQ(bodies.size(), 7u);
  for (const std::string& body : bodies) {
    EXPECT_EQ(body, bodies[0]);
  }
  EXPECT_TRUE(WaitFor([&] { return tracer_.Counts().exported == 3; }));
  EXPECT_EQ(tracer_.Counts().failed, 0u);
}

TEST_F(OtlpExporterTest, RetryAfterIsWaitedFor) {
  FakeCollector collector({Status("503 Service Unavailable", "Retry-After: 1\r\n")});
  OtlpExporter exporter(tracer_, Options(collector.url()));
  Add(1);
  ASSERT_EQ(collector.WaitForBodies(2).size(), 2u);
  EXPECT_GE(collector.times()[1] - collector.times()[0], seconds(1));
}

TEST_F(OtlpExporterTest, ARefusedBatchIsNotSentAgain) {
  FakeCollector collector({Status("400 Bad Request"), Status("301 Moved Permanently")});
  OtlpExporter exporter(tracer_, Options(collector.url()));
  Add(2);
  ASSERT_TRUE(WaitFor([&] { return tracer_.Counts().failed == 2; }));
  Add(2);
  ASSERT_TRUE(WaitFor([&] { return tracer_.Counts().failed == 4; }));
  Add(2);
  ASSERT_TRUE(WaitFor([&] { return tracer_.Counts().exported == 2; }));
  EXPECT_EQ(collector.WaitForBodies(3).size(), 3u);
}

TEST_F(OtlpExporterTest, WhatACollectorRejectsOfABatchFailed) {
  const std::string body = R"({"partialSuccess":{"rejectedSpans":"2"}})";
  FakeCollector collector(
      {"HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body});
  OtlpExporter exporter(tracer_, Options(collector.url()));
  Add(5);
  EXPECT_TRUE(WaitFor([&] { return tracer_.Counts().exported == 3; }));
  EXPECT_EQ(tracer_.Counts().failed, 2u);
}

TEST_F(OtlpExporterTest, ABacklogForACollectorThatIsAwayIsBounded) {
  ServerUrl nobody{"127.0.0.1", "1", "/v1/traces"};
  OtlpExporterOptions options = Options(nobody);
  options.patience = milliseconds(100);
  {
    OtlpExporter exporter(tracer_, options);
    const auto begin = steady_clock::now();
    for (int i = 0; i < 1000; ++i) {
      Add(100);
    }
    // Nobody waited for the collector.
    EXPECT_LT(steady_clock::now() - begin, seconds(10));
  }
  const observability::TraceCounts counts = tracer_.Counts();
  EXPECT_EQ(counts.exported, 0u);
  EXPECT_GT(counts.dropped, 0u);
  EXPECT_EQ(counts.dropped + counts.failed, 100'000u);
}

TEST_F(OtlpExporterTest, TheEndSendsWhatIsLeft) {
  FakeCollector collector({});
  OtlpExporterOptions options = Options(collector.url());
  options.batch_time = std::chrono::hours(1);
  {
    OtlpExporter exporter(tracer_, options);
    Add(7);
  }
  EXPECT_EQ(tracer_.Counts().exported, 7u);
}

TEST_F(OtlpExporterTest, ACollectorThatSaysNothingDelaysTheEndByTheFlushOnly) {
  // Connections wait in the backlog of its socket; it takes one.
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener, 16), 0);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  const ServerUrl url{"127.0.0.1", std::to_string(ntohs(address.sin_port)), "/v1/traces"};
  steady_clock::time_point begin;
  {
    OtlpExporter exporter(tracer_, Options(url));
    Add(2000);
    ::close(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));  // its first POST has begun
    begin = steady_clock::now();
  }
  EXPECT_LT(steady_clock::now() - begin, seconds(5));
  EXPECT_EQ(tracer_.Counts().failed, 2000u);
  ::close(listener);
}

}  // namespace
}  // namespace conclave::service
