#include "conclave/frontend/http_server.h"

#include <pthread.h>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <exception>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "http/server_state.h"
#include "http/session.h"

namespace conclave::frontend {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kNoThrow = asio::as_tuple(asio::use_awaitable);
// Connections beyond the limit that are told so at the same time; further ones are closed without a
// word.
constexpr int kRefusalsMax = 64;
constexpr std::chrono::seconds kRefusalTimeout{1};
// Descriptors or memory ran out: without a pause the accept loop would spin.
constexpr std::chrono::milliseconds kAcceptPause{100};

std::string RefusalText(const std::string& request_id) {
  const HttpError error{503, "too_many_connections", "too many connections; try again later", ""};
  const std::string body = ErrorBody(error, request_id);
  return "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nx-request-id: " +
         request_id + "\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

// Writes `text`, then waits a moment for the client to close, so that its unread bytes do not reset
// the connection.
asio::awaitable<void> WriteAndClose(std::shared_ptr<tcp::socket> socket, std::string text) {
  asio::steady_timer timer(socket->get_executor());
  timer.expires_after(kRefusalTimeout);
  timer.async_wait([socket](const error_code& ec) {
    if (!ec) {
      error_code ignored;
      socket->close(ignored);
    }
  });
  auto [write_ec, num_written] = co_await asio::async_write(*socket, asio::buffer(text), kNoThrow);
  error_code ec = write_ec;
  if (!ec) {
    socket->shutdown(tcp::socket::shutdown_send, ec);
  }
  std::vector<char> scratch(4 << 10);
  while (!ec && socket->is_open()) {
    auto [read_ec, num_read] = co_await socket->async_read_some(asio::buffer(scratch), kNoThrow);
    ec = read_ec;
  }
}

}  // namespace

struct HttpServer::Impl {
  Impl(HttpServerOptions options, HttpObserver observer)
      : state(std::move(options), std::move(observer)),
        strand(asio::make_strand(io)),
        acceptor(strand),
        accept_timer(strand) {}

  ServerState state;
  Mutex mu;
  std::map<uint64_t, std::weak_ptr<Session>> sessions ABSL_GUARDED_BY(mu);
  int num_refusals ABSL_GUARDED_BY(mu) = 0;

  asio::io_context io;
  // The acceptor, its timer and `is_stopping` belong to this strand.
  asio::any_io_executor strand;
  tcp::acceptor acceptor;
  asio::steady_timer accept_timer;
  uint64_t next_session = 0;
  bool is_stopping = false;
  uint16_t port = 0;
  std::vector<std::thread> threads;

  absl::Status Listen();
  void StartThreads();
  asio::awaitable<void> Accept();
  void Admit(tcp::socket socket);
  void StopAccepting();
  void Stop();
  std::vector<std::shared_ptr<Session>> Sessions();
};

absl::Status HttpServer::Impl::Listen() {
  const std::string& host = state.options().host;
  const std::string where = "bind " + host + ":" + std::to_string(state.options().port) + ": ";
  error_code ec;
  tcp::resolver resolver(io);
  const auto results =
      resolver.resolve(host, std::to_string(state.options().port), tcp::resolver::passive, ec);
  if (ec || results.empty()) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 where + (ec ? ec.message() : "the name has no address"));
  }
  const tcp::endpoint endpoint = results.begin()->endpoint();
  acceptor.open(endpoint.protocol(), ec);
  if (!ec) {
    // A restart must not wait for connections of the last process to time out.
    acceptor.set_option(asio::socket_base::reuse_address(true), ec);
  }
  if (!ec) {
    acceptor.bind(endpoint, ec);
  }
  if (!ec) {
    acceptor.listen(asio::socket_base::max_listen_connections, ec);
  }
  if (!ec) {
    port = acceptor.local_endpoint(ec).port();
  }
  if (ec) {
    return Error(absl::StatusCode::kUnavailable, "bind", where + ec.message());
  }
  return absl::OkStatus();
}

