// One connection of the admin listener.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/service/admin_server.h"

namespace conclave::service {

class AdminSession;

// What sessions have of their server; a reply that is given late may outlive that.
struct AdminShared {
  explicit AdminShared(AdminServerOptions o) : options(std::move(o)) {}

  const AdminServerOptions options;
  std::atomic<int> num_open{0};
  // Handlers that are posted behind the server's end would never run, and keep their session.
  Mutex mu;
  bool is_over ABSL_GUARDED_BY(mu) = false;
  // The server's thread's.
  std::vector<std::weak_ptr<AdminSession>> sessions;
  boost::asio::io_context context{1};
};

// Keeps itself alive through its handlers, and through the reply that is awaited. All on the
// server's one thread, but for what replies are given by others, which is posted there.
class AdminSession : public std::enable_shared_from_this<AdminSession> {
 public:
  using tcp = boost::asio::ip::tcp;
  using Response = boost::beast::http::response<boost::beast::http::string_body>;

  AdminSession(tcp::socket socket, std::shared_ptr<AdminShared> shared);
  ~AdminSession();
  AdminSession(const AdminSession&) = delete;
  AdminSession& operator=(const AdminSession&) = delete;

  void Read();
  // Ends it, whatever it does.
  void Close();

  // ---- For the reply of a route ----
  void Answer(Response response);
  void BeginStream(std::string content_type, std::function<void()> on_closed);
  void WriteStream(std::shared_ptr<const std::string> piece);

 private:
  using Error = boost::beast::error_code;
  class Reply;

  void OnHead(Error error);
  void OnRequest(Error error);
  void Dispatch();
  const AdminRoute* FindRoute(std::string_view path, std::string_view method) const;
  // The methods of a path, as the header Allow has them; empty: there is no such path.
  std::string AllowedAt(std::string_view path) const;
  // Why a POST is refused; nullopt: it is not.
  std::optional<Response> RefusePost() const;
  std::string_view HeaderOf(boost::beast::http::field field) const;
  void PumpStream();
  void WatchForClose();

  // ---- Handing on (admin_proxy.cc) ----
  void HandOn(const AdminRoute& route);
  void RelayRead();

  const std::shared_ptr<AdminShared> shared_;  // in front of all that uses its context
  const AdminServerOptions& options_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  Response response_;
  std::optional<boost::beast::http::response_serializer<boost::beast::http::string_body>>
      serializer_;
  int num_requests_ = 0;
  bool is_last_ = false;
  bool is_head_ = false;

  // Of a stream.
  bool is_streaming_ = false;
  bool is_writing_ = false;
  std::function<void()> on_closed_;
  std::deque<std::shared_ptr<const std::string>> pieces_;
  size_t pending_bytes_ = 0;

  // Of a request that is handed on.
  std::optional<boost::beast::tcp_stream> upstream_;
  std::string relay_;  // what goes there, then what comes back
};

// An answer with the headers that all of them have.
AdminSession::Response MakeAdminResponse(boost::beast::http::status status, std::string body,
                                         std::string_view type);

}  // namespace conclave::service
