// One connection: a coroutine that reads requests, answers them, and watches for a client that goes
// away.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "conclave/base/clock.h"
#include "http/chat_response.h"
#include "http/chat_stream.h"
#include "http/head_scanner.h"
#include "http/plain_api.h"
#include "http/routes.h"
#include "http/server_state.h"
#include "http/session_guards.h"

namespace conclave::frontend {

// Lives as long as its coroutine or a pending handler. All members are touched on the socket's
// strand only.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // The executor of `socket` is a strand. `state` outlives the session. `on_closed` is called once,
  // on the strand.
  Session(boost::asio::ip::tcp::socket socket, ServerState& state, std::function<void()> on_closed);

  void Start();

  // Any thread: closes the connection, cancelling the request that runs on it.
  void Stop();
  // Any thread: closes the connection unless a request is being read or answered.
  void StopIfIdle();

 private:
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // What is known of the request at hand.
  struct Exchange {
    MonotonicTime start;
    std::string request_id;
    std::string route = "other";
    unsigned version = 11;
    bool keep_alive = false;
    int status = 499;                                    // until a reply is under way
    std::shared_ptr<observability::RequestTrace> trace;  // null: not traced
    bool is_http10() const { return version < 11; }
  };
  enum class Read { kDone, kBad, kGone };
  struct Head;

  Awaitable<void> Run();
  // One request; whether another may follow.
  Awaitable<bool> ServeOne();
  Awaitable<Read> ReadHead(HeadScanner& scanner, HttpError& error);
  Awaitable<bool> ServeHead(const HeadScanner& scanner, Exchange& exchange);
  Awaitable<Read> ReadBody(Head& head, HttpError& error);
  Awaitable<bool> Answer(const RouteMatch& match, std::string body, Exchange& exchange);
  Awaitable<bool> ServeChat(std::string body, Exchange& exchange);
  Awaitable<bool> StreamReply(ReplyShape shape, ActiveChat& chat, ChatEvents events,
                              Exchange& exchange);
  Awaitable<bool> WholeReply(ReplyShape shape, ActiveChat& chat, ChatEvents events,
                             Exchange& exchange);

  // The next events; empty once the client has gone or is too slow.
  Awaitable<ChatEvents> NextEvents(ActiveChat& chat);

  // False: the connection is lost.
  Awaitable<bool> Send(HttpReply reply, Exchange& exchange);
  Awaitable<bool> SendStreamHead(Exchange& exchange);
  Awaitable<bool> SendStreamPiece(std::string_view text, bool is_last, Exchange& exchange);
  // An error that ends the connection. What the client still sends is read and dropped for a
  // moment: closing at once would reset the connection, and the client might never read the reply.
  Awaitable<bool> Refuse(HttpError error, Exchange& exchange, std::string allow = {});

  // Ends pending socket operations after `timeout`; they then see has_expired_.
  void Arm(std::chrono::nanoseconds timeout);
  void Disarm();
  void WaitForDeadline(std::chrono::nanoseconds timeout, uint64_t count);

  // While the backend works: notices that the client closed, and keeps what it pipelines.
  void Watch();
  void OnReadable();
  void Unwatch();

  // Something happened in chat_.
  void OnChatEvent();
  void CloseNow();

  boost::asio::ip::tcp::socket socket_;
  ServerState& state_;
  std::function<void()> on_closed_;
  boost::beast::flat_buffer buffer_;  // bytes read and not yet used
  boost::asio::steady_timer deadline_;
  boost::asio::steady_timer wake_;
  std::shared_ptr<ChatStream> chat_;  // of the request at hand
  uint64_t arm_count_ = 0;
  bool has_expired_ = false;
  uint64_t watch_count_ = 0;
  bool is_watching_ = false;
  bool is_busy_ = false;
  bool is_gone_ = false;
};

}  // namespace conclave::frontend
