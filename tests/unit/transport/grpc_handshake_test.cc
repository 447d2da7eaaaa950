// Goal: a worker talks only to frontends that it agrees with, that the router knows, and with TLS
// that have a frontend's certificate.
// Method: the terms of a good pair changed one at a time; certificates of every wrong kind; a clock
// that a test moves.
#include "conclave/testing/fake_clock.h"
#include "expert.grpc.pb.h"
#include "gmock/gmock.h"
#include "pair_fixture.h"
#include "test_certificates.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

class GrpcHandshakeTest : public PairTest {
 protected:
  absl::Status Try(const PairTerms& terms, const TlsIdentity& tls = {}) {
    return Connect(terms, tls).status();
  }
};

TEST_F(GrpcHandshakeTest, ADifferenceInTheTermsIsNamed) {
  StartServer();
  const auto expect_mismatch = [this](const char* what, auto change) {
    PairTerms terms = TestTerms(options_);
    change(terms);
    const absl::Status status = Try(terms);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << what;
    EXPECT_EQ(ReasonOf(status), "cluster_mismatch") << what;
    EXPECT_THAT(MessageOf(status), HasSubstr(what));
  };
  expect_mismatch("cluster_id", [](PairTerms& t) { t.cluster_id = "other"; });
  expect_mismatch("manifest_hash", [](PairTerms& t) { t.manifest_hash = "ffff"; });
  expect_mismatch("row_width", [](PairTerms& t) { ++t.row_width; });
  expect_mismatch("top_k", [](PairTerms& t) { ++t.top_k; });
  expect_mismatch("dtype", [](PairTerms& t) { t.mode = DType::kF32; });
  expect_mismatch("isa", [](PairTerms& t) { t.isa = "scalar"; });
  expect_mismatch("kernel_revision", [](PairTerms& t) { ++t.kernel_revision; });
  expect_mismatch("worker_incarnation", [](PairTerms& t) { --t.worker_incarnation; });
  expect_mismatch("pair_key", [](PairTerms& t) { ++t.pair_key; });
  // The key of another pair.
  expect_mismatch("pair_key", [](PairTerms& t) { ++t.frontend_id; });
  PairTerms any = TestTerms(options_);
  any.isa.clear();
  any.cluster_id.clear();
  EXPECT_TRUE(Try(any).ok());
}

TEST_F(GrpcHandshakeTest, ModesWithTheSameRowsAreNoPair) {
  for (const auto [of_worker, of_frontend] :
       {std::pair(DType::kQ8, DType::kBf16), std::pair(DType::kBf16, DType::kQ8)}) {
    ASSERT_EQ(WireDtypeOf(of_worker), WireDtypeOf(of_frontend));
    ExpertServerOptions options = TestServerOptions();
    options.mode = of_worker;
    StartServer(options);
    PairTerms terms = TestTerms(options_);
    ASSERT_TRUE(Try(terms).ok());
    terms.mode = of_frontend;
    const absl::Status status = Try(terms);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(status), "cluster_mismatch");
    EXPECT_THAT(MessageOf(status), HasSubstr("numeric.dtype"));
    EXPECT_THAT(MessageOf(status), HasSubstr("expected " + std::string(NameOf(of_worker))));
    EXPECT_THAT(MessageOf(status), HasSubstr("found " + std::string(NameOf(of_frontend))));
    server_.reset();
  }
}

TEST_F(GrpcHandshakeTest, AWorkerThatIsNotReadySaysSo) {
  options_ = TestServerOptions();
  auto server = ExpertServer::Start(options_, sink_);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  address_ = "127.0.0.1:" + std::to_string(server_->port());
  absl::Status status = Try(TestTerms(options_));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "not_registered");
  server_->SetRegistration(WorkerId(1), kWorkerKey, Epoch(1));
  auto channel = Connect(TestTerms(options_));
  ASSERT_TRUE(channel.ok()) << channel.status();
  server_->SetDraining(true);
  status = Try(TestTerms(options_));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "draining");
  // What is connected goes on.
  CallSlot* slot = Begin(**channel, 1, 3);
  EXPECT_TRUE(WaitForEnd(**channel, slot).ok());
}

