// The half of Session that answers: chat requests, and the writing of replies.
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "conclave/base/failpoint.h"
#include "http/chat_request.h"
#include "http/session.h"

namespace conclave::frontend {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::seconds kLinger{2};
constexpr size_t kLingerReadBytes = 16 << 10;
constexpr size_t kLingerBytesMax = size_t{64} << 20;

template <typename Body>
void SetCommonFields(http::response<Body>& response, const std::string& request_id,
                     std::string_view content_type) {
  response.set(http::field::content_type, {content_type.data(), content_type.size()});
  response.set("x-request-id", request_id);
}

bool HasDelta(const ChatEvents& events) {
  for (const ChatEvents::Choice& choice : events.choices) {
    if (choice.delta.has_value()) {
      return true;
    }
  }
  return false;
}

ReplyShape ShapeOf(const ParsedChat& parsed, const ModelCard& card, std::string id) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  ReplyShape shape;
  shape.id = "chatcmpl-" + std::move(id);
  shape.created = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  shape.model = card.id;
  shape.fingerprint = card.fingerprint;
  shape.numeric_mode = card.numeric_mode;
  shape.num_choices = parsed.request.num_choices;
  shape.include_usage = parsed.include_usage;
  shape.has_logprobs = parsed.request.sampling.num_top_logprobs >= 0;
  shape.has_token_ids = parsed.request.return_token_ids;
  shape.num_moe_layers = card.num_moe_layers;
  shape.moe_top_k = card.moe_top_k;
  shape.experts_max = card.experts_max;
  return shape;
}

}  // namespace

Session::Awaitable<bool> Session::ServeChat(std::string body, Exchange& exchange) {
  ChatBackend& backend = *state_.backend();
  absl::StatusOr<ParsedChat> parsed =
      ParseChatRequest(body, state_.limits(), backend.model(),
                       [this](const std::string& name) { state_.ReportUnknownField(name); });
  // Pictures are in the parsed request by now: their base64 need not stay for the whole generation.
  std::string().swap(body);
  if (!parsed.ok()) {
    co_return co_await Send(ErrorReply(ErrorFromRequest(parsed.status()), exchange.request_id),
                            exchange);
  }
  if (parsed->num_mislabelled_images > 0 && state_.observer().on_mislabelled_images) {
    state_.observer().on_mislabelled_images(parsed->num_mislabelled_images);
  }
  const bool is_stream = parsed->is_stream;
  ReplyShape shape = ShapeOf(*parsed, backend.model(), state_.NewId());
  parsed->request.request_id = exchange.request_id;
  parsed->request.trace = exchange.trace;
  if (!parsed->has_seed) {
    parsed->request.sampling.seed = state_.NewSeed();
  }
  chat_ = std::make_shared<ChatStream>(
      shape.num_choices, static_cast<size_t>(state_.limits().pending_bytes_max),
      [weak = weak_from_this(), executor = socket_.get_executor()] {
        asio::post(executor, [weak] {
          if (const std::shared_ptr<Session> self = weak.lock()) {
            self->OnChatEvent();
          }
        });
      });
  const absl::StatusOr<ChatId> id = backend.Submit(std::move(parsed->request), chat_);
  if (!id.ok()) {
    chat_->Detach();
    co_return co_await Send(ErrorReply(ErrorFromBackend(id.status()), exchange.request_id),
                            exchange);
  }
  ActiveChat chat(backend, *id, chat_);
  Watch();
  ChatEvents events = co_await NextEvents(chat);
  bool goes_on = false;
  const std::optional<HttpError> failure = FailureIn(events);
  if (failure.has_value() && !HasDelta(events)) {
    goes_on = co_await Send(ErrorReply(*failure, exchange.request_id), exchange);
  } else if (!events.is_empty() && is_stream) {
    goes_on = co_await StreamReply(std::move(shape), chat, std::move(events), exchange);
  } else if (!events.is_empty()) {
    goes_on = co_await WholeReply(std::move(shape), chat, std::move(events), exchange);
  }
  Unwatch();
  co_return goes_on;
}

Session::Awaitable<ChatEvents> Session::NextEvents(ActiveChat& chat) {
  while (!is_gone_) {
    ChatEvents events = chat.Take();
    if (!events.is_empty()) {
      co_return events;
    }
    wake_.expires_at(std::chrono::steady_clock::time_point::max());
    co_await wake_.async_wait(kNoThrow);
  }
  co_return ChatEvents();
}

