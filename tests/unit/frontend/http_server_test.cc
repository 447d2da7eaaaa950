// Goal: the API behaves on a real socket as clients expect it, well-behaved and hostile ones.
// Method: a server on a free port, a plain blocking client, and a backend that the test plays.
#include "conclave/frontend/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/status.h"
#include "http_test_support.h"

namespace conclave::frontend {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpServerOptions options = {}, bool with_backend = true) {
    options.port = 0;
    options.version = "1.2.3";
    HttpObserver observer;
    observer.on_request = [this](const std::string& route, int status, double seconds) {
      EXPECT_GE(seconds, 0);
      observed_.Add(route + " " + std::to_string(status));
    };
    observer.on_mislabelled_images = [this](int32_t num_images) { num_mislabelled_ += num_images; };
    auto server = HttpServer::Start(std::move(options), std::move(observer));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (with_backend) {
      server_->SetBackend(backend_);
    }
  }

  uint16_t port() const { return server_->port(); }

  // Answers every request with "Hello there".
  void UseHelloScript() {
    backend_.script = [](const SubmittedChat& chat) {
      for (int32_t choice = 0; choice < chat.request.num_choices; ++choice) {
        chat.Delta("Hello", choice);
        chat.Delta(" there", choice);
        chat.End(FinishReason::kStop, choice);
      }
      chat.Done();
    };
  }

  Response Call(const std::string& bytes) {
    TestClient client(port());
    return client.Call(bytes);
  }

  // Every error of the API has this form.
  void ExpectError(const Response& response, int status, const std::string& code) {
    EXPECT_EQ(ProblemOfError(response, status, code), "");
  }

  void ExpectServes() {
    const Response response = Call(Get("/v1/models"));
    EXPECT_EQ(response.status, 200);
  }

  std::string WaitForObserved() { return observed_.WaitForNext(); }

  FakeBackend backend_;
  std::atomic<int32_t> num_mislabelled_{0};
  ObservedCalls observed_;
  std::unique_ptr<HttpServer> server_;  // last: its threads use the rest
};

TEST_F(HttpServerTest, ListsTheModel) {
  Start();
  const Response list = Call(Get("/v1/models"));
  EXPECT_EQ(list.status, 200);
  EXPECT_EQ(list.Field("content-type"), "application/json");
  EXPECT_EQ(list.body,
            R"({"object":"list","data":[{"id":"demo","object":"model","created":1700000000,)"
            R"("owned_by":"conclave","root":"demo","parent":null,"max_model_len":2048,)"
            R"("permission":[]}]})");
  EXPECT_EQ(Call(Get("/v1/models/demo")).status, 200);
  EXPECT_EQ(Call(Get("/v1/models/de%6Do")).status, 200);
  ExpectError(Call(Get("/v1/models/other")), 404, "model_not_found");
  ExpectError(Call(Get("/v1/models/..%2fdemo")), 404, "model_not_found");
  EXPECT_EQ(WaitForObserved(), "/v1/models 200");
  EXPECT_EQ(WaitForObserved(), "/v1/models/{id} 200");
}

TEST_F(HttpServerTest, I04PicturesWithTheMediaTypeOfOthersAreServedAndReported) {
  Start();
  UseHelloScript();
  const auto part = [](const std::string& type) {
    return R"({"type":"image_url","image_url":{"url":"data:image/)" + type +
           R"(;base64,iVBORw0KGgoAAAAN"}})";
  };
  const auto ask = [&](const std::string& parts) {
    return Post("/v1/chat/completions",
                R"({"model":"demo","messages":[{"role":"user","content":[)" + parts + "]}]}");
  };
  EXPECT_EQ(Call(ask(part("png"))).status, 200);
  EXPECT_EQ(num_mislabelled_, 0);
  EXPECT_EQ(Call(ask(part("jpeg") + "," + part("png") + "," + part("webp"))).status, 200);
  EXPECT_EQ(num_mislabelled_, 2);
}

TEST_F(HttpServerTest, TellsVersionAndHealth) {
  Start();
  EXPECT_EQ(Call(Get("/version")).body, R"({"version":"1.2.3"})");
  EXPECT_EQ(Call(Get("/health/live")).body, R"({"status":"ok"})");
  const Response ready = Call(Get("/health/ready"));
  EXPECT_EQ(ready.status, 200);
  EXPECT_EQ(ready.body, R"({"status":"ready"})");
}

