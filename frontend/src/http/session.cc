#include "http/session.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <exception>
#include <optional>
#include <utility>

#include "conclave/observability/trace.h"
#include "http/session_guards.h"

namespace conclave::frontend {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
constexpr size_t kReadBytes = 4 << 10;
// What fits besides a head: pipelined requests, and one read of a body.
constexpr size_t kBufferSlackBytes = 64 << 10;
constexpr std::chrono::milliseconds kExpiryRepeat{100};
// A second more for a body per this many bytes.
constexpr int64_t kBodyBytesPerSecond = 64 << 10;

std::string_view View(const beast::flat_buffer& buffer) {
  return {static_cast<const char*>(buffer.data().data()), buffer.size()};
}

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

HttpError BodyError(const error_code& ec, bool is_chunked, int64_t body_bytes_max) {
  if (ec == http::error::body_limit) {
    return BodyTooLarge(body_bytes_max);
  }
  if (ec == http::error::partial_message || ec == http::error::end_of_stream ||
      ec == asio::error::eof) {
    return {400, "body_truncated", "request body: ends before its length", ""};
  }
  if (is_chunked) {
    return {400, "bad_chunk", "request body: malformed chunk", ""};
  }
  return {400, "bad_request", "request body: malformed", ""};
}

// Null: the request is not traced.
std::shared_ptr<observability::RequestTrace> StartTrace(ServerState& state,
                                                        const http::fields& request,
                                                        MonotonicTime start) {
  if (state.options().tracer == nullptr) {
    return nullptr;
  }
  // Two of them contradict each other, so that there is none; a list may come in pieces.
  const std::string_view parent =
      request.count("traceparent") == 1 ? View(request["traceparent"]) : std::string_view();
  std::string list;
  const auto [begin, end] = request.equal_range("tracestate");
  for (auto field = begin; field != end; ++field) {
    list += (list.empty() ? "" : ",") + std::string(View(field->value()));
  }
  auto trace =
      state.options().tracer->StartRequest({parent, list}, "POST /v1/chat/completions", start);
  if (trace != nullptr) {
    trace->Set({"http.request.method", "POST"});
    trace->Set({"http.route", "/v1/chat/completions"});
  }
  return trace;
}

bool IsProtocolError(const error_code& ec) {
  return ec.category() == http::make_error_code(http::error::body_limit).category() ||
         ec == asio::error::eof;
}

}  // namespace

struct Session::Head {
  http::request_parser<http::string_body> parser;
  RouteMatch match;
  bool expects_continue = false;
};

Session::Session(asio::ip::tcp::socket socket, ServerState& state, std::function<void()> on_closed)
    : socket_(std::move(socket)),
      state_(state),
      on_closed_(std::move(on_closed)),
      buffer_(static_cast<size_t>(state.limits().header_bytes_max) +
              static_cast<size_t>(state.limits().request_line_bytes_max) + kBufferSlackBytes),
      deadline_(socket_.get_executor()),
      wake_(socket_.get_executor()) {}

void Session::Start() {
  error_code ignored;
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  // For the reads of OnReadable; asynchronous operations do not care.
  socket_.non_blocking(true, ignored);
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this()] { return self->Run(); },
      // An exception here is memory that ran out: it costs this connection only.
      [self = shared_from_this()](const std::exception_ptr&) {
        self->CloseNow();
        self->Disarm();
        self->on_closed_();
      });
}

void Session::Stop() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->CloseNow(); });
}

void Session::StopIfIdle() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    if (!self->is_busy_) {
      self->CloseNow();
    }
  });
}

void Session::CloseNow() {
  is_gone_ = true;
  error_code ignored;
  socket_.close(ignored);
  wake_.cancel();
}

void Session::Arm(std::chrono::nanoseconds timeout) {
  has_expired_ = false;
  WaitForDeadline(timeout, ++arm_count_);
}

void Session::WaitForDeadline(std::chrono::nanoseconds timeout, uint64_t count) {
  deadline_.expires_after(timeout);
  deadline_.async_wait([self = shared_from_this(), count](const error_code& ec) {
    if (ec || count != self->arm_count_) {
      return;
    }
    self->has_expired_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
    // This may have hit the moment between two operations, so the next one is cancelled as well.
    self->WaitForDeadline(kExpiryRepeat, count);
  });
}

void Session::Disarm() {
  ++arm_count_;
  deadline_.cancel();
}

void Session::Watch() {
  is_watching_ = true;
  socket_.async_wait(asio::ip::tcp::socket::wait_read,
                     [self = shared_from_this(), count = ++watch_count_](const error_code& ec) {
                       if (!ec && self->is_watching_ && count == self->watch_count_) {
                         self->OnReadable();
                       }
                     });
}