void HttpServer::Impl::StartThreads() {
  asio::co_spawn(strand, Accept(), asio::detached);
  const int num_threads = state.options().num_threads < 1 ? 1 : state.options().num_threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([this, i] {
      pthread_setname_np(pthread_self(), ("http-" + std::to_string(i)).c_str());
      while (true) {
        try {
          io.run();
          return;
        } catch (const std::exception&) {
          // A handler ran out of memory; its connection is lost, the others go on.
        }
      }
    });
  }
}

asio::awaitable<void> HttpServer::Impl::Accept() {
  while (!is_stopping) {
    auto [ec, socket] =
        co_await acceptor.async_accept(asio::any_io_executor(asio::make_strand(io)), kNoThrow);
    if (is_stopping) {
      break;
    }
    if (!ec) {
      Admit(std::move(socket));
      continue;
    }
    accept_timer.expires_after(kAcceptPause);
    co_await accept_timer.async_wait(kNoThrow);
  }
}

void HttpServer::Impl::Admit(tcp::socket socket) {
  const asio::any_io_executor executor = socket.get_executor();
  MutexLock lock(mu);
  if (sessions.size() < static_cast<size_t>(state.limits().connections_max)) {
    const uint64_t id = next_session++;
    const auto session = std::make_shared<Session>(std::move(socket), state, [this, id] {
      MutexLock closed_lock(mu);
      sessions.erase(id);
    });
    sessions.emplace(id, session);
    session->Start();
    return;
  }
  if (num_refusals >= kRefusalsMax) {
    return;
  }
  ++num_refusals;
  asio::co_spawn(executor,
                 WriteAndClose(std::make_shared<tcp::socket>(std::move(socket)),
                               RefusalText("req-" + state.NewId())),
                 [this](const std::exception_ptr&) {
                   MutexLock refusal_lock(mu);
                   --num_refusals;
                 });
}

void HttpServer::Impl::StopAccepting() {
  is_stopping = true;
  error_code ignored;
  acceptor.close(ignored);
  accept_timer.cancel();
}

void HttpServer::Impl::Stop() {
  // No session is admitted after this ran on the strand, so the second step sees them all.
  asio::post(strand, [this] {
    StopAccepting();
    for (const std::shared_ptr<Session>& session : Sessions()) {
      session->Stop();
    }
  });
  // Every coroutine ends when its socket is closed; with the last one the threads run out of work.
  for (std::thread& thread : threads) {
    thread.join();
  }
}

std::vector<std::shared_ptr<Session>> HttpServer::Impl::Sessions() {
  std::vector<std::shared_ptr<Session>> alive;
  MutexLock lock(mu);
  for (const auto& [id, weak] : sessions) {
    if (std::shared_ptr<Session> session = weak.lock()) {
      alive.push_back(std::move(session));
    }
  }
  return alive;
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpServerOptions options,
                                                              HttpObserver observer) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(observer));
  CONCLAVE_RETURN_IF_ERROR(impl->Listen());
  impl->StartThreads();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::~HttpServer() {
  try {
    impl_->Stop();
  } catch (...) {
    // No memory to tell the threads: leaving them with freed state would be worse than the end.
    std::terminate();
  }
}

uint16_t HttpServer::port() const { return impl_->port; }

void HttpServer::Post(std::function<void()> task) { asio::post(impl_->io, std::move(task)); }

void HttpServer::SetBackend(ChatBackend& backend) { impl_->state.SetBackend(backend); }

bool HttpServer::Drain(std::chrono::milliseconds timeout) {
  Impl& impl = *impl_;
  impl.state.StartDraining();
  const bool is_idle = impl.state.WaitUntilIdle(timeout);
  asio::post(impl.strand, [&impl] {
    impl.StopAccepting();
    for (const std::shared_ptr<Session>& session : impl.Sessions()) {
      session->StopIfIdle();
    }
  });
  return is_idle;
}

}  // namespace conclave::frontend
