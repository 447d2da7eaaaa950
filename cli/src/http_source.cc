// Answers from a server: HTTP/1.1 without TLS, the streamed reply read as it comes.
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <chrono>
#include <optional>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/service/server_url.h"
#include "conclave/service/units.h"
#include "conversation.h"
#include "sse.h"

namespace conclave::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using asio::ip::tcp;

constexpr auto kConnectTimeout = std::chrono::seconds(10);
// Between two pieces of an answer; a long prefill on a slow machine is silent for a while.
constexpr auto kReadTimeout = std::chrono::minutes(10);
constexpr uint64_t kReplyBytesMax = uint64_t{64} << 20;

// What stands before the paths of the API; a base URL of other clients ends with "/v1".
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

// One request at a time. Every operation runs the loop until it is done or timed out.
class Connection {
 public:
  explicit Connection(service::ServerUrl server) : server_(std::move(server)) {}

  // Sends a request on a new connection and reads the reply's header.
  absl::Status Start(http::verb verb, const std::string& path, std::string body) {
    stream_.emplace(context_);
    buffer_.clear();
    CONCLAVE_RETURN_IF_ERROR(Connect());
    http::request<http::string_body> request(verb, server_.path + path, 11);
    request.set(http::field::host, server_.Authority());
    request.set(http::field::user_agent, "conclave-ask");
    request.set(http::field::accept, "text/event-stream, application/json");
    request.set(http::field::connection, "close");
    if (!body.empty()) {
      request.set(http::field::content_type, "application/json");
    }
    request.body() = std::move(body);
    request.prepare_payload();
    parser_.emplace();
    parser_->body_limit(kReplyBytesMax);
    parser_->eager(true);
    // A server may refuse before it has read all of a large body: its reply is worth more than the
    // write error.
    const beast::error_code write_error = Run(kReadTimeout, [&](auto handler) {
      http::async_write(*stream_, request, std::move(handler));
    });
    const beast::error_code read_error = Run(kReadTimeout, [&](auto handler) {
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
      const beast::error_code error = Run(kReadTimeout, [&](auto handler) {
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
    if (error) {
      return Error(absl::StatusCode::kUnavailable, "connect", Name() + ": " + error.message());
    }
    return absl::OkStatus();
  }

  template <typename Fn>
  beast::error_code Run(std::chrono::nanoseconds timeout, const Fn& start) {
    beast::error_code result = asio::error::operation_aborted;
    stream_->expires_after(std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
    start([&result](beast::error_code error, size_t) { result = error; });
    context_.restart();
    context_.run();
    return result;
  }

  absl::Status Failed(const beast::error_code& error) const {
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
  asio::io_context context_{1};
  std::optional<beast::tcp_stream> stream_;
  beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
};

class HttpSource final : public AnswerSource {
 public:
  explicit HttpSource(service::ServerUrl server) : connection_(std::move(server)) {}

  absl::Status FindModel() {
    CONCLAVE_RETURN_IF_ERROR(connection_.Start(http::verb::get, "/v1/models", ""));
    CONCLAVE_ASSIGN_OR_RETURN(const std::string body, connection_.ReadAll());
    if (connection_.status() != 200) {
      return ErrorOf(connection_.status(), body);
    }
    boost::system::error_code error;
    const json::value models = json::parse(body, error);
    const json::value* id = error ? nullptr : models.find_pointer("/data/0/id", error);
    if (id == nullptr || !id->is_string()) {
      return Error(absl::StatusCode::kUnavailable, "http",
                   "the server names no model at /v1/models");
    }
    model_ = std::string(id->get_string().c_str(), id->get_string().size());
    return absl::OkStatus();
  }

  absl::Status Ask(const std::vector<Turn>& turns, const AskParams& params,
                   const TakeText& take) override {
    CONCLAVE_RETURN_IF_ERROR(connection_.Start(http::verb::post, "/v1/chat/completions",
                                               ChatRequestBody(model_, turns, params)));
    if (connection_.status() != 200) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string body, connection_.ReadAll());
      return ErrorOf(connection_.status(), body);
    }
    SseReader reader;
    while (true) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string piece, connection_.ReadSome());
      if (piece.empty()) {
        return Error(absl::StatusCode::kUnavailable, "http",
                     "the answer ended without [DONE]: it may be cut");
      }
      CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> events, reader.Feed(piece));
      for (const std::string& data : events) {
        CONCLAVE_ASSIGN_OR_RETURN(const ChatEvent event, ParseChatEvent(data));
        if (event.is_end) {
          return absl::OkStatus();
        }
        if (!event.text.empty()) {
          CONCLAVE_RETURN_IF_ERROR(take(event.text));
        }
      }
    }
  }

 private:
  Connection connection_;
  std::string model_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AnswerSource>> ConnectTo(const std::string& url) {
  CONCLAVE_ASSIGN_OR_RETURN(service::ServerUrl server, ParseUrl(url));
  auto source = std::make_unique<HttpSource>(std::move(server));
  CONCLAVE_RETURN_IF_ERROR(source->FindModel());
  return source;
}

}  // namespace conclave::cli