TEST_F(HttpServerTest, SaysHowFarLoadingIsUntilThereIsABackend) {
  HttpServerOptions options;
  options.load_progress = [] { return 0.42; };
  Start(options, false);
  const Response ready = Call(Get("/health/ready"));
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.body, R"({"status":"loading","progress":0.42})");
  EXPECT_EQ(ready.Field("retry-after"), "1");
  EXPECT_EQ(Call(Get("/health/live")).status, 200);
  ExpectError(Call(Get("/v1/models")), 503, "model_loading");
  ExpectError(Call(PostChat()), 503, "model_loading");
  server_->SetBackend(backend_);
  EXPECT_EQ(Call(Get("/health/ready")).status, 200);
  EXPECT_EQ(Call(Get("/v1/models")).status, 200);
}

TEST_F(HttpServerTest, IsNotReadyWhileTheBackendIsNotAndTellsNoMore) {
  backend_.readiness = absl::UnavailableError("expert 3 of layer 2 has no worker");
  Start();
  const Response ready = Call(Get("/health/ready"));
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.body, R"({"status":"unavailable"})");
}

TEST_F(HttpServerTest, H47MetricsExistOnlyWhenGiven) {
  Start();
  ExpectError(Call(Get("/metrics")), 404, "not_found");
  ExpectError(Call(Get("/debug")), 404, "not_found");
  HttpServerOptions options;
  options.metrics_text = [] { return "up 1\n"; };
  Start(options);
  const Response metrics = Call(Get("/metrics"));
  EXPECT_EQ(metrics.body, "up 1\n");
  EXPECT_EQ(metrics.Field("content-type"), "text/plain; version=0.0.4; charset=utf-8");
}

TEST_F(HttpServerTest, TokenizesAndDetokenizesAsVllmDoes) {
  Start();
  EXPECT_EQ(Call(Post("/tokenize", R"({"model":"demo","prompt":"AB"})")).body,
            R"({"count":2,"max_model_len":2048,"tokens":[65,66]})");
  EXPECT_EQ(Call(Post("/detokenize", R"({"tokens":[72,105]})")).body, R"({"prompt":"Hi"})");
  ExpectError(Call(Post("/tokenize", R"({"messages":[]})")), 400, "prompt_required");
  ExpectError(Call(Post("/tokenize", R"({"prompt":"a","model":"x"})")), 404, "model_not_found");
  ExpectError(Call(Post("/detokenize", R"({"tokens":"1"})")), 400, "tokens_required");
  // T09.
  for (const std::string id : {"-1", "256", "-200", "2147483648", "1.5", "\"1\""}) {
    ExpectError(Call(Post("/detokenize", "{\"tokens\":[1," + id + "]}")), 400,
                "token_id_out_of_range");
  }
}

TEST_F(HttpServerTest, AnswersAChatAsAWhole) {
  UseHelloScript();
  Start();
  const Response response = Call(PostChat(R"("n":2)"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Masked(response.body),
            R"({"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"demo",)"
            R"("system_fingerprint":"fp","choices":[)"
            R"({"index":0,"message":{"role":"assistant","content":"Hello there","refusal":null},)"
            R"("logprobs":null,"finish_reason":"stop"},)"
            R"({"index":1,"message":{"role":"assistant","content":"Hello there","refusal":null},)"
            R"("logprobs":null,"finish_reason":"stop"}],)"
            R"("usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,)"
            R"("prompt_tokens_details":{"cached_tokens":4,"image_tokens":6}},)"
            R"("conclave":{"timings":{"image_ms":1,"queue_ms":2,"prefill_ms":3,"decode_ms":4,)"
            R"("first_token_ms":5},"numeric_mode":"f32"}})");
}