TEST_F(GrpcHandshakeTest, GrantsNoMoreThanItHasAndNoMoreThanIsWanted) {
  StartServer();
  PairTerms terms = TestTerms(options_);
  terms.num_slots = 100;
  terms.max_rows = 4;
  auto channel = Connect(terms);
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_EQ((*channel)->limits().num_slots, 8);
  EXPECT_EQ((*channel)->limits().max_rows, 4);
  EXPECT_EQ((*channel)->limits().max_pairs, 8);
}

TEST_F(GrpcHandshakeTest, ANewStartOfAFrontendEndsTheSessionsOfTheOldOne) {
  StartServer();
  const auto old = MustConnect();
  ASSERT_NE(old, nullptr);
  PairTerms terms = TestTerms(options_);
  ++terms.frontend_incarnation;
  auto channel = Connect(terms);
  ASSERT_TRUE(channel.ok()) << channel.status();
  EXPECT_TRUE(sink_.WaitForGone(1));
  EXPECT_TRUE(Eventually([&] { return !old->LinkStatus().ok(); }));
  EXPECT_TRUE((*channel)->LinkStatus().ok());
  const absl::Status status = Try(TestTerms(options_));
  EXPECT_EQ(ReasonOf(status), "cluster_mismatch");
  EXPECT_THAT(MessageOf(status), HasSubstr("frontend_incarnation"));
}

TEST_F(GrpcHandshakeTest, SessionsAreBounded) {
  ExpertServerOptions options = TestServerOptions();
  options.num_sessions_max = 2;
  StartServer(options);
  auto first = MustConnect();
  const auto second = MustConnect();
  const absl::Status status = Try(TestTerms(options_));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "too_many_sessions");
  first.reset();
  EXPECT_TRUE(Eventually([&] { return Try(TestTerms(options_)).ok(); }));
}

TEST_F(GrpcHandshakeTest, ASessionWithoutAStreamIsForgotten) {
  testing::FakeClock clock;
  ExpertServerOptions options = TestServerOptions();
  options.clock = &clock;
  options.num_sessions_max = 1;
  StartServer(options);
  // A handshake alone, as another gRPC client would make it.
  const auto hello = [this](uint64_t& session) {
    v1::HelloRequest request;
    const PairTerms terms = TestTerms(options_);
    request.set_protocol_major(1);
    request.mutable_model()->set_manifest_hash(terms.manifest_hash);
    request.mutable_model()->set_row_width(terms.row_width);
    request.mutable_model()->set_top_k(terms.top_k);
    request.mutable_numeric()->set_dtype("bf16");
    request.mutable_numeric()->set_kernel_revision(terms.kernel_revision);
    request.set_frontend_id(terms.frontend_id);
    request.set_frontend_incarnation(terms.frontend_incarnation);
    request.set_pair_key(terms.pair_key);
    request.set_worker_incarnation(terms.worker_incarnation);
    request.set_channel("grpc");
    request.set_num_slots(1);
    request.set_max_rows(1);
    const auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
    grpc::ClientContext context;
    v1::HelloResponse response;
    const grpc::Status status =
        v1::ExpertService::NewStub(channel)->Hello(&context, request, &response);
    session = response.session();
    EXPECT_EQ(response.worker_id(), status.ok() ? 4 : 0);
    EXPECT_EQ(response.epoch(), status.ok() ? 90u : 0u);
    return FromGrpc(status);
  };
  uint64_t session = 0;
  absl::Status status = hello(session);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ReasonOf(hello(session)), "too_many_sessions");
  clock.Advance(std::chrono::milliseconds(5001));
  status = hello(session);
  ASSERT_TRUE(status.ok()) << status;
  clock.Advance(std::chrono::milliseconds(5001));
  const auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(session));
  context.AddMetadata("conclave-session", text);
  const auto stream = v1::ExpertService::NewStub(channel)->Exchange(&context);
  v1::Frame frame;
  EXPECT_FALSE(stream->Read(&frame));
  status = FromGrpc(stream->Finish());
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(ReasonOf(status), "unknown_session");
}

