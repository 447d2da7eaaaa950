#include "admin_session.h"

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <utility>

#include "conclave/base/failpoint.h"
#include "conclave/base/json_writer.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"

namespace conclave::service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr size_t kHeaderBytesMax = 8 << 10;
constexpr size_t kBodyBytesMax = 1 << 10;
constexpr size_t kPageBytesMax = size_t{1} << 20;
constexpr int kRequestsPerConnection = 1000;
constexpr auto kTimeout = std::chrono::seconds(5);
// A body of a few pictures over a slow line.
constexpr auto kBodyTimeout = std::chrono::seconds(60);
// A reader of a stream that has not taken a piece after so long has gone.
constexpr auto kStreamTimeout = std::chrono::seconds(30);
constexpr size_t kPendingBytesMax = size_t{8} << 20;
constexpr const char* kJson = "application/json";

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

AdminSession::Response ErrorResponse(http::status status, std::string_view code,
                                     std::string_view message) {
  return MakeAdminResponse(
      status, AdminErrorBody(Error(absl::StatusCode::kInvalidArgument, code, message)), kJson);
}

#ifdef CONCLAVE_FAILPOINTS
// GET: how often each point acted. PUT: a new setting, as the variable CONCLAVE_FAILPOINTS has it.
AdminSession::Response AnswerFailpoints(http::verb method, std::string_view body) {
  if (method == http::verb::put) {
    if (const absl::Status status = SetFailpoints(body); !status.ok()) {
      return MakeAdminResponse(http::status::bad_request, MessageOf(status) + '\n', "text/plain");
    }
  }
  return MakeAdminResponse(http::status::ok, FailpointReport(), "text/plain");
}
#endif

bool IsAt(const AdminRoute& route, std::string_view path) {
  return path == route.path ||
         (route.path.size() > 1 && route.path.ends_with('/') && path.starts_with(route.path));
}

bool IsBuiltIn(std::string_view path) {
  return path == "/metrics" || path == "/health/live" || path == "/health/ready";
}

AdminSession::Response AnswerBuiltIn(const AdminServerOptions& options, std::string_view path) {
  if (path == "/health/live") {
    return MakeAdminResponse(http::status::ok, R"({"status":"ok"})", kJson);
  }
  if (path == "/health/ready") {
    const Health health = options.health ? options.health() : Health{};
    return MakeAdminResponse(health.is_ready ? http::status::ok : http::status::service_unavailable,
                             HealthBody(health), kJson);
  }
  std::string page = options.metrics_text ? options.metrics_text() : std::string();
  if (page.size() > kPageBytesMax) {
    return ErrorResponse(http::status::internal_server_error, "internal",
                         "the page is above 1 MiB");
  }
  return MakeAdminResponse(http::status::ok, std::move(page),
                           "text/plain; version=0.0.4; charset=utf-8");
}

// "http://HOST:PORT" of an Origin without its scheme.
std::string_view HostOfOrigin(std::string_view origin) {
  const size_t at = origin.find("://");
  return at == std::string_view::npos ? std::string_view() : origin.substr(at + 3);
}

// Names that a site can let point at this machine are not its own ones.
bool IsOwnName(std::string_view host) {
  if (host.starts_with('[')) {
    return true;
  }
  const std::string_view name = host.substr(0, host.rfind(':'));
  return name == "localhost" || name.find_first_not_of("0123456789.") == std::string_view::npos;
}

}  // namespace

AdminSession::Response MakeAdminResponse(http::status status, std::string body,
                                         std::string_view type) {
  AdminSession::Response response(status, 11);
  response.set(http::field::content_type, beast::string_view(type.data(), type.size()));
  response.set(http::field::cache_control, "no-store");
  response.set("X-Content-Type-Options", "nosniff");
  response.body() = std::move(body);
  return response;
}

// What a handler holds. Until it has answered it keeps the session, which nothing else does
// meanwhile; a stream goes when its client does.
class AdminSession::Reply final : public AdminReply {
 public:
  explicit Reply(std::shared_ptr<AdminSession> session)
      : session_(session), awaited_(std::move(session)) {}

  void Send(int status, std::string_view content_type, std::string body, Headers headers) override {
    Response response =
        MakeAdminResponse(static_cast<http::status>(status), std::move(body), content_type);
    for (const auto& [name, value] : headers) {
      response.set(name, value);
    }
    Post([response = std::move(response)](AdminSession& session) mutable {
      session.Answer(std::move(response));
    });
    Release();
  }
  void BeginStream(std::string_view content_type, std::function<void()> on_closed) override {
    Post([type = std::string(content_type),
          on_closed = std::move(on_closed)](AdminSession& session) mutable {
      session.BeginStream(std::move(type), std::move(on_closed));
    });
    Release();
  }
  void Write(std::shared_ptr<const std::string> piece) override {
    Post([piece = std::move(piece)](AdminSession& session) mutable {
      session.WriteStream(std::move(piece));
    });
  }

