// Server-sent events of a streamed chat answer, read as they come.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::cli {

struct SseEvent {
  std::string name;  // of the "event:" line; empty without one
  std::string data;
};

// Cuts a byte stream into events by the rules of the HTML standard (9.2.6) that matter here: lines
// end in LF, CR or CRLF, "data:" lines of one event are joined by LF, an empty line ends the event,
// comments and other fields are skipped. One thread.
class SseReader {
 public:
  explicit SseReader(size_t event_bytes_max = size_t{1} << 20)
      : event_bytes_max_(event_bytes_max) {}

  // The data of the events that `bytes` completes. kResourceExhausted ("http") when an event
  // exceeds the limit.
  absl::StatusOr<std::vector<std::string>> Feed(std::string_view bytes);
  // The same with their names.
  absl::StatusOr<std::vector<SseEvent>> FeedNamed(std::string_view bytes);

 private:
  void EndLine(std::vector<SseEvent>& events);

  const size_t event_bytes_max_;
  std::string line_;
  std::string name_;
  std::string data_;
  bool has_data_ = false;
  bool was_cr_ = false;
};

// One event of /v1/chat/completions.
struct ChatEvent {
  std::string text;     // delta.content
  bool is_end = false;  // [DONE]
};

// An {"error": ...} event becomes the status that ErrorOf gives; anything that is no chat chunk is
// kUnavailable
// ("http").
absl::StatusOr<ChatEvent> ParseChatEvent(const std::string& data);

// What a server's error body {"error":{"message","code"}} says: reason `code` when it is one of
// ours in form, message printable. kInvalidArgument for status 400 to 499, kUnavailable otherwise.
absl::Status ErrorOf(int http_status, const std::string& body);

}  // namespace conclave::cli
