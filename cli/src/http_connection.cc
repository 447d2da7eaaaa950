#include "http_connection.h"

#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/service/server_url.h"
#include "conclave/service/units.h"

namespace conclave::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

constexpr auto kConnectTimeout = std::chrono::seconds(10);

// What stands before the paths of requests; a base URL of other clients ends with "/v1".
absl::StatusOr<service::ServerUrl> ParseUrl(const std::string& text) {
  std::optional<service::ServerUrl> url = service::ParseServerUrl(text, "80");
  if (!url) {
    return InvalidArgument(
        "usage", "--url: expected http://HOST[:PORT][/v1], found " + service::Quoted(text));
  }
  if (url->path.ends_with("/v1")) {
    url->path.resize(url->path.size() - 3);
  }
  return *std::move(url);
}

using Parser = http::response_parser<http::string_body>;

}  // namespace

// Every operation runs the loop until it is done, timed out or cancelled.
class HttpConnection::Impl {
 public:
  Impl(service::ServerUrl server, HttpOptions options)
      : server_(std::move(server)), options_(std::move(options)) {}

  // Sends a request on a new connection and reads the reply's header.
  absl::Status Start(http::verb verb, const std::string& path, std::string body) {
    stream_.emplace(context_);
    buffer_.clear();
    CONCLAVE_RETURN_IF_ERROR(Connect());
    http::request<http::string_body> request(verb, server_.path + path, 11);
    request.set(http::field::host, server_.Authority());
    request.set(http::field::user_agent, options_.user_agent);
    request.set(http::field::accept, "text/event-stream, application/json");
    request.set(http::field::connection, "close");
    if (!body.empty()) {
      request.set(http::field::content_type, "application/json");
    }
    request.body() = std::move(body);
    request.prepare_payload();
    parser_.emplace();
    if (options_.reply_bytes_max.has_value()) {
      parser_->body_limit(*options_.reply_bytes_max);
    } else {
      parser_->body_limit(boost::none);
    }
    parser_->eager(true);
    // A server may refuse before it has read all of a large body: its reply is worth more than the
    // write error.
    const beast::error_code write_error = Run(options_.read_timeout, [&](auto handler) {
      http::async_write(*stream_, request, std::move(handler));
    });
    const beast::error_code read_error = Run(options_.read_timeout, [&](auto handler) {
      http::async_read_header(*stream_, buffer_, *parser_, std::move(handler));
    });
    if (read_error) {
      return Failed(write_error ? write_error : read_error);
    }
    return absl::OkStatus();
  }

  int status() const { return static_cast<int>(parser_->get().result_int()); }

  // The next piece of the body; empty at its end.
  absl::StatusOr<std::string> ReadSome() {
    while (parser_->get().body().empty() && !parser_->is_done()) {
      const beast::error_code error = Run(options_.read_timeout, [&](auto handler) {
        http::async_read_some(*stream_, buffer_, *parser_, std::move(handler));
      });
      if (error) {
        return Failed(error);
      }
    }
    return std::exchange(parser_->get().body(), {});
  }

  absl::StatusOr<std::string> ReadAll() {
    std::string all;
    while (true) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string piece, ReadSome());
      if (piece.empty()) {
        return all;
      }
      all += piece;
    }
  }

  void Cancel() {
    is_cancelled_ = true;
    // Waits in the loop until one runs: a call that has just looked is reached too.
    asio::post(context_, [this] {
      if (stream_.has_value()) {
        stream_->cancel();
      }
    });
  }

 private:
  absl::Status Connect() {
    tcp::resolver resolver(context_);
    beast::error_code error;
    const auto results = resolver.resolve(server_.host, server_.port, error);
    if (!error) {
      error = Run(kConnectTimeout, [&](auto handler) {
        stream_->async_connect(
            results, [done = std::move(handler)](beast::error_code e,
                                                 const tcp::endpoint&) mutable { done(e, 0); });
      });
    }
    if (is_cancelled_) {
      return absl::CancelledError("cancelled");
    }
    if (error) {
      return Error(absl::StatusCode::kUnavailable, "connect", Name() + ": " + error.message());
    }
    return absl::OkStatus();
  }

  template <typename Fn>
  beast::error_code Run(std::chrono::nanoseconds timeout, const Fn& start) {
    beast::error_code result = asio::error::operation_aborted;
    if (is_cancelled_) {
      return result;
    }
    stream_->expires_after(std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
    start([&result](beast::error_code error, size_t) { result = error; });
    context_.restart();
    context_.run();
    return result;
  }

  absl::Status Failed(const beast::error_code& error) const {
    if (is_cancelled_) {
      return absl::CancelledError("cancelled");
    }
    const bool is_cut = error == http::error::partial_message ||
                        error == http::error::end_of_stream || error == asio::error::eof;
    return Error(absl::StatusCode::kUnavailable, "http",
                 Name() + ": " +
                     (is_cut ? std::string("the server closed the connection before the end of "
                                           "its answer")
                             : error.message()));
  }

  std::string Name() const { return "http://" + server_.Authority(); }

  const service::ServerUrl server_;
  const HttpOptions options_;
  std::atomic<bool> is_cancelled_{false};
  asio::io_context context_{1};
  std::optional<beast::tcp_stream> stream_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
};

HttpConnection::HttpConnection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpConnection::~HttpConnection() = default;

absl::StatusOr<std::unique_ptr<HttpConnection>> HttpConnection::To(const std::string& url,
                                                                   HttpOptions options) {
  CONCLAVE_ASSIGN_OR_RETURN(service::ServerUrl server, ParseUrl(url));
  return std::unique_ptr<HttpConnection>(
      new HttpConnection(std::make_unique<Impl>(std::move(server), std::move(options))));
}

absl::Status HttpConnection::Get(const std::string& path) {
  return impl_->Start(http::verb::get, path, "");
}
absl::Status HttpConnection::Post(const std::string& path, std::string json) {
  return impl_->Start(http::verb::post, path, std::move(json));
}
int HttpConnection::status() const { return impl_->status(); }
absl::StatusOr<std::string> HttpConnection::ReadSome() { return impl_->ReadSome(); }
absl::StatusOr<std::string> HttpConnection::ReadAll() { return impl_->ReadAll(); }
void HttpConnection::Cancel() { impl_->Cancel(); }

}  // namespace conclave::cli
