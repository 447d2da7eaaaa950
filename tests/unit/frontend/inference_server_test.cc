// Goal: the chat API over gRPC behaves as the one over HTTP, for clients that behave and for those
// that do not. Method: a server on a free port, the generated client, a virtual clock for the
// server's own times, and a backend that the test plays.
#include "conclave/frontend/inference_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/frontend/http_server.h"
#include "conclave/testing/temp_folder.h"
#include "conclave/transport/authority.h"
#include "inference_test_support.h"

namespace conclave::frontend {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr const char* kService = "conclave.v1.InferenceService";

void SendTokens(const SubmittedChat& chat, const std::string& text, std::vector<int32_t> ids) {
  ChatDelta delta;
  delta.text = text;
  delta.token_ids = std::move(ids);
  chat.sink->OnDelta(std::move(delta));
}

TEST_F(InferenceServerTest, StreamsPiecesAsTheyCome) {
  Start();
  v1::ChatRequest request = Question();
  request.set_return_token_ids(true);
  TestCall call(*stub_, request);
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  EXPECT_TRUE(chat.request.return_token_ids);
  SendTokens(chat, "Hel", {1, 2});
  v1::ChatResponse piece;
  ASSERT_TRUE(call.Read(piece));  // before the answer goes on
  EXPECT_EQ(piece.text(), "Hel");
  EXPECT_THAT(piece.token_ids(), ElementsAre(1, 2));
  EXPECT_EQ(piece.finish_reason(), "");
  EXPECT_FALSE(piece.has_usage());
  SendTokens(chat, "", {3});  // no text yet: the client asked for ids
  ASSERT_TRUE(call.Read(piece));
  EXPECT_THAT(piece.token_ids(), ElementsAre(3));
  chat.End(FinishReason::kLength);
  chat.Done();
  const Answer rest = call.Rest();
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  ASSERT_EQ(rest.pieces.size(), 1u);
  EXPECT_EQ(rest.pieces[0].finish_reason(), "length");
  EXPECT_EQ(rest.pieces[0].usage().prompt_tokens(), 10u);
  EXPECT_EQ(rest.pieces[0].usage().cached_tokens(), 4u);
  EXPECT_EQ(rest.pieces[0].usage().completion_tokens(), 3u);
  EXPECT_EQ(WaitForObserved(), "Chat OK");
}

TEST_F(InferenceServerTest, TheSameQuestionIsTheSameRequestAndAnswerAsOverHttp) {
  Start();
  HttpServerOptions http_options;
  http_options.port = 0;
  auto http = HttpServer::Start(http_options, {});
  ASSERT_TRUE(http.ok()) << http.status();
  (*http)->SetBackend(backend_);
  std::vector<ChatRequest> requests;
  backend_.script = [&requests](const SubmittedChat& chat) {
    requests.push_back(chat.request);
    SendTokens(chat, "A heart.", {7, 8, 9});
    chat.End();
    chat.Done();
  };
  v1::ChatRequest request = Question("what?");
  request.mutable_messages(0)->add_content()->set_image("\x89PNG\r\n\x1a\n");
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_sampling()->set_top_k(5);
  request.mutable_sampling()->set_seed(42);
  request.set_max_tokens(9);
  request.add_stop("!");
  request.set_return_token_ids(true);
  const Answer answer = Ask(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  TestClient client((*http)->port());
  const Response response = client.Call(Post(
      "/v1/chat/completions",
      R"({"model":"demo","messages":[{"role":"user","content":[{"type":"text","text":"what?"},)"
      R"({"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}],)"
      R"("temperature":0.5,"top_k":5,"seed":42,"max_tokens":9,"stop":"!","return_token_ids":true})"));
  ASSERT_EQ(response.status, 200) << response.body;
  EXPECT_THAT(response.body, HasSubstr(R"("content":")" + answer.text() + '"'));
  EXPECT_THAT(response.body, HasSubstr(R"("token_ids":[7,8,9])"));
  EXPECT_THAT(answer.pieces.back().token_ids(), ElementsAre(7, 8, 9));
  ASSERT_EQ(requests.size(), 2u);
  const ChatRequest& a = requests[0];
  const ChatRequest& b = requests[1];
  EXPECT_EQ(a.sampling.temperature, b.sampling.temperature);
  EXPECT_EQ(a.sampling.top_k, b.sampling.top_k);
  EXPECT_EQ(a.sampling.seed, b.sampling.seed);
  EXPECT_EQ(a.max_tokens, b.max_tokens);
  EXPECT_EQ(a.stops, b.stops);
  EXPECT_EQ(a.messages[0].parts[1].bytes, b.messages[0].parts[1].bytes);
}