 private:
  void Release() ABSL_LOCKS_EXCLUDED(mu_) {
    std::shared_ptr<AdminSession> answered;
    MutexLock lock(mu_);
    answered = std::move(awaited_);
  }
  template <typename F>
  void Post(F action) {
    std::shared_ptr<AdminSession> session = session_.lock();
    if (session == nullptr) {
      return;
    }
    const std::shared_ptr<AdminShared> shared = session->shared_;
    MutexLock lock(shared->mu);
    if (!shared->is_over) {
      asio::post(shared->context, [session = std::move(session),
                                   action = std::move(action)]() mutable { action(*session); });
    }
  }

  const std::weak_ptr<AdminSession> session_;
  Mutex mu_;
  std::shared_ptr<AdminSession> awaited_ ABSL_GUARDED_BY(mu_);
};

AdminSession::AdminSession(tcp::socket socket, std::shared_ptr<AdminShared> shared)
    : shared_(std::move(shared)), options_(shared_->options), stream_(std::move(socket)) {
  shared_->num_open.fetch_add(1);
}

AdminSession::~AdminSession() {
  shared_->num_open.fetch_sub(1);
  if (on_closed_) {
    on_closed_();
  }
}

void AdminSession::Read() {
  parser_.emplace();
  parser_->header_limit(kHeaderBytesMax);
  // Of any route; that of its own is looked at once the head says which.
  parser_->body_limit(boost::none);
  stream_.expires_after(kTimeout);
  http::async_read_header(
      stream_, buffer_, *parser_,
      [self = shared_from_this()](Error error, size_t) { self->OnHead(error); });
}

const AdminRoute* AdminSession::FindRoute(std::string_view path, std::string_view method) const {
  const auto it =
      std::find_if(options_.routes.begin(), options_.routes.end(), [&](const AdminRoute& route) {
        return IsAt(route, path) &&
               (route.method == method || (route.method == "GET" && method == "HEAD"));
      });
  return it == options_.routes.end() ? nullptr : &*it;
}

std::string AdminSession::AllowedAt(std::string_view path) const {
  std::string allowed = IsBuiltIn(path) ? "GET, HEAD" : "";
  for (const AdminRoute& route : options_.routes) {
    const std::string methods = route.method == "GET" ? "GET, HEAD" : route.method;
    if (IsAt(route, path) && allowed.find(methods) == std::string::npos) {
      allowed += (allowed.empty() ? "" : ", ") + methods;
    }
  }
  return allowed;
}

std::string_view AdminSession::HeaderOf(http::field field) const {
  return View(parser_->get()[field]);
}

void AdminSession::OnHead(Error error) {
  if (error == http::error::end_of_stream || error == beast::error::timeout ||
      error == asio::error::operation_aborted || error == asio::error::connection_reset) {
    Close();
    return;
  }
  is_last_ = ++num_requests_ >= kRequestsPerConnection;
  is_head_ = false;
  if (error) {
    is_last_ = true;
    Answer(error == http::error::header_limit
               ? ErrorResponse(http::status::request_header_fields_too_large, "headers_too_large",
                               "expected a head of at most 8 KiB")
               : ErrorResponse(http::status::bad_request, "bad_request", "no HTTP request"));
    return;
  }
  const auto& request = parser_->get();
  is_head_ = request.method() == http::verb::head;
  is_last_ = is_last_ || !request.keep_alive();
  std::string_view target = View(request.target());
  const AdminRoute* route =
      FindRoute(target.substr(0, target.find('?')), View(request.method_string()));
  const size_t body_max = route == nullptr ? kBodyBytesMax : route->body_bytes_max;
  if (parser_->content_length().value_or(0) > body_max) {
    is_last_ = true;
    Answer(ErrorResponse(http::status::payload_too_large, "body_too_large",
                         "expected a body of at most " + std::to_string(body_max) + " bytes"));
    return;
  }
  parser_->body_limit(body_max);
  if (body_max > kBodyBytesMax) {
    stream_.expires_after(kBodyTimeout);
  }
  if (beast::iequals(request[http::field::expect], "100-continue")) {
    // Rare (curl, for large bodies): the answer is short enough for the socket's own buffer.
    beast::error_code ignored;
    asio::write(stream_.socket(), asio::buffer("HTTP/1.1 100 Continue\r\n\r\n", 25), ignored);
  }
  http::async_read(
      stream_, buffer_, *parser_,
      [self = shared_from_this()](Error read_error, size_t) { self->OnRequest(read_error); });
}

void AdminSession::OnRequest(Error error) {
  if (!error) {
    Dispatch();
    return;
  }
  if (error == beast::error::timeout || error == asio::error::operation_aborted ||
      error == asio::error::connection_reset) {
    Close();
    return;
  }
  is_last_ = true;
  Answer(error == http::error::body_limit
             ? ErrorResponse(http::status::payload_too_large, "body_too_large",
                             "the body is larger than this path takes")
             : ErrorResponse(http::status::bad_request, "bad_request", "no HTTP request"));
}

