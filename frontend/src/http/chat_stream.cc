#include "http/chat_stream.h"

#include <iterator>
#include <utility>

#include "conclave/base/check.h"

namespace conclave::frontend {
namespace {

size_t BytesOf(const ChatDelta& delta) {
  size_t bytes = delta.text.size() + delta.token_ids.size() * sizeof(int32_t);
  for (const TokenLogprob& logprob : delta.logprobs) {
    bytes += sizeof(logprob) + logprob.bytes.size();
    for (const TokenLogprob::Alternative& other : logprob.top) {
      bytes += sizeof(other) + other.bytes.size();
    }
  }
  return bytes;
}

template <typename T>
void Append(std::vector<T>&& from, std::vector<T>& to) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

bool ChatEvents::is_empty() const {
  for (const Choice& choice : choices) {
    if (choice.delta.has_value() || choice.end.has_value()) {
      return false;
    }
  }
  return !done.has_value();
}

ChatStream::ChatStream(int32_t num_choices, size_t pending_bytes_max, std::function<void()> notify)
    : num_choices_(num_choices), pending_bytes_max_(pending_bytes_max), notify_(std::move(notify)) {
  pending_.choices.resize(static_cast<size_t>(num_choices));
}

bool ChatStream::IsOpen() const { return notify_ != nullptr && !has_overflowed_; }

void ChatStream::Notify() {
  if (!is_notified_) {
    is_notified_ = true;
    notify_();
  }
}

void ChatStream::OnDelta(ChatDelta delta) {
  CONCLAVE_CHECK(delta.choice >= 0 && delta.choice < num_choices_);
  MutexLock lock(mu_);
  if (!IsOpen()) {
    return;
  }
  pending_bytes_ += BytesOf(delta);
  if (pending_bytes_ > pending_bytes_max_) {
    has_overflowed_ = true;
    pending_ = ChatEvents();
    pending_.choices.resize(static_cast<size_t>(num_choices_));
    // The receiver may sit in a write that does not end: it is told even if a notification is under
    // way.
    notify_();
    return;
  }
  std::optional<ChatDelta>& pending = pending_.choices[static_cast<size_t>(delta.choice)].delta;
  if (pending.has_value()) {
    pending->text += delta.text;
    Append(std::move(delta.token_ids), pending->token_ids);
    Append(std::move(delta.logprobs), pending->logprobs);
  } else {
    pending = std::move(delta);
  }
  Notify();
}

void ChatStream::OnChoiceEnd(ChoiceEnd end) {
  CONCLAVE_CHECK(end.choice >= 0 && end.choice < num_choices_);
  MutexLock lock(mu_);
  if (IsOpen()) {
    pending_.choices[static_cast<size_t>(end.choice)].end = std::move(end);
    Notify();
  }
}

void ChatStream::OnDone(const Usage& usage, const Timings& timings) {
  MutexLock lock(mu_);
  if (IsOpen()) {
    pending_.done = ChatEvents::Done{usage, timings};
    Notify();
  }
}

ChatEvents ChatStream::Take() {
  ChatEvents taken;
  taken.choices.resize(static_cast<size_t>(num_choices_));
  MutexLock lock(mu_);
  std::swap(taken, pending_);
  pending_bytes_ = 0;
  is_notified_ = false;
  return taken;
}

bool ChatStream::has_overflowed() const {
  MutexLock lock(mu_);
  return has_overflowed_;
}

void ChatStream::Detach() {
  MutexLock lock(mu_);
  notify_ = nullptr;
}

}  // namespace conclave::frontend