TEST_F(InferenceServerTest, WithoutASeedEveryRequestGetsAnother) {
  Start();
  std::vector<uint64_t> seeds;
  backend_.script = [&seeds](const SubmittedChat& chat) {
    seeds.push_back(chat.request.sampling.seed);
    chat.End();
    chat.Done();
  };
  EXPECT_TRUE(Ask(Question()).status.ok());
  EXPECT_TRUE(Ask(Question()).status.ok());
  EXPECT_NE(seeds.at(0), seeds.at(1));
}

TEST_F(InferenceServerTest, ABadRequestIsRefusedWithItsReasonAndPlace) {
  Start();
  UseHelloScript();
  v1::ChatRequest request = Question();
  request.mutable_sampling()->set_top_p(7);
  const Answer refused = Ask(request);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.status.error_message(),
            "top_p_out_of_range: sampling.top_p: out of range; expected a number in (0, 1], "
            "found 7");
  EXPECT_EQ(refused.param, "sampling.top_p");
  EXPECT_EQ(refused.pushback, "");
  EXPECT_EQ(WaitForObserved(), "Chat INVALID_ARGUMENT");
  request = Question();
  request.set_model("other");
  const Answer unknown = Ask(request);
  EXPECT_EQ(unknown.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(unknown.reason(), "model_not_found");
  EXPECT_EQ(Ask(Question()).text(), "Hello there");
}

TEST_F(InferenceServerTest, WhatTheBackendSaysIsToldAsHttpTellsIt) {
  struct Row {
    absl::Status status;
    grpc::StatusCode code;
    const char* reason;
    bool may_retry;
  };
  const std::vector<Row> rows = {
      {InvalidArgument("image_corrupt", "the picture is broken"),
       grpc::StatusCode::INVALID_ARGUMENT, "image_corrupt", false},
      {Error(absl::StatusCode::kUnimplemented, "image_format_unsupported", "no picture"),
       grpc::StatusCode::INVALID_ARGUMENT, "image_format_unsupported", false},
      {InvalidArgument("context_length_exceeded", "too long"), grpc::StatusCode::INVALID_ARGUMENT,
       "context_length_exceeded", false},
      {Error(absl::StatusCode::kUnavailable, "expert_unserved", "worker w1 at 10.0.0.7 has gone"),
       grpc::StatusCode::UNAVAILABLE, "expert_unserved", true},
      {Error(absl::StatusCode::kResourceExhausted, "rate_limited", "slow down"),
       grpc::StatusCode::RESOURCE_EXHAUSTED, "rate_limited", true},
      {Error(absl::StatusCode::kDeadlineExceeded, "deadline_exceeded", "late"),
       grpc::StatusCode::DEADLINE_EXCEEDED, "deadline_exceeded", false},
      {absl::InternalError("secret file 10.0.0.7"), grpc::StatusCode::INTERNAL, "internal_error",
       false}};
  Start();
  for (const Row& row : rows) {
    for (const bool is_at_submit : {true, false}) {
      SCOPED_TRACE(std::string(row.reason) + (is_at_submit ? " at once" : " later"));
      backend_.submit_status = is_at_submit ? row.status : absl::OkStatus();
      backend_.script = [&row](const SubmittedChat& chat) { chat.Fail(row.status); };
      const Answer answer = Ask(Question());
      EXPECT_TRUE(answer.pieces.empty());
      EXPECT_EQ(answer.status.error_code(), row.code);
      EXPECT_EQ(answer.reason(), row.reason);
      EXPECT_THAT(answer.status.error_message(), Not(HasSubstr("10.0.0.7")));
      EXPECT_EQ(answer.pushback, row.may_retry ? "1000" : "");
    }
  }
}

