#include "sse.h"

#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr size_t kMessageBytesMax = 512;

absl::Status NotAChunk(std::string_view why) {
  return Error(absl::StatusCode::kUnavailable, "http",
               "the server's answer is no chat stream: " + std::string(why));
}

// Null when `value` is no object or has no such key.
const json::value* Get(const json::value& value, std::string_view key) {
  const json::object* object = value.if_object();
  return object == nullptr ? nullptr : object->if_contains({key.data(), key.size()});
}

std::string TextOf(const json::value* value) {
  return value != nullptr && value->is_string()
             ? std::string(value->get_string().c_str(), value->get_string().size())
             : std::string();
}

bool IsReason(std::string_view word) {
  return !word.empty() && word.size() <= 64 && std::all_of(word.begin(), word.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

absl::Status FromErrorObject(int http_status, const json::value& error) {
  const std::string code = TextOf(Get(error, "code"));
  const std::string message = TextOf(Get(error, "message"));
  return Error(http_status >= 400 && http_status < 500 ? absl::StatusCode::kInvalidArgument
                                                       : absl::StatusCode::kUnavailable,
               IsReason(code) ? code : "http",
               message.empty() ? "HTTP " + std::to_string(http_status)
                               : observability::Printable(message, kMessageBytesMax));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> SseReader::Feed(std::string_view bytes) {
  CONCLAVE_ASSIGN_OR_RETURN(std::vector<SseEvent> named, FeedNamed(bytes));
  std::vector<std::string> events;
  for (SseEvent& event : named) {
    events.push_back(std::move(event.data));
  }
  return events;
}

absl::StatusOr<std::vector<SseEvent>> SseReader::FeedNamed(std::string_view bytes) {
  std::vector<SseEvent> events;
  for (const char c : bytes) {
    if (c == '\n' && std::exchange(was_cr_, false)) {
      continue;  // The second half of CRLF.
    }
    was_cr_ = c == '\r';
    if (c == '\n' || c == '\r') {
      EndLine(events);
      continue;
    }
    line_ += c;
    if (line_.size() + data_.size() > event_bytes_max_) {
      return Error(
          absl::StatusCode::kResourceExhausted, "http",
          "the server sent an event above " + std::to_string(event_bytes_max_ >> 20) + " MiB");
    }
  }
  return events;
}

void SseReader::EndLine(std::vector<SseEvent>& events) {
  if (line_.empty()) {
    std::string name = std::exchange(name_, {});
    if (std::exchange(has_data_, false)) {
      events.push_back({std::move(name), std::exchange(data_, {})});
    }
    return;
  }
  std::string_view line = line_;
  if (line.starts_with("event:")) {
    line.remove_prefix(6);
    line.remove_prefix(line.starts_with(' ') ? 1 : 0);
    name_ = line;
  } else if (line == "data" || line.starts_with("data:")) {
    line.remove_prefix(std::min<size_t>(line.size(), 5));
    line.remove_prefix(line.starts_with(' ') ? 1 : 0);
    data_ += has_data_ ? "\n" : "";
    data_ += line;
    has_data_ = true;
  }
  line_.clear();
}

absl::StatusOr<ChatEvent> ParseChatEvent(const std::string& data) {
  if (data == "[DONE]") {
    return ChatEvent{"", true};
  }
  boost::system::error_code error;
  const json::value chunk = json::parse(data, error);
  if (error || !chunk.is_object()) {
    return NotAChunk("an event is no JSON object");
  }
  if (const json::value* failure = Get(chunk, "error"); failure != nullptr && !failure->is_null()) {
    return FromErrorObject(500, *failure);
  }
  const json::value* choices = Get(chunk, "choices");
  if (choices == nullptr || !choices->is_array()) {
    return NotAChunk("an event has no choices");
  }
  ChatEvent event;
  for (const json::value& choice : choices->get_array()) {
    if (const json::value* delta = Get(choice, "delta"); delta != nullptr) {
      event.text += TextOf(Get(*delta, "content"));
    }
  }
  return event;
}

absl::Status ErrorOf(int http_status, const std::string& body) {
  boost::system::error_code error;
  const json::value parsed = json::parse(body, error);
  const json::value* failure = error ? nullptr : Get(parsed, "error");
  return FromErrorObject(http_status, failure == nullptr ? json::value() : *failure);
}

}  // namespace conclave::cli
