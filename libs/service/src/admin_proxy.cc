// Requests that the admin listener hands on: the page's chat goes to a frontend. The answer comes
// back byte for byte, so that a stream stays one.
#include <boost/asio/ip/address.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <sstream>
#include <utility>

#include "admin_session.h"
#include "conclave/base/status.h"

namespace conclave::service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr auto kConnectTimeout = std::chrono::seconds(2);
// Between two pieces of an answer; a long prompt on a slow machine says nothing for a while.
constexpr auto kAnswerTimeout = std::chrono::minutes(10);
constexpr size_t kPieceBytes = 16 << 10;

}  // namespace

void AdminSession::HandOn(const AdminRoute& route) {
  const auto fail = [this](const absl::Status& status) {
    Answer(MakeAdminResponse(http::status::service_unavailable, AdminErrorBody(status),
                             "application/json"));
  };
  const absl::StatusOr<Address> address = route.upstream();
  if (!address.ok()) {
    fail(address.status());
    return;
  }
  beast::error_code error;
  const auto ip = asio::ip::make_address(address->host, error);
  if (error) {
    fail(::conclave::Error(absl::StatusCode::kUnavailable, "connect",
                           ToString(*address) + ": expected a numeric address"));
    return;
  }
  const auto& request = parser_->get();
  // Written anew: nothing of the client's hop goes further than what is named here.
  http::request<http::string_body> onward(request.method(), request.target(), 11);
  onward.set(http::field::host, ToString(*address));
  onward.set(http::field::connection, "close");
  for (const http::field field :
       {http::field::content_type, http::field::authorization, http::field::accept}) {
    if (request.count(field) > 0) {
      onward.set(field, request[field]);
    }
  }
  onward.body() = request.body();
  onward.prepare_payload();
  std::ostringstream text;
  text << onward;
  relay_ = text.str();

  stream_.expires_never();
  upstream_.emplace(stream_.get_executor());
  upstream_->expires_after(kConnectTimeout);
  upstream_->async_connect(
      tcp::endpoint(ip, address->port),
      [self = shared_from_this(), where = ToString(*address)](Error connect_error) {
        if (connect_error) {
          self->Answer(MakeAdminResponse(
              http::status::service_unavailable,
              AdminErrorBody(::conclave::Error(absl::StatusCode::kUnavailable, "connect",
                                               where + ": " + connect_error.message())),
              "application/json"));
          return;
        }
        // A client that goes away ends its request there too.
        self->WatchForClose();
        self->upstream_->expires_after(kAnswerTimeout);
        asio::async_write(*self->upstream_, asio::buffer(self->relay_),
                          [self](Error write_error, size_t) {
                            if (write_error) {
                              self->Close();
                              return;
                            }
                            self->relay_.assign(kPieceBytes, '\0');
                            self->RelayRead();
                          });
      });
}

void AdminSession::RelayRead() {
  upstream_->expires_after(kAnswerTimeout);
  upstream_->async_read_some(
      asio::buffer(relay_), [self = shared_from_this()](Error error, size_t num_bytes) {
        if (error) {
          // The end of the answer is the end of both connections.
          self->Close();
          return;
        }
        self->stream_.expires_after(std::chrono::seconds(60));
        asio::async_write(self->stream_, asio::buffer(self->relay_.data(), num_bytes),
                          [self](Error write_error, size_t) {
                            if (write_error) {
                              self->Close();
                              return;
                            }
                            self->RelayRead();
                          });
      });
}

}  // namespace conclave::service
