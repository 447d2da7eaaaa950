// A gRPC client of the inference service for tests, and a server on a free port.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "conclave/frontend/inference_server.h"
#include "conclave/testing/fake_clock.h"
#include "conclave/transport/grpc_support.h"
#include "http_test_support.h"
#include "inference.grpc.pb.h"

namespace conclave::frontend {

// FakeBackend, whose readiness may change while others ask.
class InferenceBackend : public FakeBackend {
 public:
  absl::Status Readiness() const override {
    return is_ready ? absl::OkStatus() : absl::UnavailableError("not covered");
  }
  std::atomic<bool> is_ready{true};
};

// What a client has of one call.
struct Answer {
  std::vector<v1::ChatResponse> pieces;
  grpc::Status status;
  std::string param;     // of the trailing metadata
  std::string pushback;  // likewise
  std::string request_id;

  std::string text() const {
    std::string all;
    for (const v1::ChatResponse& piece : pieces) {
      all += piece.text();
    }
    return all;
  }
  // The word before the first ": ".
  std::string reason() const {
    return status.error_message().substr(0, status.error_message().find(": "));
  }
};

// One call under way, synchronous on the client's side.
class TestCall {
 public:
  TestCall(v1::InferenceService::Stub& stub, v1::ChatRequest request)
      : request_(std::move(request)), stub_(stub) {
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
  }
  grpc::ClientContext& context() { return context_; }

  void Begin() { reader_ = stub_.Chat(&context_, request_); }
  bool Read(v1::ChatResponse& piece) { return reader_->Read(&piece); }

  // Reads to the end.
  Answer Rest() {
    Answer answer;
    v1::ChatResponse piece;
    while (reader_->Read(&piece)) {
      answer.pieces.push_back(piece);
    }
    answer.status = reader_->Finish();
    const auto text = [](const auto& metadata, const char* name) {
      const auto found = metadata.find(name);
      return found == metadata.end() ? std::string()
                                     : std::string(found->second.data(), found->second.size());
    };
    answer.param = text(context_.GetServerTrailingMetadata(), "conclave-param");
    answer.pushback = text(context_.GetServerTrailingMetadata(), "grpc-retry-pushback-ms");
    answer.request_id = text(context_.GetServerInitialMetadata(), "x-request-id");
    // A reply without messages has its first metadata in the same frame as its last.
    if (answer.request_id.empty()) {
      answer.request_id = text(context_.GetServerTrailingMetadata(), "x-request-id");
    }
    return answer;
  }

 private:
  const v1::ChatRequest request_;
  v1::InferenceService::Stub& stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::ChatResponse>> reader_;
};

inline v1::ChatRequest Question(const std::string& text = "hi") {
  v1::ChatRequest request;
  v1::ChatMessage& message = *request.add_messages();
  message.set_role("user");
  message.add_content()->set_text(text);
  return request;
}

class InferenceServerTest : public ::testing::Test {
 protected:
  void Start(InferenceServerOptions options = {}, bool with_backend = true,
             const transport::TlsIdentity& tls = {}) {
    options.clock = &clock_;
    auto server = InferenceServer::Start(
        options, tls, [this](const char* method, const char* code, double seconds) {
          EXPECT_GE(seconds, 0);
          observed_.Add(std::string(method) + " " + code);
        });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (with_backend) {
      server_->SetBackend(backend_);
    }
    Connect({});
  }

  void Connect(const transport::TlsIdentity& tls) {
    channel_ = grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(server_->port()),
                                         transport::ChannelCredentialsOf(tls),
                                         transport::ClientArguments(64 << 20));
    stub_ = v1::InferenceService::NewStub(channel_);
  }

  // "SERVING", "NOT_SERVING" or gRPC's code as a number.
  std::string Health(const std::string& service = "") {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kPatience);
    std::string bytes;
    if (!service.empty()) {
      bytes = std::string("\x0a") + static_cast<char>(service.size()) + service;
    }
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::Status status;
    grpc::CompletionQueue queue;
    grpc::GenericStub stub(channel_);
    const auto call =
        stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
    call->StartCall();
    call->Finish(&response, &status, this);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    if (!status.ok()) {
      return std::to_string(status.error_code());
    }
    std::vector<grpc::Slice> slices;
    response.Dump(&slices);
    std::string found;
    for (const grpc::Slice& part : slices) {
      found.append(reinterpret_cast<const char*>(part.begin()), part.size());
    }
    return found == "\x08\x01" ? "SERVING" : found == "\x08\x02" ? "NOT_SERVING" : found;
  }

  // Asks until it is so; false when it never is.
  bool WaitForHealth(const std::string& wanted, const std::string& service = "") {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (Health(service) != wanted) {
      if (std::chrono::steady_clock::now() > deadline) {
        return false;
      }
    }
    return true;
  }

  Answer Ask(const v1::ChatRequest& request) {
    TestCall call(*stub_, request);
    call.Begin();
    return call.Rest();
  }

  // Answers every request with "Hello there".
  void UseHelloScript() {
    backend_.script = [](const SubmittedChat& chat) {
      chat.Delta("Hello");
      chat.Delta(" there");
      chat.End();
      chat.Done();
    };
  }

  std::string WaitForObserved() { return observed_.WaitForNext(); }

  InferenceBackend backend_;
  conclave::testing::FakeClock clock_;
  ObservedCalls observed_;
  std::unique_ptr<InferenceServer> server_;  // its threads use what stands before
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

}  // namespace conclave::frontend
