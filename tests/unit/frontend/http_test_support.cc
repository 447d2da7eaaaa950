#include "http_test_support.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>

namespace conclave::frontend {
namespace {

std::string Lower(std::string text) {
  for (char& c : text) {
    c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return text;
}

constexpr char kHexDigits[] = "0123456789abcdef";

bool HasPointer(const std::string& lower) {
  constexpr size_t kPointerDigits = 6;
  for (size_t at = lower.find("0x"); at != std::string::npos; at = lower.find("0x", at + 1)) {
    const size_t end = lower.find_first_not_of(kHexDigits, at + 2);
    if ((end == std::string::npos ? lower.size() : end) - at - 2 >= kPointerDigits) {
      return true;
    }
  }
  return false;
}

// Replaces the characters of `set` after every `mark`.
void Mask(const std::string& mark, const std::string& set, const std::string& with,
          std::string& text) {
  for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at)) {
    at += mark.size();
    const size_t end = text.find_first_not_of(set, at);
    text.replace(at, (end == std::string::npos ? text.size() : end) - at, with);
  }
}

}  // namespace

std::string ProblemOfError(const Response& response, int status, const std::string& code) {
  const std::string& body = response.body;
  if (response.status != status || body.find("\"code\":\"" + code + "\"") == std::string::npos) {
    return "expected " + std::to_string(status) + " " + code + ", found " + response.status_line +
           " " + body;
  }
  const std::string id = response.Field("x-request-id");
  const std::string end = ",\"request_id\":\"" + id + "\"}";
  if (body.rfind("{\"error\":{\"message\":\"", 0) != 0 || id.empty() || body.size() < end.size() ||
      body.substr(body.size() - end.size()) != end) {
    return "not the form of an error: " + body;
  }
  if ((status == 503 || status == 429) != !response.Field("retry-after").empty()) {
    return "Retry-After missing or out of place";
  }
  const std::string lower = Lower(body);
  for (const char* word :
       {"/usr/", "/home/", "/tmp/",  "/etc/",   "/var/",  "/lib/",     "/build/",
        "/src/", "/proc/", "/root/", "boost",   "beast",  "asio",      "absl",
        "std::", ".cc",    ".hpp",   "libjpeg", "libpng", "127.0.0.1", "10.0.0."}) {
    if (lower.find(word) != std::string::npos) {
      return "tells something internal: " + body;
    }
  }
  return HasPointer(lower) ? "tells a pointer: " + body : "";
}

std::string Masked(const std::string& text) {
  std::string out = text;
  Mask("\"chatcmpl-", kHexDigits, "ID", out);
  Mask("req-", kHexDigits, "ID", out);
  Mask("\"created\":", "0123456789", "0", out);
  return out;
}

void SubmittedChat::Delta(const std::string& text, int32_t choice) const {
  ChatDelta delta;
  delta.choice = choice;
  delta.text = text;
  sink->OnDelta(std::move(delta));
}

void SubmittedChat::End(FinishReason reason, int32_t choice) const {
  ChoiceEnd end;
  end.choice = choice;
  end.reason = reason;
  sink->OnChoiceEnd(std::move(end));
}

void SubmittedChat::Fail(absl::Status status) const {
  ChoiceEnd end;
  end.reason = FinishReason::kError;
  end.status = std::move(status);
  sink->OnChoiceEnd(std::move(end));
  Done();
}

void SubmittedChat::Done() const { sink->OnDone(Usage{10, 6, 4, 3}, Timings{1, 2, 3, 4, 5}); }

FakeBackend::FakeBackend() {
  card_.id = "demo";
  card_.max_model_len = 2048;
  card_.vocab_size = 256;
  card_.has_vision = true;
  card_.created = 1700000000;
  card_.fingerprint = "fp";
  card_.numeric_mode = "f32";
}

absl::StatusOr<ChatId> FakeBackend::Submit(ChatRequest request, std::shared_ptr<ChatSink> sink) {
  if (!submit_status.ok()) {
    return submit_status;
  }
  SubmittedChat chat;
  {
    MutexLock lock(mu_);
    chat = SubmittedChat{next_id_++, std::move(request), std::move(sink)};
    if (!script) {
      submitted_.push_back(chat);
      changed_.NotifyAll();
    }
  }
  if (script) {
    script(chat);
  }
  return chat.id;
}

void FakeBackend::Cancel(ChatId id) {
  MutexLock lock(mu_);
  cancelled_.insert(id);
  changed_.NotifyAll();
}

std::vector<int32_t> FakeBackend::Tokenize(const std::string& text) const {
  std::vector<int32_t> ids;
  for (const char c : text) {
    ids.push_back(static_cast<unsigned char>(c));
  }
  return ids;
}

std::string FakeBackend::Detokenize(const std::vector<int32_t>& tokens) const {
  std::string text;
  for (const int32_t token : tokens) {
    text += static_cast<char>(token);
  }
  return text;
}

