// What must end whenever a request ends, however it ends.
#pragma once

#include <memory>
#include <utility>

#include "conclave/frontend/chat.h"
#include "http/chat_stream.h"
#include "http/server_state.h"

namespace conclave::frontend {

// Counts a request as running. `state` outlives it.
class RunningRequest {
 public:
  explicit RunningRequest(ServerState& state) : state_(state) { state_.BeginRequest(); }
  ~RunningRequest() { state_.EndRequest(); }
  RunningRequest(const RunningRequest&) = delete;
  RunningRequest& operator=(const RunningRequest&) = delete;

 private:
  ServerState& state_;
};

// A request inside the backend: cancelled unless it is done.
class ActiveChat {
 public:
  ActiveChat(ChatBackend& backend, ChatId id, std::shared_ptr<ChatStream> stream)
      : backend_(backend), id_(id), stream_(std::move(stream)) {}
  ~ActiveChat() {
    stream_->Detach();
    if (!is_done_) {
      backend_.Cancel(id_);
    }
  }
  ActiveChat(const ActiveChat&) = delete;
  ActiveChat& operator=(const ActiveChat&) = delete;

  // Empty when nothing happened. Sees the end.
  ChatEvents Take() {
    ChatEvents events = stream_->Take();
    is_done_ = is_done_ || events.done.has_value();
    return events;
  }

 private:
  ChatBackend& backend_;
  const ChatId id_;
  const std::shared_ptr<ChatStream> stream_;
  bool is_done_ = false;
};

}  // namespace conclave::frontend