TEST_F(InferenceServerTest, AnErrorInTheMiddleComesBehindWhatWasGenerated) {
  Start();
  backend_.script = [](const SubmittedChat& chat) {
    chat.Delta("Half of it");
    chat.Fail(Error(absl::StatusCode::kUnavailable, "expert_unserved", "gone"));
  };
  const Answer answer = Ask(Question());
  EXPECT_EQ(answer.text(), "Half of it");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(answer.reason(), "expert_unserved");
}

TEST_F(InferenceServerTest, WhileTheModelLoadsNothingIsServedAndTheHealthSaysSo) {
  Start({}, false);
  UseHelloScript();
  EXPECT_EQ(Health(), "NOT_SERVING");
  EXPECT_EQ(Health(kService), "NOT_SERVING");
  const Answer early = Ask(Question());
  EXPECT_EQ(early.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(early.reason(), "model_loading");
  EXPECT_EQ(early.pushback, "1000");
  grpc::ClientContext context;
  v1::GetModelResponse model;
  EXPECT_EQ(stub_->GetModel(&context, {}, &model).error_code(), grpc::StatusCode::UNAVAILABLE);
  server_->SetBackend(backend_);
  EXPECT_TRUE(WaitForHealth("SERVING"));
  EXPECT_TRUE(WaitForHealth("SERVING", kService));
  EXPECT_EQ(Health("another.Service"), std::to_string(grpc::StatusCode::NOT_FOUND));
  EXPECT_EQ(Ask(Question()).text(), "Hello there");
}

TEST_F(InferenceServerTest, TheHealthFollowsTheReadinessOfTheBackend) {
  Start();
  EXPECT_TRUE(WaitForHealth("SERVING"));
  backend_.is_ready = false;
  clock_.Advance(seconds(1));  // it is asked at every tick of the clock
  EXPECT_TRUE(WaitForHealth("NOT_SERVING"));
  EXPECT_TRUE(WaitForHealth("NOT_SERVING", kService));
  backend_.is_ready = true;
  clock_.Advance(seconds(1));
  EXPECT_TRUE(WaitForHealth("SERVING"));
}

TEST_F(InferenceServerTest, TellsTheModel) {
  Start();
  grpc::ClientContext context;
  v1::GetModelResponse model;
  ASSERT_TRUE(stub_->GetModel(&context, {}, &model).ok());
  EXPECT_EQ(model.id(), "demo");
  EXPECT_EQ(model.max_model_len(), 2048u);
  EXPECT_TRUE(model.has_vision());
  EXPECT_EQ(model.system_fingerprint(), "fp");
  EXPECT_EQ(WaitForObserved(), "GetModel OK");
}

TEST_F(InferenceServerTest, ACancelledCallFreesItsSequence) {
  Start();
  TestCall call(*stub_, Question());
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("Hello");
  v1::ChatResponse piece;
  ASSERT_TRUE(call.Read(piece));
  call.context().TryCancel();
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  EXPECT_EQ(call.Rest().status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(WaitForObserved(), "Chat CANCELLED");
  // The engine hears of it a step later.
  chat.Delta(" too late");
  chat.End(FinishReason::kCancelled);
  chat.Done();
}

TEST_F(InferenceServerTest, TheDeadlineOfTheRequestEndsIt) {
  Start();
  v1::ChatRequest request = Question();
  request.set_deadline_ms(5000);
  TestCall call(*stub_, request);
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  chat.Delta("Hello");
  v1::ChatResponse piece;
  ASSERT_TRUE(call.Read(piece));
  clock_.Advance(milliseconds(4900));
  chat.Delta(" there");
  ASSERT_TRUE(call.Read(piece));
  clock_.Advance(milliseconds(200));
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  const Answer rest = call.Rest();
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(rest.reason(), "deadline_exceeded");
  EXPECT_EQ(WaitForObserved(), "Chat DEADLINE_EXCEEDED");
}

TEST_F(InferenceServerTest, TheDeadlineOfTheCallEndsIt) {
  Start();
  // Long enough to reach the backend, which a busy machine decides.
  for (milliseconds deadline(500);; deadline *= 2) {
    TestCall call(*stub_, Question());
    call.context().set_deadline(std::chrono::system_clock::now() + deadline);
    std::atomic<ChatId> submitted{0};
    backend_.script = [&submitted](const SubmittedChat& chat) { submitted = chat.id; };
    call.Begin();
    EXPECT_EQ(call.Rest().status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    if (submitted != 0) {
      EXPECT_TRUE(backend_.WaitForCancel(submitted));
      break;
    }
    ASSERT_LT(deadline, kPatience);
  }
}

// Text for more than what the connection takes on its way.
constexpr int kDeltaBytes = 16 << 10;
constexpr int kDeltasMax = 1000;

TEST_F(InferenceServerTest, ASlowReaderLosesItsSequenceAndIsToldWhy) {
  InferenceServerOptions options;
  options.limits.pending_bytes_max = 128 << 10;
  Start(options);
  TestCall call(*stub_, Question());
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  // 16 MB for a client that takes none of it: the engine never waits, and is told to stop.
  for (int i = 0; i < kDeltasMax; ++i) {
    chat.Delta(std::string(kDeltaBytes, 'x'));
  }
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  const Answer rest = call.Rest();
  EXPECT_EQ(rest.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(rest.reason(), "slow_reader");
  EXPECT_LT(rest.text().size(), size_t{kDeltaBytes} * kDeltasMax);
  EXPECT_EQ(WaitForObserved(), "Chat RESOURCE_EXHAUSTED");
}

TEST_F(InferenceServerTest, AnEngineFasterThanTheStartOfTheCallIsNotForgotten) {
  InferenceServerOptions options;
  options.limits.pending_bytes_max = 128 << 10;
  Start(options);
  // All of it comes before the call knows what the backend calls it.
  backend_.script = [](const SubmittedChat& chat) {
    for (int i = 0; i < kDeltasMax; ++i) {
      chat.Delta(std::string(kDeltaBytes, 'x'));
    }
  };
  const Answer answer = Ask(Question());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(answer.reason(), "slow_reader");
  EXPECT_EQ(WaitForObserved(), "Chat RESOURCE_EXHAUSTED");
}

TEST_F(InferenceServerTest, AClientThatTakesNothingForTooLongHasGone) {
  InferenceServerOptions options;
  options.limits.pending_bytes_max = 64 << 20;
  options.limits.write_timeout = seconds(60);
  Start(options);
  TestCall call(*stub_, Question());
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  for (int i = 0; i < kDeltasMax; ++i) {
    chat.Delta(std::string(kDeltaBytes, 'x'));
  }
  // The write that stands begins at some moment; a minute behind it the call is over.
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  std::string observed;
  while (observed.empty() && std::chrono::steady_clock::now() < deadline) {
    clock_.Advance(seconds(61));
    observed = observed_.Next(milliseconds(200));
  }
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  EXPECT_EQ(observed, "Chat CANCELLED");
  EXPECT_EQ(call.Rest().status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(InferenceServerTest, ADrainLetsRunningCallsEndAndTakesNoNewOnes) {
  Start();
  EXPECT_TRUE(WaitForHealth("SERVING"));
  TestCall call(*stub_, Question());
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("Hello");
  EXPECT_FALSE(server_->Drain(milliseconds(10)));
  EXPECT_TRUE(WaitForHealth("NOT_SERVING"));
  const Answer refused = Ask(Question());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(refused.reason(), "draining");
  chat.Delta(" there");
  chat.End();
  chat.Done();
  const Answer answer = call.Rest();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text(), "Hello there");
  EXPECT_TRUE(server_->Drain(kPatience));
}

TEST_F(InferenceServerTest, AServerThatEndsCancelsWhatRuns) {
  Start();
  TestCall call(*stub_, Question());
  call.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  server_ = nullptr;
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  EXPECT_FALSE(call.Rest().status.ok());
  chat.Delta("to nobody");
}

TEST_F(InferenceServerTest, R01AMessageBeyondTheLimitIsRefusedAndTheConnectionStays) {
  InferenceServerOptions options;
  options.limits.body_bytes_max = 4096;
  Start(options);
  UseHelloScript();
  EXPECT_EQ(Ask(Question(std::string(5000, 'x'))).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Ask(Question(std::string(3000, 'x'))).text(), "Hello there");
  EXPECT_EQ(channel_->GetState(false), GRPC_CHANNEL_READY);
}

TEST_F(InferenceServerTest, R02CompressedMessagesAreRefused) {
  Start();
  UseHelloScript();
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE}) {
    TestCall call(*stub_, Question(std::string(1 << 20, 'x')));
    call.context().set_compression_algorithm(algorithm);
    call.Begin();
    EXPECT_EQ(call.Rest().status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  }
  EXPECT_EQ(Ask(Question()).text(), "Hello there");
}

TEST_F(InferenceServerTest, CallsBeyondTheLimitAreRefused) {
  InferenceServerOptions options;
  options.limits.connections_max = 1;
  Start(options);
  TestCall first(*stub_, Question());
  first.Begin();
  const SubmittedChat chat = backend_.WaitForRequest();
  const Answer second = Ask(Question());
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(second.reason(), "too_many_connections");
  chat.End();
  chat.Done();
  EXPECT_TRUE(first.Rest().status.ok());
}

TEST_F(InferenceServerTest, EveryCallHasAnIdWhichAClientMayChoose) {
  Start();
  UseHelloScript();
  EXPECT_THAT(Ask(Question()).request_id, StartsWith("req-"));
  const auto ask_with = [this](const std::string& id) {
    TestCall call(*stub_, Question());
    call.context().AddMetadata("x-request-id", id);
    call.Begin();
    return call.Rest().request_id;
  };
  EXPECT_EQ(ask_with("mine-1"), "mine-1");
  EXPECT_THAT(ask_with("not a good one"), StartsWith("req-"));
  backend_.submit_status = Error(absl::StatusCode::kUnavailable, "overloaded", "full");
  EXPECT_EQ(ask_with("mine-2"), "mine-2");
}

TEST_F(InferenceServerTest, WithTlsOnlyClientsOfTheAuthorityMayAsk) {
  const conclave::testing::TempFolder folder;
  const auto identity = [](const std::string& path, const std::string& role) {
    return transport::ReadTlsFiles(path + "/" + role + ".pem", path + "/" + role + "-key.pem",
                                   path + "/ca.pem")
        .value();
  };
  const std::string ours = folder.path() + "/ours";
  const std::string theirs = folder.path() + "/theirs";
  ASSERT_TRUE(transport::WriteTestAuthority(ours, {}).ok());
  ASSERT_TRUE(transport::WriteTestAuthority(theirs, {}).ok());
  Start({}, true, identity(ours, "frontend"));
  UseHelloScript();
  EXPECT_EQ(Ask(Question()).status.error_code(), grpc::StatusCode::UNAVAILABLE);  // plain text
  Connect(identity(theirs, "client"));
  EXPECT_EQ(Ask(Question()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  transport::TlsIdentity nameless;
  nameless.authority_pem = identity(ours, "client").authority_pem;
  channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                 grpc::SslCredentials({nameless.authority_pem, "", ""}));
  stub_ = v1::InferenceService::NewStub(channel_);
  EXPECT_EQ(Ask(Question()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  Connect(identity(ours, "client"));
  EXPECT_EQ(Ask(Question()).text(), "Hello there");
  EXPECT_TRUE(WaitForHealth("SERVING"));
}

TEST_F(InferenceServerTest, AnAddressInUseIsSaid) {
  Start();
  InferenceServerOptions options;
  options.port = server_->port();
  const auto second = InferenceServer::Start(options, {}, nullptr);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(second.status()), "bind");
}

}  // namespace
}  // namespace conclave::frontend
