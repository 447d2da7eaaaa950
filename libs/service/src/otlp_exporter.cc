#include "conclave/service/otlp_exporter.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/units.h"
#include "otlp_json.h"

namespace conclave::service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using observability::Span;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::string_view kTracesPath = "/v1/traces";
constexpr size_t kReplyBytesMax = size_t{64} << 10;
// How late a POST under way notices that the exporter ends.
constexpr milliseconds kSlice{50};
constexpr std::chrono::minutes kLogPause{1};

// How a POST ended.
struct Outcome {
  enum class What { kTaken, kLater, kRefused };
  What what = What::kLater;
  std::string why;  // for the log
  uint64_t rejected = 0;
  std::optional<std::chrono::seconds> retry_after;
};

Outcome OutcomeOf(const http::response<http::string_body>& reply) {
  const unsigned status = reply.result_int();
  Outcome outcome;
  if (status >= 200 && status < 300) {
    outcome.what = Outcome::What::kTaken;
    outcome.rejected = RejectedSpans(reply.body());
    return outcome;
  }
  outcome.why = "HTTP status " + std::to_string(status);
  const bool is_passing = status == 429 || status == 502 || status == 503 || status == 504;
  outcome.what = is_passing ? Outcome::What::kLater : Outcome::What::kRefused;
  const auto after = reply[http::field::retry_after];
  outcome.retry_after = ParseRetryAfter({after.data(), after.size()});
  return outcome;
}

}  // namespace

absl::StatusOr<ServerUrl> ParseOtlpEndpoint(std::string_view text) {
  std::optional<ServerUrl> url = ParseServerUrl(text, "4318");
  if (!url) {
    const bool is_tls = text.starts_with("https:");
    return InvalidArgument(
        "usage", "--otlp-endpoint: expected http://HOST[:PORT][/PATH]" +
                     std::string(is_tls ? ", without TLS: a collector on this machine can speak "
                                          "it for conclave"
                                        : "") +
                     "; found " + Quoted(text));
  }
  if (!url->path.ends_with(kTracesPath)) {
    url->path += kTracesPath;
  }
  return *std::move(url);
}

struct OtlpExporter::State {
  State(observability::Tracer& t, OtlpExporterOptions o) : tracer(t), options(std::move(o)) {}

  void Loop();
  // All of `spans`, in batches.
  void Send(std::span<const Span> spans);
  void SendBatch(std::span<const Span> batch);
  Outcome Post(const std::string& body, steady_clock::time_point deadline);
  // Runs the loop until what was started is done; false when time is up.
  bool RunUntil(asio::io_context& context, const bool& is_done, steady_clock::time_point deadline);
  bool IsEnding() const { return is_ending.load(std::memory_order_acquire); }
  steady_clock::time_point FlushDeadline() ABSL_LOCKS_EXCLUDED(mu);
  void Pause(milliseconds length) ABSL_LOCKS_EXCLUDED(mu);
  void Say(const std::string& why, size_t spans);

  observability::Tracer& tracer;
  const OtlpExporterOptions options;
  std::atomic<bool> is_ending{false};
  steady_clock::time_point next_log{};
  bool is_failing = false;

  Mutex mu;
  CondVar ending;
  steady_clock::time_point flush_deadline ABSL_GUARDED_BY(mu);

  std::thread thread;  // last
};

steady_clock::time_point OtlpExporter::State::FlushDeadline() {
  MutexLock lock(mu);
  return flush_deadline;
}

void OtlpExporter::State::Pause(milliseconds length) {
  const auto until = steady_clock::now() + length;
  MutexLock lock(mu);
  while (!IsEnding()) {
    const auto left = until - steady_clock::now();
    if (left <= std::chrono::nanoseconds(0)) {
      return;
    }
    ending.WaitFor(mu, left);
  }
}

// A collector that is away is one line a minute, not one per batch.
void OtlpExporter::State::Say(const std::string& why, size_t spans) {
  is_failing = true;
  const auto now = steady_clock::now();
  if (now < next_log) {
    return;
  }
  next_log = now + kLogPause;
  observability::LogWarning("spans were not taken by the collector",
                            {{"collector", options.endpoint.Authority()},
                             {"why", why},
                             {"spans", static_cast<uint64_t>(spans)}});
}

bool OtlpExporter::State::RunUntil(asio::io_context& context, const bool& is_done,
                                   steady_clock::time_point deadline) {
  context.restart();
  while (!is_done) {
    const auto now = steady_clock::now();
    const auto end = IsEnding() ? std::min(deadline, FlushDeadline()) : deadline;
    if (now >= end) {
      return false;
    }
    context.run_one_for(std::min<steady_clock::duration>(kSlice, end - now));
  }
  return true;
}