TEST_F(GrpcHandshakeTest, APortThatIsTakenIsNotShared) {
  StartServer();
  ExpertServerOptions options = TestServerOptions();
  options.port = server_->port();
  const auto second = ExpertServer::Start(options, sink_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(ReasonOf(second.status()), "bind");
}

TEST_F(GrpcHandshakeTest, LimitsThatCannotWorkAreRefused) {
  const auto reason = [this](auto change) {
    ExpertServerOptions options = TestServerOptions();
    change(options);
    return ReasonOf(ExpertServer::Start(options, sink_).status());
  };
  EXPECT_EQ(reason([](ExpertServerOptions& o) { o.num_slots = 0; }), "config_range");
  EXPECT_EQ(reason([](ExpertServerOptions& o) { o.mode = DType::kF32; }), "config_range");
  EXPECT_EQ(reason([](ExpertServerOptions& o) { o.limits.max_rows = 0; }), "config_range");
  EXPECT_EQ(reason([](ExpertServerOptions& o) { o.num_sessions_max = 101; }), "config_range");
  EXPECT_EQ(reason([](ExpertServerOptions& o) {
              o.limits.max_rows = 4096;
              o.limits.row_width = 8192;
            }),
            "config_range");
}

class GrpcTlsTest : public GrpcHandshakeTest {
 protected:
  void SetUp() override {
    ExpertServerOptions options = TestServerOptions();
    options.tls = authority_.Issue("conclave://test/worker/w4");
    StartServer(options);
  }
  TestAuthority authority_;
};

TEST_F(GrpcTlsTest, AFrontendOfTheClusterIsServed) {
  auto channel = Connect(TestTerms(options_), authority_.Issue("conclave://test/frontend/f7"));
  ASSERT_TRUE(channel.ok()) << channel.status();
  for (uint64_t i = 0; i < 20; ++i) {
    CallSlot* slot = Begin(**channel, i, 16);
    ASSERT_TRUE(WaitForEnd(**channel, slot).ok());
    EXPECT_TRUE(IsEcho(*slot));
    (*channel)->Release(slot);
  }
}

TEST_F(GrpcTlsTest, EveryOtherRoleIsRefused) {
  for (const char* uri :
       {"conclave://test/worker/w5", "conclave://test/router/r0", "conclave://test/operator/o",
        "conclave://test/admin/a", "conclave://test/frontend/", "conclave://test/frontend",
        "conclave:///frontend/f", "conclave://test/frontend/f/g", "https://test/frontend/f", ""}) {
    const absl::Status status = Try(TestTerms(options_), authority_.Issue(uri));
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << uri;
    EXPECT_EQ(ReasonOf(status), "peer_identity") << uri;
  }
}

TEST_F(GrpcTlsTest, NobodyWithoutACertificateOfTheClusterGetsThrough) {
  const absl::Status plain = Connect(TestTerms(options_), {}, std::chrono::seconds(2)).status();
  EXPECT_EQ(ReasonOf(plain), "connect");
  TestAuthority other;
  TlsIdentity stranger = other.Issue("conclave://test/frontend/f7");
  stranger.authority_pem = authority_.pem();
  EXPECT_EQ(ReasonOf(Connect(TestTerms(options_), stranger, std::chrono::seconds(2)).status()),
            "connect");
  // The authority alone, without a certificate of one's own.
  grpc::SslCredentialsOptions no_certificate;
  no_certificate.pem_root_certs = authority_.pem();
  const auto channel = grpc::CreateChannel(address_, grpc::SslCredentials(no_certificate));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  v1::HelloResponse response;
  EXPECT_FALSE(v1::ExpertService::NewStub(channel)->Hello(&context, {}, &response).ok());
  EXPECT_EQ(server_->counters().sessions, 0u);
}

TEST_F(GrpcTlsTest, AWorkerThatIsNoneIsNotTalkedTo) {
  ExpertServerOptions options = TestServerOptions();
  options.tls = authority_.Issue("conclave://test/frontend/f8");
  StartServer(options);
  const absl::Status status =
      Try(TestTerms(options_), authority_.Issue("conclave://test/frontend/f7"));
  EXPECT_EQ(ReasonOf(status), "peer_identity");
}

}  // namespace
}  // namespace conclave::transport
