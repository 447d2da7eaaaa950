#include "conclave/service/admin_server.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cstdio>
#include <optional>
#include <thread>
#include <utility>

#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/service/address.h"

namespace conclave::service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr size_t kHeaderBytesMax = 8 << 10;
constexpr size_t kBodyBytesMax = 1 << 10;
constexpr size_t kPageBytesMax = size_t{1} << 20;
constexpr int kConnectionsMax = 32;
constexpr int kRequestsPerConnection = 1000;
constexpr auto kTimeout = std::chrono::seconds(5);

using Response = http::response<http::string_body>;

Response MakeResponse(http::status status, std::string body, const char* type) {
  Response response(status, 11);
  response.set(http::field::content_type, type);
  response.set(http::field::cache_control, "no-store");
  response.set("X-Content-Type-Options", "nosniff");
  response.body() = std::move(body);
  return response;
}

#ifdef CONCLAVE_FAILPOINTS
// GET: how often each point acted. PUT: a new setting, as the variable CONCLAVE_FAILPOINTS has it.
Response AnswerFailpoints(http::verb method, std::string_view body) {
  if (method == http::verb::put) {
    if (const absl::Status status = SetFailpoints(body); !status.ok()) {
      return MakeResponse(http::status::bad_request, MessageOf(status) + '\n', "text/plain");
    }
  }
  return MakeResponse(http::status::ok, FailpointReport(), "text/plain");
}
#endif

Response Answer(const AdminServerOptions& options, http::verb method, std::string_view target,
                [[maybe_unused]] std::string_view request_body) {
  constexpr const char* kJson = "application/json";
  target = target.substr(0, target.find('?'));
#ifdef CONCLAVE_FAILPOINTS
  if (target == "/debug/failpoints") {
    return AnswerFailpoints(method, request_body);
  }
#endif
  const bool is_known =
      target == "/metrics" || target == "/health/live" || target == "/health/ready";
  if (!is_known) {
    return MakeResponse(http::status::not_found, R"({"error":"not found"})", kJson);
  }
  if (method != http::verb::get && method != http::verb::head) {
    Response response =
        MakeResponse(http::status::method_not_allowed, R"({"error":"method not allowed"})", kJson);
    response.set(http::field::allow, "GET, HEAD");
    return response;
  }
  if (target == "/health/live") {
    return MakeResponse(http::status::ok, R"({"status":"ok"})", kJson);
  }
  if (target == "/health/ready") {
    const Health health = options.health ? options.health() : Health{};
    return MakeResponse(health.is_ready ? http::status::ok : http::status::service_unavailable,
                        HealthBody(health), kJson);
  }
  std::string page = options.metrics_text ? options.metrics_text() : std::string();
  if (page.size() > kPageBytesMax) {
    return MakeResponse(http::status::internal_server_error,
                        R"({"error":"the page is above 1 MiB"})", kJson);
  }
  return MakeResponse(http::status::ok, std::move(page),
                      "text/plain; version=0.0.4; charset=utf-8");
}

// One connection; keeps itself alive through its handlers. All on the server's one thread.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, const AdminServerOptions& options, std::atomic<int>& num_open)
      : stream_(std::move(socket)), options_(options), num_open_(num_open) {
    num_open_.fetch_add(1);
  }
  ~Session() { num_open_.fetch_sub(1); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void Read() {
    parser_.emplace();
    parser_->header_limit(kHeaderBytesMax);
    parser_->body_limit(kBodyBytesMax);
    stream_.expires_after(kTimeout);
    http::async_read(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](beast::error_code error, size_t) { self->OnRead(error); });
  }

 private:
  void OnRead(beast::error_code error) {
    if (error == http::error::end_of_stream || error == beast::error::timeout ||
        error == asio::error::operation_aborted || error == asio::error::connection_reset) {
      Close();
      return;
    }
    bool is_last = ++num_requests_ >= kRequestsPerConnection;
    bool is_head = false;
    if (error) {
      const bool is_large = error == http::error::header_limit || error == http::error::body_limit;
      response_ =
          MakeResponse(is_large ? http::status::payload_too_large : http::status::bad_request,
                       R"({"error":"bad request"})", "application/json");
      is_last = true;
    } else {
      const auto& request = parser_->get();
      is_head = request.method() == http::verb::head;
      is_last = is_last || !request.keep_alive();
      response_ = Answer(options_, request.method(),
                         std::string_view(request.target().data(), request.target().size()),
                         request.body());
    }
    response_.keep_alive(!is_last);
    response_.prepare_payload();
    serializer_.emplace(response_);
    serializer_->split(is_head);
    stream_.expires_after(kTimeout);
    const auto on_written = [self = shared_from_this(), is_last](beast::error_code e, size_t) {
      if (e || is_last) {
        self->Close();
      } else {
        self->Read();
      }
    };
    if (is_head) {
      http::async_write_header(stream_, *serializer_, on_written);
    } else {
      http::async_write(stream_, *serializer_, on_written);
    }
  }

  void Close() {
    beast::error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.close();
  }

  beast::tcp_stream stream_;
  const AdminServerOptions& options_;
  std::atomic<int>& num_open_;
  beast::flat_buffer buffer_{kHeaderBytesMax + kBodyBytesMax};
  std::optional<http::request_parser<http::string_body>> parser_;
  Response response_;
  std::optional<http::response_serializer<http::string_body>> serializer_;
  int num_requests_ = 0;
};

}  // namespace

struct AdminServer::State {
  explicit State(AdminServerOptions o) : options(std::move(o)) {}

  absl::Status Bind() {
    const std::string where = "bind " + ToString(Address{options.host, options.port});
    const auto failed = [&](const beast::error_code& error) {
      return Error(absl::StatusCode::kUnavailable, "bind", where + ": " + error.message());
    };
    beast::error_code error;
    const auto address = asio::ip::make_address(options.host, error);
    if (error) {
      return failed(error);
    }
    const tcp::endpoint endpoint(address, options.port);
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
      if (!error && num_open.load() < kConnectionsMax) {
        std::make_shared<Session>(std::move(socket), options, num_open)->Read();
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

  const AdminServerOptions options;
  std::atomic<int> num_open{0};
  asio::io_context context{1};
  tcp::acceptor acceptor{context};
  asio::steady_timer retry{context};
  uint16_t port = 0;
  std::thread thread;
};

AdminServer::AdminServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(AdminServerOptions options) {
  auto state = std::make_unique<State>(std::move(options));
  CONCLAVE_RETURN_IF_ERROR(state->Bind());
  State* raw = state.get();
  raw->Accept();
  raw->thread = std::thread([raw] { raw->context.run(); });
  ::pthread_setname_np(raw->thread.native_handle(), "admin");
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(state)));
}

AdminServer::~AdminServer() {
  state_->context.stop();
  state_->thread.join();
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

}  // namespace conclave::service