Session::Awaitable<bool> Session::StreamReply(ReplyShape shape, ActiveChat& chat, ChatEvents events,
                                              Exchange& exchange) {
  const bool has_head = co_await SendStreamHead(exchange);
  if (!has_head) {
    co_return false;
  }
  const ChatStreamWriter writer(std::move(shape));
  std::string text;
  writer.Begin(text);
  while (!events.is_empty()) {
    const std::optional<HttpError> failure = FailureIn(events);
    if (failure.has_value()) {
      // The error ends the stream: neither usage nor a second [DONE] may follow.
      events.done.reset();
    }
    writer.Add(events, text);
    if (failure.has_value()) {
      ChatStreamWriter::Fail(*failure, text);
    }
    const bool is_last = failure.has_value() || events.done.has_value();
    if (!text.empty()) {
      const bool is_sent = co_await SendStreamPiece(text, is_last, exchange);
      if (!is_sent || is_last) {
        co_return is_sent&& exchange.keep_alive;
      }
    }
    text.clear();
    events = co_await NextEvents(chat);
  }
  co_return false;
}

Session::Awaitable<bool> Session::WholeReply(ReplyShape shape, ActiveChat& chat, ChatEvents events,
                                             Exchange& exchange) {
  ChatReplyBuilder builder(std::move(shape));
  while (!events.is_empty()) {
    if (const std::optional<HttpError> failure = FailureIn(events); failure.has_value()) {
      co_return co_await Send(ErrorReply(*failure, exchange.request_id), exchange);
    }
    builder.Add(std::move(events));
    if (builder.is_done()) {
      HttpReply reply;
      reply.body = builder.Body();
      co_return co_await Send(std::move(reply), exchange);
    }
    events = co_await NextEvents(chat);
  }
  co_return false;
}

Session::Awaitable<bool> Session::Send(HttpReply reply, Exchange& exchange) {
  http::response<http::string_body> response(static_cast<http::status>(reply.status),
                                             exchange.version);
  SetCommonFields(response, exchange.request_id, reply.content_type);
  for (const auto& [name, value] : reply.fields) {
    response.set(name, value);
  }
  exchange.keep_alive = exchange.keep_alive && !state_.is_draining();
  response.keep_alive(exchange.keep_alive);
  response.body() = std::move(reply.body);
  response.prepare_payload();
  Arm(state_.limits().write_timeout);
  auto [ec, num_bytes] = co_await http::async_write(socket_, response, kNoThrow);
  Disarm();
  if (!ec) {
    exchange.status = reply.status;
  }
  co_return !ec && exchange.keep_alive;
}

Session::Awaitable<bool> Session::SendStreamHead(Exchange& exchange) {
  http::response<http::empty_body> response(http::status::ok, exchange.version);
  SetCommonFields(response, exchange.request_id, "text/event-stream");
  response.set(http::field::cache_control, "no-cache");
  // nginx would otherwise hold tokens back to fill its buffer.
  response.set("X-Accel-Buffering", "no");
  exchange.keep_alive = exchange.keep_alive && !exchange.is_http10() && !state_.is_draining();
  response.keep_alive(exchange.keep_alive);
  response.chunked(!exchange.is_http10());
  http::response_serializer<http::empty_body> serializer(response);
  Arm(state_.limits().write_timeout);
  auto [ec, num_bytes] = co_await http::async_write_header(socket_, serializer, kNoThrow);
  Disarm();
  co_return !ec;
}

Session::Awaitable<bool> Session::SendStreamPiece(std::string_view text, bool is_last,
                                                  Exchange& exchange) {
  Arm(state_.limits().write_timeout);
  (void)CONCLAVE_FAILPOINT("f.sse_write", {});
  const asio::const_buffer piece(text.data(), text.size());
  error_code error;
  if (exchange.is_http10()) {
    auto [ec, num_bytes] = co_await asio::async_write(socket_, piece, kNoThrow);
    error = ec;
  } else {
    auto [ec, num_bytes] = co_await asio::async_write(socket_, http::make_chunk(piece), kNoThrow);
    error = ec;
    if (!error && is_last) {
      auto [last_ec, num_last] =
          co_await asio::async_write(socket_, http::make_chunk_last(), kNoThrow);
      error = last_ec;
    }
  }
  Disarm();
  if (!error && is_last) {
    exchange.status = 200;
  }
  co_return !error;
}

Session::Awaitable<bool> Session::Refuse(HttpError error, Exchange& exchange, std::string allow) {
  exchange.keep_alive = false;
  HttpReply reply = ErrorReply(error, exchange.request_id);
  if (!allow.empty()) {
    reply.fields.emplace_back("Allow", std::move(allow));
  }
  co_await Send(std::move(reply), exchange);
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  Arm(kLinger);
  std::vector<char> scratch(kLingerReadBytes);
  size_t num_dropped = 0;
  while (!is_gone_ && !has_expired_ && num_dropped < kLingerBytesMax) {
    auto [ec, num_bytes] = co_await socket_.async_read_some(asio::buffer(scratch), kNoThrow);
    num_dropped += num_bytes;
    if (ec) {
      break;
    }
  }
  Disarm();
  co_return false;
}

}  // namespace conclave::frontend