SubmittedChat FakeBackend::WaitForRequest() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  MutexLock lock(mu_);
  while (submitted_.empty()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return {};
    }
    changed_.WaitFor(mu_, std::chrono::seconds(1));
  }
  SubmittedChat chat = std::move(submitted_.front());
  submitted_.erase(submitted_.begin());
  return chat;
}

bool FakeBackend::WaitForCancel(ChatId id) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  MutexLock lock(mu_);
  while (cancelled_.count(id) == 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    changed_.WaitFor(mu_, std::chrono::seconds(1));
  }
  return true;
}

std::string Response::Field(const std::string& name) const {
  const auto it = fields.find(Lower(name));
  return it == fields.end() ? "" : it->second;
}

TestClient::TestClient(uint16_t port, int receive_bytes) {
  socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
  timeval timeout{};
  timeout.tv_sec = kPatience.count();
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  ::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  if (receive_bytes > 0) {
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    Close();
  }
}

TestClient::~TestClient() { Close(); }

bool TestClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) {
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void TestClient::FinishSending() { ::shutdown(socket_, SHUT_WR); }

void TestClient::Close() {
  if (socket_ >= 0) {
    ::close(socket_);
    socket_ = -1;
  }
}

bool TestClient::ReadSome() {
  char bytes[16384];
  const ssize_t received = ::recv(socket_, bytes, sizeof(bytes), 0);
  if (received <= 0) {
    return false;
  }
  buffer_.append(bytes, static_cast<size_t>(received));
  return true;
}

bool TestClient::ReadUntil(std::string_view mark, std::string& out) {
  size_t at = buffer_.find(mark);
  while (at == std::string::npos) {
    if (!ReadSome()) {
      return false;
    }
    at = buffer_.find(mark);
  }
  out = buffer_.substr(0, at);
  buffer_.erase(0, at + mark.size());
  return true;
}

bool TestClient::ReadBytes(size_t num_bytes, std::string& out) {
  while (buffer_.size() < num_bytes) {
    if (!ReadSome()) {
      return false;
    }
  }
  out = buffer_.substr(0, num_bytes);
  buffer_.erase(0, num_bytes);
  return true;
}

Response TestClient::ReceiveHead() {
  Response response;
  std::string head;
  if (!ReadUntil("\r\n\r\n", head)) {
    return response;
  }
  head += "\r\n";
  size_t start = head.find("\r\n") + 2;
  response.status_line = head.substr(0, start - 2);
  response.status = std::atoi(response.status_line.substr(9, 3).c_str());
  while (start < head.size()) {
    const size_t end = head.find("\r\n", start);
    const std::string line = head.substr(start, end - start);
    const size_t colon = line.find(": ");
    response.fields[Lower(line.substr(0, colon))] = line.substr(colon + 2);
    start = end + 2;
  }
  return response;
}

std::string TestClient::ReceiveChunk() {
  std::string size_line;
  std::string chunk;
  if (!ReadUntil("\r\n", size_line)) {
    return "<connection ended>";
  }
  const size_t num_bytes = std::strtoull(size_line.c_str(), nullptr, 16);
  std::string end;
  if (!ReadBytes(num_bytes, chunk) || !ReadBytes(2, end)) {
    return "<connection ended>";
  }
  return chunk;
}

Response TestClient::Receive() {
  Response response = ReceiveHead();
  if (response.status == 0 || response.status == 100) {
    return response;
  }
  if (response.Field("transfer-encoding") == "chunked") {
    for (std::string chunk = ReceiveChunk(); !chunk.empty(); chunk = ReceiveChunk()) {
      response.body += chunk;
      if (chunk == "<connection ended>") {
        break;
      }
    }
  } else if (!response.Field("content-length").empty()) {
    ReadBytes(std::strtoull(response.Field("content-length").c_str(), nullptr, 10), response.body);
  } else {
    response.body = ReceiveRest();
  }
  return response;
}

std::string TestClient::ReceiveRest() {
  while (ReadSome()) {
  }
  return std::exchange(buffer_, "");
}

Response TestClient::Call(std::string_view bytes) {
  Send(bytes);
  return Receive();
}

std::string Get(const std::string& path, const std::string& fields) {
  return "GET " + path + " HTTP/1.1\r\nHost: test\r\n" + fields + "\r\n";
}

std::string Post(const std::string& path, const std::string& body, const std::string& fields) {
  return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n" + fields +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

std::string ChatBody(const std::string& extra) {
  return R"({"model":"demo","messages":[{"role":"user","content":"hi"}])" +
         (extra.empty() ? "" : "," + extra) + "}";
}

std::string PostChat(const std::string& extra) {
  return Post("/v1/chat/completions", ChatBody(extra));
}

}  // namespace conclave::frontend