void Session::OnReadable() {
  const size_t room = buffer_.max_size() - buffer_.size();
  if (room == 0) {
    // A client that pipelines this much is served, but not watched any more.
    return;
  }
  error_code ec;
  const size_t num_bytes =
      socket_.read_some(buffer_.prepare(room < kReadBytes ? room : kReadBytes), ec);
  buffer_.commit(num_bytes);
  if (ec && ec != asio::error::would_block && ec != asio::error::try_again) {
    CloseNow();
    return;
  }
  Watch();
}

void Session::Unwatch() {
  if (is_watching_) {
    is_watching_ = false;
    error_code ignored;
    socket_.cancel(ignored);
  }
}

void Session::OnChatEvent() {
  if (chat_ != nullptr && chat_->has_overflowed()) {
    // The coroutine may be inside a write that never ends.
    CloseNow();
  }
  wake_.cancel();
}

Session::Awaitable<void> Session::Run() {
  bool goes_on = true;
  while (goes_on && !is_gone_) {
    goes_on = co_await ServeOne();
    is_busy_ = false;
    chat_ = nullptr;
    goes_on = goes_on && !state_.is_draining();
  }
}

Session::Awaitable<bool> Session::ServeOne() {
  HeadScanner scanner(state_.limits());
  HttpError error;
  const Read read = co_await ReadHead(scanner, error);
  if (read == Read::kGone) {
    co_return false;
  }
  Exchange exchange;
  exchange.start = Clock::Real().Now();
  exchange.request_id = "req-" + state_.NewId();
  bool goes_on = false;
  if (read == Read::kBad) {
    goes_on = co_await Refuse(std::move(error), exchange);
  } else {
    goes_on = co_await ServeHead(scanner, exchange);
  }
  const MonotonicTime end = Clock::Real().Now();
  if (exchange.trace != nullptr) {
    exchange.trace->Set({"http.response.status_code", exchange.status});
    if (exchange.status >= 500) {
      exchange.trace->Fail(std::to_string(exchange.status));
    }
    exchange.trace->End(end);
  }
  if (state_.observer().on_request) {
    const std::chrono::duration<double> elapsed = end - exchange.start;
    state_.observer().on_request(exchange.route, exchange.status, elapsed.count());
  }
  co_return goes_on;
}

Session::Awaitable<Session::Read> Session::ReadHead(HeadScanner& scanner, HttpError& error) {
  bool has_begun = false;
  Arm(state_.limits().idle_timeout);
  while (!is_gone_) {
    // An empty line before a request is what some clients send after a body (RFC 9112,
    // section 2.2).
    while (!has_begun && View(buffer_).substr(0, 2) == "\r\n") {
      buffer_.consume(2);
    }
    if (!has_begun && buffer_.size() > 0 && View(buffer_) != "\r") {
      has_begun = true;
      is_busy_ = true;
      Arm(state_.limits().header_timeout);
    }
    const auto result = has_begun ? scanner.Scan(View(buffer_)) : HeadScanner::Result::kNeedMore;
    if (result == HeadScanner::Result::kBad) {
      error = scanner.error();
      co_return Read::kBad;
    }
    if (result == HeadScanner::Result::kComplete) {
      Disarm();
      co_return Read::kDone;
    }
    auto [ec, num_bytes] = co_await socket_.async_read_some(buffer_.prepare(kReadBytes), kNoThrow);
    buffer_.commit(num_bytes);
    if (ec) {
      if (!has_expired_ || !has_begun) {
        co_return Read::kGone;
      }
      error = {408, "header_timeout", "the header block did not arrive in time", ""};
      co_return Read::kBad;
    }
  }
  co_return Read::kGone;
}

