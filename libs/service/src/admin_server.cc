#include "conclave/service/admin_server.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdio>
#include <string_view>
#include <thread>
#include <utility>

#include "admin_session.h"
#include "conclave/base/json_writer.h"
#include "conclave/base/status.h"

namespace conclave::service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;

constexpr int kConnectionsMax = 64;

int FromHex(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

std::string PercentDecoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && FromHex(text[i + 1]) >= 0 &&
        FromHex(text[i + 2]) >= 0) {
      out += static_cast<char>(FromHex(text[i + 1]) * 16 + FromHex(text[i + 2]));
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

}  // namespace

struct AdminServer::State {
  explicit State(AdminServerOptions o) : shared(std::make_shared<AdminShared>(std::move(o))) {}

  absl::Status Bind() {
    const std::string where = "bind " + ToString(Address{options().host, options().port});
    const auto failed = [&](const beast::error_code& error) {
      return Error(absl::StatusCode::kUnavailable, "bind", where + ": " + error.message());
    };
    beast::error_code error;
    const auto address = asio::ip::make_address(options().host, error);
    if (error) {
      return failed(error);
    }
    const tcp::endpoint endpoint(address, options().port);
    acceptor.open(endpoint.protocol(), error);
    if (!error) {
      acceptor.set_option(asio::socket_base::reuse_address(true), error);
    }
    if (!error) {
      acceptor.bind(endpoint, error);
    }
    if (!error) {
      acceptor.listen(kConnectionsMax, error);
    }
    if (error) {
      return failed(error);
    }
    port = acceptor.local_endpoint(error).port();
    return error ? failed(error) : absl::OkStatus();
  }

  void Accept() {
    acceptor.async_accept([this](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) {
        return;
      }
      // Too many connections: this one is closed by leaving the scope.
      if (!error && shared->num_open.load() < kConnectionsMax) {
        std::erase_if(shared->sessions, [](const auto& session) { return session.expired(); });
        const auto session = std::make_shared<AdminSession>(std::move(socket), shared);
        shared->sessions.push_back(session);
        session->Read();
      }
      if (error) {
        // Out of descriptors: try again later instead of spinning.
        retry.expires_after(std::chrono::milliseconds(100));
        retry.async_wait([this](beast::error_code stopped) {
          if (!stopped) {
            Accept();
          }
        });
        return;
      }
      Accept();
    });
  }

  const AdminServerOptions& options() const { return shared->options; }

  const std::shared_ptr<AdminShared> shared;
  tcp::acceptor acceptor{shared->context};
  asio::steady_timer retry{shared->context};
  uint16_t port = 0;
  std::thread thread;
};

AdminServer::AdminServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(AdminServerOptions options) {
  auto state = std::make_unique<State>(std::move(options));
  CONCLAVE_RETURN_IF_ERROR(state->Bind());
  State* raw = state.get();
  raw->Accept();
  raw->thread = std::thread([raw] { raw->shared->context.run(); });
  ::pthread_setname_np(raw->thread.native_handle(), "admin");
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(state)));
}

AdminServer::~AdminServer() {
  AdminShared& shared = *state_->shared;
  shared.context.stop();
  state_->thread.join();
  {
    MutexLock lock(shared.mu);
    shared.is_over = true;
  }
  // Handlers hold their sessions, and sessions what the handlers lie in: they have to run.
  state_->acceptor.close();
  state_->retry.cancel();
  for (const std::weak_ptr<AdminSession>& open : shared.sessions) {
    if (const std::shared_ptr<AdminSession> session = open.lock(); session != nullptr) {
      session->Close();
    }
  }
  shared.context.restart();
  shared.context.poll();
}

uint16_t AdminServer::port() const { return state_->port; }

std::string HealthBody(const Health& health) {
  std::string body = R"({"status":")" + health.state + '"';
  if (!health.is_ready && health.state == "loading") {
    std::array<char, 32> buffer;
    std::snprintf(buffer.data(), buffer.size(), R"(,"progress":%.2f)", health.progress);
    body += buffer.data();
  }
  return body + "}";
}

std::string QueryValue(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    if (pair.size() > name.size() && pair.starts_with(name) && pair[name.size()] == '=') {
      return PercentDecoded(pair.substr(name.size() + 1));
    }
  }
  return "";
}

std::string AdminErrorBody(const absl::Status& status) {
  std::string body;
  JsonWriter json(body);
  const std::string reason = ReasonOf(status);
  json.BeginObject().Key("error").BeginObject().Key("code");
  json.String(reason.empty() ? "internal" : reason).Key("message").String(MessageOf(status));
  json.EndObject().EndObject();
  return body;
}

int AdminErrorStatus(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kFailedPrecondition:
      return 409;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      return 503;
    default:
      return 500;
  }
}

}  // namespace conclave::service