Outcome OtlpExporter::State::Post(const std::string& body, steady_clock::time_point deadline) {
  asio::io_context context{1};
  tcp::resolver resolver(context);
  beast::tcp_stream stream(context);
  beast::error_code failure;
  // Every operation ends before the next begins; one that is out of time ends with the context.
  const auto run = [&](const auto& start) {
    bool is_done = false;
    start([&](beast::error_code error) {
      failure = error;
      is_done = true;
    });
    return RunUntil(context, is_done, deadline) && !failure;
  };
  const auto failed = [&](const char* what) {
    Outcome outcome;
    outcome.why = std::string(what) + ": " + (failure ? failure.message() : "out of time");
    stream.close();
    resolver.cancel();
    // What was started refers to this frame: it is over before that is left. A name server that
    // does not answer is the one thing that cannot be told to end; the system's own limit does it.
    context.restart();
    context.run();
    return outcome;
  };
  tcp::resolver::results_type addresses;
  if (!run([&](auto done) {
        resolver.async_resolve(options.endpoint.host, options.endpoint.port,
                               [&, done](beast::error_code error, auto results) {
                                 addresses = std::move(results);
                                 done(error);
                               });
      })) {
    return failed("resolve");
  }
  if (!run([&](auto done) {
        stream.async_connect(
            addresses, [done](beast::error_code error, const tcp::endpoint&) { done(error); });
      })) {
    return failed("connect");
  }
  http::request<http::string_body> request(http::verb::post, options.endpoint.path, 11);
  request.set(http::field::host, options.endpoint.Authority());
  request.set(http::field::user_agent, "conclave/" + options.version);
  request.set(http::field::content_type, "application/json");
  request.set(http::field::connection, "close");
  request.body() = body;
  request.prepare_payload();
  if (!run([&](auto done) {
        http::async_write(stream, request,
                          [done](beast::error_code error, size_t) { done(error); });
      })) {
    return failed("write");
  }
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kReplyBytesMax);
  if (!run([&](auto done) {
        http::async_read(stream, buffer, parser,
                         [done](beast::error_code error, size_t) { done(error); });
      })) {
    return failed("read");
  }
  return OutcomeOf(parser.get());
}

void OtlpExporter::State::SendBatch(std::span<const Span> batch) {
  const std::string body = OtlpJson(options.resource, options.version, batch);
  const auto give_up = steady_clock::now() + options.patience;
  milliseconds pause = options.backoff_min;
  while (true) {
    const Outcome outcome = Post(body, steady_clock::now() + options.post_timeout);
    if (outcome.what == Outcome::What::kTaken) {
      const uint64_t rejected = std::min<uint64_t>(outcome.rejected, batch.size());
      tracer.CountExported(batch.size() - rejected);
      tracer.CountFailed(rejected);
      if (rejected > 0) {
        Say("it rejected some of a batch", rejected);
      } else if (std::exchange(is_failing, false)) {
        observability::LogInfo("the collector takes spans again",
                               {{"collector", options.endpoint.Authority()}});
        next_log = {};
      }
      return;
    }
    const milliseconds wait =
        std::max(pause, milliseconds(outcome.retry_after.value_or(std::chrono::seconds(0))));
    Say(outcome.why, batch.size());
    if (outcome.what == Outcome::What::kRefused || IsEnding() ||
        steady_clock::now() + wait > give_up) {
      tracer.CountFailed(batch.size());
      return;
    }
    Pause(wait);
    pause = std::min(2 * pause, options.backoff_max);
  }
}

void OtlpExporter::State::Send(std::span<const Span> spans) {
  while (!spans.empty()) {
    const size_t count = std::min(spans.size(), options.batch_spans_max);
    SendBatch(spans.first(count));
    spans = spans.subspan(count);
  }
}

void OtlpExporter::State::Loop() {
  pthread_setname_np(pthread_self(), "otlp");
  bool is_last = false;
  while (!is_last) {
    // Asked before, so that what came before the end is taken by the last round.
    is_last = IsEnding();
    Send(tracer.Take(is_last ? milliseconds(0) : options.batch_time));
  }
}

OtlpExporter::OtlpExporter(observability::Tracer& tracer, OtlpExporterOptions options)
    : state_(std::make_unique<State>(tracer, std::move(options))) {
  state_->thread = std::thread([state = state_.get()] { state->Loop(); });
}

OtlpExporter::~OtlpExporter() {
  {
    MutexLock lock(state_->mu);
    state_->flush_deadline = steady_clock::now() + state_->options.flush_timeout;
    state_->is_ending.store(true, std::memory_order_release);
    state_->ending.NotifyAll();
  }
  state_->tracer.Wake();
  state_->thread.join();
}

}  // namespace conclave::service
