#include "http/server_state.h"

#include <utility>

namespace conclave::frontend {
namespace {

constexpr size_t kUnknownFieldsMax = 64;

std::mt19937_64 SeededFromSystem() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device(),
                     device(), device(), device(), device()};
  return std::mt19937_64(seed);
}

}  // namespace

ServerState::ServerState(HttpServerOptions options, HttpObserver observer)
    : options_(std::move(options)), observer_(std::move(observer)), random_(SeededFromSystem()) {}

void ServerState::BeginRequest() {
  MutexLock lock(mu_);
  ++num_running_;
}

void ServerState::EndRequest() {
  MutexLock lock(mu_);
  if (--num_running_ == 0) {
    idle_.NotifyAll();
  }
}

bool ServerState::WaitUntilIdle(std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  MutexLock lock(mu_);
  while (num_running_ > 0) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds(0)) {
      return false;
    }
    idle_.WaitFor(mu_, left);
  }
  return true;
}

std::string ServerState::NewId() {
  constexpr char kHex[] = "0123456789abcdef";
  std::string id;
  MutexLock lock(mu_);
  for (int word = 0; word < 2; ++word) {
    const uint64_t bits = random_();
    for (int shift = 60; shift >= 0; shift -= 4) {
      id += kHex[bits >> shift & 15];
    }
  }
  return id;
}

uint64_t ServerState::NewSeed() {
  MutexLock lock(mu_);
  return random_();
}

void ServerState::ReportUnknownField(const std::string& name) {
  {
    MutexLock lock(mu_);
    if (unknown_fields_.size() >= kUnknownFieldsMax || !unknown_fields_.insert(name).second) {
      return;
    }
  }
  if (observer_.on_unknown_field) {
    observer_.on_unknown_field(name);
  }
}

std::optional<HttpError> NotServing(const ServerState& state) {
  if (state.is_draining()) {
    return HttpError{503, "draining", "the server is shutting down; try another one or again later",
                     ""};
  }
  if (state.backend() == nullptr) {
    return HttpError{503, "model_loading", "the model is still being loaded; try again later", ""};
  }
  return std::nullopt;
}

bool IsSaneRequestId(std::string_view id) {
  constexpr std::string_view kOthers = "-_.:/+=@";
  constexpr size_t kBytesMax = 128;
  if (id.empty() || id.size() > kBytesMax) {
    return false;
  }
  for (const char c : id) {
    const bool is_alnum =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!is_alnum && kOthers.find(c) == std::string_view::npos) {
      return false;
    }
  }
  return true;
}

}  // namespace conclave::frontend