Session::Awaitable<bool> Session::ServeHead(const HeadScanner& scanner, Exchange& exchange) {
  const HttpLimits& limits = state_.limits();
  Head head;
  // The scanner has applied the limits; Beast's own must not be in the way.
  head.parser.header_limit(static_cast<uint32_t>(scanner.num_bytes()) + 1);
  head.parser.body_limit(static_cast<uint64_t>(limits.body_bytes_max));
  error_code ec;
  head.parser.put(asio::buffer(buffer_.data(), scanner.num_bytes()), ec);
  buffer_.consume(scanner.num_bytes());
  const auto& request = head.parser.get();
  exchange.version = request.version();
  if (const std::string_view id = View(request["X-Request-Id"]); IsSaneRequestId(id)) {
    exchange.request_id = std::string(id);
  }
  if (ec && ec != http::error::body_limit) {
    co_return co_await Refuse({400, "bad_request", "the request line or header is malformed", ""},
                              exchange);
  }
  head.match = FindRoute(View(request.method_string()), View(request.target()),
                         state_.options().metrics_text != nullptr);
  const BodyFields body_fields{
      View(request[http::field::content_type]), View(request[http::field::content_encoding]),
      View(request[http::field::expect]), scanner.content_length(), scanner.is_chunked()};
  std::optional<HttpError> error;
  if (head.match.route == nullptr && head.match.allow.empty()) {
    error = HttpError{404, "not_found", "no such path", ""};
  } else if (head.match.route == nullptr) {
    error = HttpError{405, "method_not_allowed", "expected " + head.match.allow, ""};
  } else {
    exchange.route = std::string(head.match.route->path);
    if (head.match.route->id == RouteId::kChat) {
      exchange.trace = StartTrace(state_, request, exchange.start);
    }
    error = CheckBody(*head.match.route, body_fields, limits.body_bytes_max);
    if (!error.has_value() && head.match.route->needs_backend) {
      error = NotServing(state_);
    }
  }
  exchange.keep_alive = request.keep_alive();
  const bool has_body = scanner.is_chunked() || scanner.content_length().value_or(0) != 0;
  // Without a length nobody knows whether what follows is a body or the next request.
  const bool is_length_known = !error.has_value() || error->code != "length_required";
  if (error.has_value() && (has_body || !is_length_known)) {
    co_return co_await Refuse(*std::move(error), exchange, head.match.allow);
  }
  if (error.has_value()) {
    HttpReply reply = ErrorReply(*error, exchange.request_id);
    if (!head.match.allow.empty()) {
      reply.fields.emplace_back("Allow", head.match.allow);
    }
    co_return co_await Send(std::move(reply), exchange);
  }
  head.expects_continue = !body_fields.expect.empty();
  HttpError body_error;
  const Read read = co_await ReadBody(head, body_error);
  if (read == Read::kGone) {
    co_return false;
  }
  if (read == Read::kBad) {
    co_return co_await Refuse(std::move(body_error), exchange);
  }
  co_return co_await Answer(head.match, std::move(head.parser.get().body()), exchange);
}

Session::Awaitable<Session::Read> Session::ReadBody(Head& head, HttpError& error) {
  using std::chrono::nanoseconds;
  const int64_t body_bytes_max = state_.limits().body_bytes_max;
  if (head.expects_continue && !head.parser.is_done()) {
    constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    Arm(state_.limits().write_timeout);
    auto [ec, num_bytes] = co_await asio::async_write(
        socket_, asio::buffer(kContinue.data(), kContinue.size()), kNoThrow);
    if (ec) {
      co_return Read::kGone;
    }
  }
  head.parser.eager(true);
  const MonotonicTime start = Clock::Real().Now();
  int64_t num_received = 0;
  while (!head.parser.is_done()) {
    const nanoseconds allowed =
        nanoseconds(state_.limits().body_timeout) +
        nanoseconds(std::chrono::seconds(1)) * (num_received / kBodyBytesPerSecond);
    const nanoseconds left = start + allowed - Clock::Real().Now();
    Arm(left > nanoseconds(0) ? left : nanoseconds(0));
    auto [ec, num_bytes] = co_await http::async_read_some(socket_, buffer_, head.parser, kNoThrow);
    num_received += static_cast<int64_t>(num_bytes);
    if (!ec) {
      continue;
    }
    if (has_expired_) {
      error = {408, "body_timeout", "request body: did not arrive in time", ""};
      co_return Read::kBad;
    }
    if (!IsProtocolError(ec)) {
      co_return Read::kGone;
    }
    error = BodyError(ec, head.parser.chunked(), body_bytes_max);
    co_return Read::kBad;
  }
  Disarm();
  co_return Read::kDone;
}

Session::Awaitable<bool> Session::Answer(const RouteMatch& match, std::string body,
                                         Exchange& exchange) {
  const RunningRequest running(state_);
  if (match.route->needs_backend) {
    if (std::optional<HttpError> error = NotServing(state_); error.has_value()) {
      exchange.keep_alive = false;
      co_return co_await Send(ErrorReply(*error, exchange.request_id), exchange);
    }
  }
  if (match.route->id == RouteId::kChat) {
    co_return co_await ServeChat(std::move(body), exchange);
  }
  HttpReply reply = AnswerPlain(*match.route, match.rest, body, state_, exchange.request_id);
  co_return co_await Send(std::move(reply), exchange);
}

}  // namespace conclave::frontend