TEST_F(HttpServerTest, StreamsEveryTokenWhenItComes) {
  Start();
  TestClient client(port());
  client.Send(PostChat(R"("stream":true,"stream_options":{"include_usage":true})"));
  const SubmittedChat chat = backend_.WaitForRequest();
  ASSERT_NE(chat.id, 0u);
  chat.Delta("");
  const Response head = client.ReceiveHead();
  EXPECT_EQ(head.status_line, "HTTP/1.1 200 OK");
  EXPECT_EQ(head.Field("content-type"), "text/event-stream");
  EXPECT_EQ(head.Field("cache-control"), "no-cache");
  EXPECT_EQ(head.Field("x-accel-buffering"), "no");
  EXPECT_EQ(head.Field("transfer-encoding"), "chunked");
  EXPECT_EQ(head.Field("x-request-id"), chat.request.request_id);
  std::string chunk = client.ReceiveChunk();
  const size_t choices = chunk.find("\"choices\"");
  ASSERT_NE(choices, std::string::npos) << chunk;
  // Id and time are the same in every chunk.
  const std::string prefix = chunk.substr(0, choices);
  EXPECT_EQ(Masked(prefix),
            R"(data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,)"
            R"("model":"demo","system_fingerprint":"fp",)");
  EXPECT_EQ(
      chunk,
      prefix +
          R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null})"
          "\n\n");
  for (const std::string text : {"Hel", "lo"}) {
    chat.Delta(text);
    std::string expected = prefix + R"("choices":[{"index":0,"delta":{"content":")";
    expected += text;
    expected += R"("},"logprobs":null,"finish_reason":null}],"usage":null})";
    expected += "\n\n";
    EXPECT_EQ(client.ReceiveChunk(), expected);
  }
  chat.End(FinishReason::kLength);
  EXPECT_EQ(
      client.ReceiveChunk(),
      prefix +
          R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null})"
          "\n\n");
  chat.Done();
  EXPECT_EQ(
      client.ReceiveChunk(),
      prefix +
          R"("choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,)"
          R"("prompt_tokens_details":{"cached_tokens":4,"image_tokens":6}},"conclave":{"timings":{)"
          R"("image_ms":1,"queue_ms":2,"prefill_ms":3,"decode_ms":4,"first_token_ms":5},"numeric_mode":"f32"}})"
          "\n\ndata: [DONE]\n\n");
  EXPECT_EQ(client.ReceiveChunk(), "");
  // The connection goes on.
  EXPECT_EQ(client.Call(Get("/health/live")).status, 200);
}