std::optional<AdminSession::Response> AdminSession::RefusePost() const {
  // A form or a script of another site can send neither JSON nor our Origin without being allowed
  // to, which nobody is.
  if (!HeaderOf(http::field::content_type).starts_with(kJson)) {
    return ErrorResponse(http::status::unsupported_media_type, "content_type_unsupported",
                         "expected Content-Type: application/json");
  }
  const std::string_view origin = HeaderOf(http::field::origin);
  if (!origin.empty() && (HostOfOrigin(origin) != HeaderOf(http::field::host) ||
                          (IsLoopback(options_.host) && !IsOwnName(HostOfOrigin(origin))))) {
    return ErrorResponse(http::status::forbidden, "cross_origin",
                         "expected a request of this server's own page");
  }
  return std::nullopt;
}

void AdminSession::Dispatch() {
  const auto& request = parser_->get();
  const std::string_view target = View(request.target());
  const size_t mark = target.find('?');
  const std::string_view path = target.substr(0, mark);
#ifdef CONCLAVE_FAILPOINTS
  if (path == "/debug/failpoints") {
    Answer(AnswerFailpoints(request.method(), request.body()));
    return;
  }
#endif
  const bool is_get = request.method() == http::verb::get || is_head_;
  if (IsBuiltIn(path) && is_get) {
    Answer(AnswerBuiltIn(options_, path));
    return;
  }
  const AdminRoute* route = FindRoute(path, View(request.method_string()));
  if (route == nullptr) {
    const std::string allowed = AllowedAt(path);
    if (allowed.empty()) {
      Answer(ErrorResponse(http::status::not_found, "not_found", "no such path"));
      return;
    }
    Response response = ErrorResponse(http::status::method_not_allowed, "method_not_allowed",
                                      "expected the method " + allowed);
    response.set(http::field::allow, allowed);
    Answer(std::move(response));
    return;
  }
  if (!is_get) {
    if (std::optional<Response> refused = RefusePost(); refused) {
      Answer(*std::move(refused));
      return;
    }
  }
  if (route->upstream) {
    HandOn(*route);
    return;
  }
  AdminRequest admin;
  admin.path = path;
  admin.query = mark == std::string_view::npos ? "" : std::string(target.substr(mark + 1));
  admin.authorization = HeaderOf(http::field::authorization);
  admin.body = request.body();
  // The handler may take its time; the client's patience is its own.
  stream_.expires_never();
  route->handler(admin, std::make_shared<Reply>(shared_from_this()));
}

void AdminSession::Answer(Response response) {
  if (is_streaming_) {
    return;
  }
  response_ = std::move(response);
  response_.keep_alive(!is_last_);
  response_.prepare_payload();
  serializer_.emplace(response_);
  serializer_->split(is_head_);
  stream_.expires_after(kTimeout);
  const auto on_written = [self = shared_from_this()](Error error, size_t) {
    if (error || self->is_last_) {
      self->Close();
    } else {
      self->Read();
    }
  };
  if (is_head_) {
    http::async_write_header(stream_, *serializer_, on_written);
  } else {
    http::async_write(stream_, *serializer_, on_written);
  }
}

void AdminSession::BeginStream(std::string content_type, std::function<void()> on_closed) {
  is_streaming_ = true;
  on_closed_ = std::move(on_closed);
  auto head = std::make_shared<const std::string>(
      "HTTP/1.1 200 OK\r\nContent-Type: " + std::move(content_type) +
      "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
      "X-Accel-Buffering: no\r\nConnection: close\r\n\r\n");
  pending_bytes_ = head->size();
  pieces_.push_back(std::move(head));
  PumpStream();
  WatchForClose();
}

void AdminSession::WriteStream(std::shared_ptr<const std::string> piece) {
  // HEAD asks for the head alone.
  if (!is_streaming_ || is_head_ || !stream_.socket().is_open()) {
    return;
  }
  pending_bytes_ += piece->size();
  if (pending_bytes_ > kPendingBytesMax) {
    Close();
    return;
  }
  pieces_.push_back(std::move(piece));
  PumpStream();
}

void AdminSession::PumpStream() {
  if (is_writing_ || pieces_.empty()) {
    return;
  }
  is_writing_ = true;
  stream_.expires_after(kStreamTimeout);
  asio::async_write(stream_, asio::buffer(*pieces_.front()),
                    [self = shared_from_this()](Error error, size_t) {
                      self->is_writing_ = false;
                      if (error || self->is_head_) {
                        self->Close();
                        return;
                      }
                      self->pending_bytes_ -= self->pieces_.front()->size();
                      self->pieces_.pop_front();
                      self->stream_.expires_never();
                      self->PumpStream();
                    });
}

// A client of a stream says nothing more: what comes is its end.
void AdminSession::WatchForClose() {
  stream_.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this()](Error error) {
    if (!error && self->stream_.socket().is_open()) {
      self->Close();
    }
  });
}

void AdminSession::Close() {
  beast::error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
  stream_.close();
  if (upstream_) {
    upstream_->close();
  }
  if (const std::function<void()> on_closed = std::exchange(on_closed_, nullptr); on_closed) {
    on_closed();
  }
}

}  // namespace conclave::service
