// A scripted backend and a plain blocking client for tests of the HTTP layer.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/base/mutex.h"
#include "conclave/frontend/chat.h"

namespace conclave::frontend {

// Every wait of a test; far above what a loaded machine needs, and reached only when something is
// broken.
inline constexpr std::chrono::seconds kPatience{30};

struct SubmittedChat {
  ChatId id = 0;
  ChatRequest request;
  std::shared_ptr<ChatSink> sink;

  void Delta(const std::string& text, int32_t choice = 0) const;
  void End(FinishReason reason = FinishReason::kStop, int32_t choice = 0) const;
  void Fail(absl::Status status) const;
  void Done() const;
};

// The test plays the engine: it takes submitted requests and calls their sinks. Or a script answers
// them at once, on the submitting thread.
class FakeBackend : public ChatBackend {
 public:
  FakeBackend();

  // Before the first request.
  std::function<void(const SubmittedChat&)> script;
  absl::Status submit_status;
  absl::Status readiness;

  absl::StatusOr<ChatId> Submit(ChatRequest request, std::shared_ptr<ChatSink> sink) override;
  void Cancel(ChatId id) override;
  const ModelCard& model() const override { return card_; }
  absl::Status Readiness() const override { return readiness; }
  // One id per byte.
  std::vector<int32_t> Tokenize(const std::string& text) const override;
  std::string Detokenize(const std::vector<int32_t>& tokens) const override;

  // Waits for the next request that was not taken yet; id 0 if none came.
  SubmittedChat WaitForRequest();
  // Waits until `id` was cancelled; false if it was not.
  bool WaitForCancel(ChatId id);

 private:
  ModelCard card_;
  Mutex mu_;
  CondVar changed_;
  ChatId next_id_ ABSL_GUARDED_BY(mu_) = 1;
  std::vector<SubmittedChat> submitted_ ABSL_GUARDED_BY(mu_);
  std::set<ChatId> cancelled_ ABSL_GUARDED_BY(mu_);
};

struct Response {
  int status = 0;  // 0: the connection ended instead
  std::string status_line;
  std::map<std::string, std::string> fields;  // names in lower case
  std::string body;

  std::string Field(const std::string& name) const;
};

// What a server says of the requests that it has answered. Any thread.
class ObservedCalls {
 public:
  void Add(std::string call) {
    MutexLock lock(mu_);
    calls_.push_back(std::move(call));
    changed_.NotifyAll();
  }

  // The first one not taken yet, which is waited for; "" when none comes.
  std::string WaitForNext() { return Next(kPatience); }

  // Likewise, waiting for `patience` at most.
  std::string Next(std::chrono::milliseconds patience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    MutexLock lock(mu_);
    while (calls_.empty() && std::chrono::steady_clock::now() < deadline) {
      changed_.WaitFor(mu_, std::min<std::chrono::milliseconds>(patience, std::chrono::seconds(1)));
    }
    if (calls_.empty()) {
      return "";
    }
    std::string first = calls_.front();
    calls_.erase(calls_.begin());
    return first;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mu_);
};

class TestClient {
 public:
  // `receive_bytes` > 0 sets the size of the receive buffer.
  explicit TestClient(uint16_t port, int receive_bytes = 0);
  ~TestClient();
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  bool Send(std::string_view bytes);
  // Sends no more; the peer sees the end of the stream.
  void FinishSending();
  // As if the process was killed.
  void Close();

  // A whole response; skips none (100 Continue is a response too).
  Response Receive();
  // The head of a chunked response; then its chunks, one per call, "" after the last.
  Response ReceiveHead();
  std::string ReceiveChunk();
  // What comes until the peer closes.
  std::string ReceiveRest();

  Response Call(std::string_view bytes);

 private:
  bool ReadSome();
  bool ReadUntil(std::string_view mark, std::string& out);
  bool ReadBytes(size_t num_bytes, std::string& out);

  int socket_ = -1;
  std::string buffer_;
};

// What is wrong with `response` as an error of the API: another status or code, not the form of
// every error, or something internal told (a pointer, a path, an address, a library). Empty:
// nothing.
std::string ProblemOfError(const Response& response, int status, const std::string& code);

// `text` with what differs from run to run replaced: "chatcmpl-ID", "req-ID", "created":0.
std::string Masked(const std::string& text);

std::string Get(const std::string& path, const std::string& fields = "");
std::string Post(const std::string& path, const std::string& body, const std::string& fields = "");
// A small good chat request with `extra` fields.
std::string ChatBody(const std::string& extra = "");
std::string PostChat(const std::string& extra = "");

}  // namespace conclave::frontend