TEST_F(HttpServerTest, StreamsToHttp10WithoutChunksAndCloses) {
  UseHelloScript();
  Start();
  const std::string body = ChatBody(R"("stream":true)");
  TestClient client(port());
  client.Send(
      "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const Response response = client.Receive();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.Field("transfer-encoding"), "");
  EXPECT_THAT(response.body, StartsWith("data: {\"id\""));
  EXPECT_THAT(response.body, HasSubstr("\"content\":\"Hello there\""));
  EXPECT_THAT(response.body, HasSubstr("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, AnErrorBeforeTheFirstTokenIsAPlainOne) {
  Start();
  for (const std::string extra : {R"("stream":true)", R"("stream":false)"}) {
    TestClient client(port());
    client.Send(PostChat(extra));
    const SubmittedChat chat = backend_.WaitForRequest();
    chat.Fail(WithParam(
        InvalidArgument("context_length_exceeded", "prompt: 3000 tokens; expected at most 2048"),
        "messages"));
    const Response response = client.Receive();
    ExpectError(response, 400, "context_length_exceeded");
    EXPECT_THAT(response.body, HasSubstr("\"param\":\"messages\""));
    EXPECT_EQ(client.Call(Get("/health/live")).status, 200);
  }
}

TEST_F(HttpServerTest, AnErrorAfterTheFirstTokenEndsTheStreamWithAnEvent) {
  Start();
  TestClient client(port());
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("Hel");
  EXPECT_EQ(client.ReceiveHead().status, 200);
  EXPECT_THAT(client.ReceiveChunk(), HasSubstr("\"content\":\"Hel\""));
  chat.Fail(Error(absl::StatusCode::kUnavailable, "experts_unavailable", "10.0.0.7:7001 is gone"));
  EXPECT_EQ(
      client.ReceiveChunk(),
      "data: {\"error\":{\"message\":\"the server is overloaded or not ready; try again later\","
      "\"type\":\"unavailable_error\",\"param\":null,\"code\":\"experts_unavailable\"}}\n\n"
      "data: [DONE]\n\n");
  EXPECT_EQ(client.ReceiveChunk(), "");
}

TEST_F(HttpServerTest, MapsWhatTheBackendSaysAtSubmit) {
  Start();
  const std::pair<absl::Status, std::pair<int, std::string>> cases[] = {
      {Error(absl::StatusCode::kResourceExhausted, "queue_full", "no room"), {429, "queue_full"}},
      {Error(absl::StatusCode::kUnavailable, "overloaded", "busy"), {503, "overloaded"}},
      {absl::InternalError("segv at 0x7fffdeadbeef in /usr/lib/x.so"), {500, "internal_error"}},
  };
  for (const auto& [status, expected] : cases) {
    backend_.submit_status = status;
    ExpectError(Call(PostChat()), expected.first, expected.second);
  }
}

TEST_F(HttpServerTest, ARequestTheEngineCancelsIsNotCutSilently) {
  Start();
  TestClient client(port());
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("a");
  client.ReceiveHead();
  client.ReceiveChunk();
  chat.End(FinishReason::kCancelled);
  chat.Done();
  EXPECT_THAT(client.ReceiveChunk(), HasSubstr("request_cancelled"));
}

TEST_F(HttpServerTest, ADisconnectCancelsAWaitingStreamAndAWaitingReply) {
  Start();
  for (const std::string extra : {R"("stream":true)", ""}) {
    TestClient client(port());
    client.Send(PostChat(extra));
    const SubmittedChat chat = backend_.WaitForRequest();
    client.Close();
    EXPECT_TRUE(backend_.WaitForCancel(chat.id));
    EXPECT_EQ(WaitForObserved(), "/v1/chat/completions 499");
    // The engine does not know yet; its calls go nowhere.
    chat.Delta("late");
    chat.End(FinishReason::kCancelled);
    chat.Done();
  }
}

TEST_F(HttpServerTest, ADisconnectInTheMiddleOfAStreamCancels) {
  Start();
  TestClient client(port());
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("a");
  client.ReceiveHead();
  client.ReceiveChunk();
  client.Close();
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  ExpectServes();
}

TEST_F(HttpServerTest, APipelinedRequestIsNoDisconnect) {
  Start();
  TestClient client(port());
  client.Send(PostChat());
  const SubmittedChat chat = backend_.WaitForRequest();
  client.Send(Get("/version"));
  chat.Delta("x");
  chat.End();
  chat.Done();
  EXPECT_THAT(client.Receive().body, HasSubstr("\"content\":\"x\""));
  EXPECT_EQ(client.Receive().body, R"({"version":"1.2.3"})");
}

TEST_F(HttpServerTest, ASlowReaderGetsMergedDeltasAndLosesNothing) {
  Start();
  TestClient client(port(), 4096);
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  std::string expected;
  for (int i = 0; i < 3000; ++i) {
    const std::string piece = "<" + std::to_string(i) + ">";
    chat.Delta(piece);
    expected += piece;
  }
  chat.End();
  chat.Done();
  const Response response = client.Receive();
  std::string text;
  const std::string mark = "\"delta\":{\"content\":\"";
  for (size_t at = response.body.find(mark); at != std::string::npos;
       at = response.body.find(mark, at)) {
    at += mark.size();
    text += response.body.substr(at, response.body.find('"', at) - at);
  }
  EXPECT_EQ(text, expected);
  EXPECT_THAT(response.body, HasSubstr("data: [DONE]"));
}

TEST_F(HttpServerTest, AReaderThatDoesNotReadIsCancelledAtTheBound) {
  HttpServerOptions options;
  options.limits.pending_bytes_max = 64 << 10;
  Start(options);
  TestClient client(port(), 4096);
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  // Far more than the socket's buffers of both sides can hold. Pieces beyond the bound are dropped,
  // not stored.
  const std::string piece(16 << 10, 'x');
  for (int i = 0; i < 4096; ++i) {
    chat.Delta(piece);
  }
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  ExpectServes();
}

TEST_F(HttpServerTest, EightStreamsInParallelEachGetTheirOwnText) {
  HttpServerOptions options;
  options.num_threads = 2;
  backend_.script = [](const SubmittedChat& chat) {
    const std::string text = chat.request.messages[0].parts[0].bytes;
    for (int i = 0; i < 100; ++i) {
      chat.Delta(text);
    }
    chat.End();
    chat.Done();
  };
  Start(options);
  std::vector<std::thread> threads;
  threads.reserve(8);
  std::vector<int> num_found(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this, i, &num_found] {
      const std::string word = "w" + std::to_string(i) + ".";
      const std::string body =
          R"({"model":"demo","stream":true,"messages":[{"role":"user","content":")" + word +
          R"("}]})";
      TestClient client(port());
      for (int round = 0; round < 3; ++round) {
        const Response response = client.Call(Post("/v1/chat/completions", body));
        for (size_t at = response.body.find(word); at != std::string::npos;
             at = response.body.find(word, at + 1)) {
          ++num_found[static_cast<size_t>(i)];
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(num_found, std::vector<int>(8, 300));
}

TEST_F(HttpServerTest, DrawsASeedWhenTheRequestHasNone) {
  Start();
  uint64_t seeds[2] = {};
  for (uint64_t& seed : seeds) {
    TestClient client(port());
    client.Send(PostChat());
    seed = backend_.WaitForRequest().request.sampling.seed;
  }
  EXPECT_NE(seeds[0], seeds[1]);
  TestClient client(port());
  client.Send(PostChat(R"("seed":7)"));
  EXPECT_EQ(backend_.WaitForRequest().request.sampling.seed, 7u);
}

TEST_F(HttpServerTest, EchoesASaneRequestIdAndReplacesOthers) {
  Start();
  EXPECT_EQ(Call(Get("/version", "X-Request-Id: abc-123\r\n")).Field("x-request-id"), "abc-123");
  for (const std::string& id : {std::string("a b"), std::string("<x>"), std::string(129, 'a')}) {
    const std::string used =
        Call(Get("/version", "X-Request-Id: " + id + "\r\n")).Field("x-request-id");
    EXPECT_EQ(Masked(used), "req-ID");
    EXPECT_EQ(used.size(), 36u);
  }
}

TEST_F(HttpServerTest, DrainRefusesNewRequestsKeepsRunningOnesThenCloses) {
  Start();
  TestClient idle(port());
  EXPECT_EQ(idle.Call(Get("/version")).status, 200);
  TestClient running(port());
  running.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  chat.Delta("a");
  running.ReceiveHead();
  running.ReceiveChunk();
  EXPECT_FALSE(server_->Drain(std::chrono::milliseconds(1)));
  // A probe that came before the door closed may see either; the running stream ends well.
  chat.Delta("b");
  EXPECT_THAT(running.ReceiveChunk(), HasSubstr("\"content\":\"b\""));
  bool is_drained = false;
  std::thread drain([this, &is_drained] { is_drained = server_->Drain(kPatience); });
  chat.End();
  chat.Done();
  std::string rest;
  for (std::string chunk = running.ReceiveChunk(); !chunk.empty() && chunk[0] != '<';
       chunk = running.ReceiveChunk()) {
    rest += chunk;
  }
  EXPECT_THAT(rest, HasSubstr("[DONE]"));
  drain.join();
  EXPECT_TRUE(is_drained);
  EXPECT_EQ(idle.ReceiveRest(), "");
  EXPECT_EQ(running.ReceiveRest(), "");
}

TEST_F(HttpServerTest, WhileDrainingProbesAndNewRequestsGet503) {
  Start();
  TestClient running(port());
  running.Send(PostChat());
  const SubmittedChat chat = backend_.WaitForRequest();
  TestClient probe(port());
  EXPECT_EQ(probe.Call(Get("/health/ready")).status, 200);
  std::thread drain([this] { server_->Drain(kPatience); });
  Response ready;
  // Until the other thread has begun.
  do {
    TestClient again(port());
    ready = again.Call(Get("/health/ready"));
  } while (ready.status == 200);
  EXPECT_EQ(ready.status, 503);
  EXPECT_EQ(ready.body, R"({"status":"draining"})");
  ExpectError(Call(PostChat()), 503, "draining");
  EXPECT_EQ(Call(Get("/health/live")).Field("connection"), "close");
  chat.Delta("x");
  chat.End();
  chat.Done();
  EXPECT_THAT(running.Receive().body, HasSubstr("\"content\":\"x\""));
  drain.join();
}

TEST_F(HttpServerTest, DestructionEndsRunningRequestsAndCancelsThem) {
  Start();
  TestClient client(port());
  client.Send(PostChat(R"("stream":true)"));
  const SubmittedChat chat = backend_.WaitForRequest();
  server_.reset();
  EXPECT_TRUE(backend_.WaitForCancel(chat.id));
  chat.Delta("late");
  chat.Done();
  EXPECT_EQ(client.ReceiveRest(), "");
}

TEST_F(HttpServerTest, APortThatIsTakenIsAnErrorThatNamesIt) {
  Start();
  HttpServerOptions options;
  options.port = port();
  const auto second = HttpServer::Start(options, {});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(second.status()), "bind");
  EXPECT_THAT(MessageOf(second.status()), StartsWith("bind 127.0.0.1:" + std::to_string(port())));
}

}  // namespace
}  // namespace conclave::frontend
