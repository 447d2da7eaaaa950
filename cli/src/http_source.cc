// Answers from a server of the chat API.
#include <boost/json.hpp>
#include <utility>

#include "conclave/base/status.h"
#include "conversation.h"
#include "http_connection.h"
#include "sse.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

class HttpSource final : public AnswerSource {
 public:
  explicit HttpSource(std::unique_ptr<HttpConnection> connection)
      : connection_(std::move(connection)) {}

  absl::Status FindModel() {
    CONCLAVE_RETURN_IF_ERROR(connection_->Get("/v1/models"));
    CONCLAVE_ASSIGN_OR_RETURN(const std::string body, connection_->ReadAll());
    if (connection_->status() != 200) {
      return ErrorOf(connection_->status(), body);
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
    CONCLAVE_RETURN_IF_ERROR(
        connection_->Post("/v1/chat/completions", ChatRequestBody(model_, turns, params)));
    if (connection_->status() != 200) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string body, connection_->ReadAll());
      return ErrorOf(connection_->status(), body);
    }
    SseReader reader;
    while (true) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string piece, connection_->ReadSome());
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
  const std::unique_ptr<HttpConnection> connection_;
  std::string model_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AnswerSource>> ConnectTo(const std::string& url) {
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<HttpConnection> connection,
                            HttpConnection::To(url, {.user_agent = "conclave-ask"}));
  auto source = std::make_unique<HttpSource>(std::move(connection));
  CONCLAVE_RETURN_IF_ERROR(source->FindModel());
  return source;
}

}  // namespace conclave::cli
