// Goal: no message that a peer sends over UCX harms the worker or another peer; what is no frame
// ends its session, what breaks the terms is refused, what names no session is not looked at.
// Method: a peer that shakes hands by generated code and then sends what it likes: strangers'
// messages, garbage, frames of a peer that computes CRCs but lies, duplicates; wrong handshakes.
#include <atomic>
#include <cstdlib>
#include <deque>
#include <random>

#include "conclave/transport/ucx_channel.h"
#include "expert.grpc.pb.h"
#include "gmock/gmock.h"
#include "pair_fixture.h"
#include "ucx_worker.h"

namespace conclave::transport {
namespace {

v1::HelloRequest HelloFor(const ExpertServerOptions& server, const std::string& channel,
                          const std::string& ucx_address) {
  const PairTerms terms = TestTerms(server);
  v1::HelloRequest request;
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
  request.set_channel(channel);
  request.set_num_slots(terms.num_slots);
  request.set_max_rows(terms.max_rows);
  request.set_ucx_address(ucx_address);
  return request;
}

// A frontend that keeps to the handshake and to nothing else.
class RawPeer {
 public:
  RawPeer(const std::string& address, const ExpertServerOptions& server)
      : stub_(v1::ExpertService::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    auto context = UcxContext::Get({});
    EXPECT_TRUE(context.ok()) << context.status();
    auto worker = UcxWorker::Create(*context);
    EXPECT_TRUE(worker.ok()) << worker.status();
    worker_ = *std::move(worker);
    worker_->SetHandler(&RawPeer::OnMessage, this);
    grpc::ClientContext hello;
    v1::HelloResponse response;
    const grpc::Status status =
        stub_->Hello(&hello, HelloFor(server, "ucx", worker_->address()), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    session_ = response.session();
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(session_));
    context_.AddMetadata("conclave-session", text);
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
    stream_ = stub_->Exchange(&context_);
    stream_->WaitForInitialMetadata();
    auto endpoint = worker_->Connect(
        response.ucx_address(), [](void*, ucp_ep_h, ucs_status_t) {}, nullptr);
    EXPECT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = *endpoint;
  }

  ~RawPeer() {
    context_.TryCancel();
    ucs_status_ptr_t close = worker_->StartClose(endpoint_);
    const MonotonicTime until = Clock::Real().Now() + kPatience;
    while (!UcxWorker::IsOver(close) && Clock::Real().Now() < until) {
      worker_->Progress();
    }
  }

  // At least a header.
  void Send(std::span<const std::byte> frame) { SendAs(session_, frame); }
  void Send(const FrameBytes& frame) { Send(frame.bytes()); }
  void SendAs(uint64_t session, std::span<const std::byte> frame) {
    ASSERT_GE(frame.size(), kFrameHeaderBytes);
    AlignedBuffer& block = sent_.emplace_back(kUcxPrefixBytes + frame.size());
    std::memcpy(block.As<std::byte>() + kUcxPrefixBytes, frame.data(), frame.size());
    EXPECT_NE(UcxWorker::Send(
                  endpoint_, session, {block.As<std::byte>(), block.size_bytes()}, frame.size(),
                  [](void* request, ucs_status_t, void*) { ucp_request_free(request); }, nullptr),
              UcxWorker::Sent::kFailed);
    worker_->Progress();
  }
  // A message whose head is not one.
  void SendHead(std::span<const std::byte> head) {
    const ucp_request_param_t param{};
    const ucs_status_ptr_t sent =
        ucp_am_send_nbx(endpoint_, 1, head.data(), head.size(), nullptr, 0, &param);
    EXPECT_FALSE(UCS_PTR_IS_ERR(sent));
    if (UCS_PTR_IS_PTR(sent)) {
      while (ucp_request_check_status(sent) == UCS_INPROGRESS) {
        worker_->Progress();
      }
      ucp_request_free(sent);
    }
  }

  void Progress() { worker_->Progress(); }

  // The next frame; empty when none comes in time.
  std::vector<std::byte> Receive() {
    const MonotonicTime until = Clock::Real().Now() + kPatience;
    while (received_.empty()) {
      worker_->Progress();
      if (Clock::Real().Now() > until) {
        return {};
      }
    }
    std::vector<std::byte> frame = std::move(received_.front());
    received_.pop_front();
    return frame;
  }

  // The reason with which the worker ended the session.
  std::string EndReason() {
    // UCX connects, and so sends, while its owner makes progress.
    std::atomic<bool> is_over{false};
    grpc::Status end;
    std::thread reader([&] {
      v1::Frame frame;
      EXPECT_FALSE(stream_->Read(&frame));
      end = stream_->Finish();
      is_over.store(true);
    });
    while (!is_over.load()) {
      worker_->Progress();
    }
    reader.join();
    return ReasonOf(FromGrpc(end));
  }
  void WriteToStream() {
    v1::Frame frame;
    frame.set_frame(std::string(kFrameHeaderBytes, '\0'));
    stream_->Write(frame);
  }

 private:
  static ucs_status_t OnMessage(void* argument, const void* head, size_t head_bytes, void* message,
                                size_t bytes, const ucp_am_recv_param_t* /*param*/) {
    std::vector<std::byte> frame(kFrameHeaderBytes + bytes);
    UcxHead parts;
    EXPECT_TRUE(ReadHead(head, head_bytes, parts));
    std::memcpy(frame.data(), &parts.header, kFrameHeaderBytes);
    std::memcpy(frame.data() + kFrameHeaderBytes, message, bytes);
    static_cast<RawPeer*>(argument)->received_.push_back(std::move(frame));
    return UCS_OK;
  }

  std::unique_ptr<v1::ExpertService::Stub> stub_;
  grpc::ClientContext context_;
  uint64_t session_ = 0;
  std::unique_ptr<grpc::ClientReaderWriter<v1::Frame, v1::Frame>> stream_;
  std::deque<AlignedBuffer> sent_;  // UCX may still read them
  std::deque<std::vector<std::byte>> received_;
  std::unique_ptr<UcxWorker> worker_;
  ucp_ep_h endpoint_ = nullptr;
};

class UcxBadInputTest : public PairTest {
 protected:
  void SetUp() override { StartServer(); }
  void Extend(ExpertServerOptions& options) override {
    auto side = MakeUcxServer({});
    ASSERT_TRUE(side.ok()) << side.status();
    options.side = *std::move(side);
  }
  absl::StatusOr<std::unique_ptr<ExpertChannel>> Connect(
      const PairTerms& terms, const TlsIdentity& tls = {},
      std::chrono::milliseconds timeout = kPatience) override {
    return ConnectUcxChannel(address_, tls, terms, {}, bell_, Clock::Real(), timeout);
  }

  SampleCall CallOf(uint32_t slot, uint64_t seq, uint16_t num_rows = 3) {
    SampleCall call = MakeSampleCall(seq, options_.limits, num_rows);
    call.view.frontend = kFrontend;
    call.view.slot = slot;
    call.view.seq = seq;
    return call;
  }
  FrameBytes FrameOf(const SampleCall& call) {
    return FrameBytes::OfCall(call.view, false, options_.limits);
  }
  FrameBytes ControlOf(const ControlFrame& control) {
    AlignedBuffer room(kFrameHeaderBytes);
    EncodeControl(control, {room.As<std::byte>(), room.size_bytes()});
    return FrameBytes(room.As<std::byte>(), kFrameHeaderBytes);
  }
  std::string NextNack(RawPeer& peer) {
    const std::vector<std::byte> bytes = peer.Receive();
    const FrameBytes frame(bytes.data(), bytes.size());
    const auto nack = ParseNack(frame.bytes());
    return nack.ok() ? ReasonOf(ToStatus(nack->code)) : "no NACK";
  }
  // Another peer is served as if nothing had happened.
  void ExpectHealthy() {
    const auto channel = MustConnect();
    ASSERT_NE(channel, nullptr);
    CallSlot* slot = Begin(*channel, 77, 5);
    EXPECT_TRUE(WaitForEnd(*channel, slot).ok());
    EXPECT_TRUE(IsEcho(*slot));
  }
  std::string ReasonOfHello(const v1::HelloRequest& request) {
    const auto stub = v1::ExpertService::NewStub(
        grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::HelloResponse response;
    return ReasonOf(FromGrpc(stub->Hello(&context, request, &response)));
  }
};

TEST_F(UcxBadInputTest, AnyPeerThatKeepsToTheContractIsServed) {
  RawPeer peer(address_, options_);
  const SampleCall call = CallOf(2, 9);
  peer.Send(FrameOf(call));
  const std::vector<std::byte> bytes = peer.Receive();
  const FrameBytes frame(bytes.data(), bytes.size());
  const auto reply = ParseReply(frame.bytes(), options_.limits);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(CheckAnswers(call.view, *reply).ok());
}

TEST_F(UcxBadInputTest, WhatNamesNoSessionIsNotLookedAt) {
  RawPeer peer(address_, options_);
  const FrameBytes frame = FrameOf(CallOf(0, 1));
  peer.SendAs(0, frame.bytes());
  peer.SendAs(1, frame.bytes());
  const std::vector<std::byte> zeros(kUcxHeadBytes + 8);
  for (const size_t size : {size_t{1}, size_t{8}, kUcxHeadBytes - 1, kUcxHeadBytes + 1}) {
    peer.SendHead(std::span(zeros).first(size));
  }
  EXPECT_TRUE(Eventually([&] {
    peer.Progress();
    return server_->counters().malformed == 6;
  }));
  peer.Send(frame);
  EXPECT_FALSE(peer.Receive().empty());
  EXPECT_EQ(sink_.num_submitted(), 1);
  ExpectHealthy();
}

TEST_F(UcxBadInputTest, WhatIsNoFrameEndsItsSessionAndNothingElse) {
  // What is no frame is dropped twice; the reason of the third is the session's end.
  const auto reason = [this](std::span<const std::byte> bytes, int times = 3) {
    RawPeer peer(address_, options_);
    for (int i = 0; i < times; ++i) {
      peer.Send(bytes);
    }
    return peer.EndReason();
  };
  std::mt19937_64 rng(4);
  for (const size_t size : {64, 65, 1000}) {
    std::vector<std::byte> garbage(size);
    std::generate(garbage.begin(), garbage.end(), [&] { return static_cast<std::byte>(rng()); });
    // Its frontend, by which it would be told from others at once.
    std::memcpy(garbage.data() + offsetof(FrameHeader, frontend), &kFrontend, sizeof(kFrontend));
    EXPECT_EQ(reason(garbage), "bad_magic") << size;
  }
  const FrameBytes good = FrameOf(CallOf(0, 1));
  EXPECT_EQ(reason(good.Prefix(good.size() - 1).bytes()), "bad_length");
  FrameBytes flipped(good);
  flipped.data()[26] ^= std::byte{1};
  EXPECT_EQ(reason(flipped.bytes()), "bad_crc");
  // Above the limits, and so large that UCX only announces it: it is not even fetched.
  for (const size_t size : {size_t{2000}, size_t{1} << 22}) {
    EXPECT_EQ(reason(std::vector<std::byte>(size), 1), "bad_length") << size;
  }
  EXPECT_EQ(sink_.num_submitted(), 0);
  EXPECT_EQ(server_->counters().malformed, 3u * 5 + 2);
  EXPECT_TRUE(Eventually([&] { return server_->counters().sessions == 0; }));
  ExpectHealthy();
}

TEST_F(UcxBadInputTest, WhatBreaksTheTermsIsRefusedAndTheSessionGoesOn) {
  RawPeer peer(address_, options_);
  uint64_t seq = 0;
  const auto nack = [&](auto change) {
    FrameBytes frame = FrameOf(CallOf(1, ++seq));
    FrameHeader header = frame.header();
    const size_t array_bytes = size_t{header.pairs} * 8;
    change(header, frame);
    frame.Seal(header, array_bytes);
    peer.Send(frame);
    return NextNack(peer);
  };
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.layer = 99; }), "no_such_layer");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.row_width = 23; }), "shape_mismatch");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.slot = 8; }), "bad_items");
  EXPECT_EQ(sink_.num_submitted(), 0);
  peer.Send(FrameOf(CallOf(1, ++seq)));
  EXPECT_FALSE(peer.Receive().empty());
  EXPECT_EQ(sink_.num_submitted(), 1);
}

TEST_F(UcxBadInputTest, FramesOfTheWrongSideOrOfAnotherFrontendEndTheSession) {
  const auto reason = [this](const FrameBytes& frame) {
    RawPeer peer(address_, options_);
    for (int i = 0; i < 3; ++i) {
      peer.Send(frame);
    }
    return peer.EndReason();
  };
  SampleCall call = CallOf(0, 1);
  ReplyView reply;
  reply.rows = {call.rows.As<std::byte>(), call.view.rows.size()};
  EXPECT_EQ(reason(FrameBytes::OfReply(call.view, reply, false, options_.limits)), "type");
  EXPECT_EQ(reason(ControlOf({.type = FrameType::kPong, .frontend = kFrontend})), "type");
  EXPECT_EQ(reason(ControlOf({.type = FrameType::kPing, .frontend = kFrontend + 1})),
            "cluster_mismatch");
  ExpectHealthy();
}

TEST_F(UcxBadInputTest, AFrameOnTheStreamBesideTheChannelEndsTheSession) {
  RawPeer peer(address_, options_);
  peer.WriteToStream();
  EXPECT_EQ(peer.EndReason(), "type");
  EXPECT_TRUE(sink_.WaitForGone(1));
  ExpectHealthy();
}

TEST_F(UcxBadInputTest, ADuplicateIsAnsweredOnce) {
  RawPeer peer(address_, options_);
  const FrameBytes frame = FrameOf(CallOf(3, 5));
  peer.Send(frame);
  EXPECT_FALSE(peer.Receive().empty());
  peer.Send(frame);
  peer.Send(FrameOf(CallOf(3, 4)));
  EXPECT_TRUE(Eventually([&] {
    peer.Progress();
    return server_->counters().duplicates == 2;
  }));
  EXPECT_EQ(sink_.num_submitted(), 1);
}

TEST_F(UcxBadInputTest, AFrontendThatVanishesLeavesNothingBehind) {
  sink_.Hold(true);
  {
    RawPeer peer(address_, options_);
    for (uint32_t slot = 0; slot < 8; ++slot) {
      peer.Send(FrameOf(CallOf(slot, 1, 16)));
    }
    ASSERT_TRUE(Eventually([&] {
      peer.Progress();
      return sink_.num_submitted() == 8;
    }));
  }
  EXPECT_TRUE(sink_.WaitForGone(1));
  EXPECT_TRUE(sink_.AreHeldCancelled());
  sink_.Hold(false);
  ExpectHealthy();
}

TEST_F(UcxBadInputTest, HandshakesForAChannelThatIsNotThereAreRefused) {
  EXPECT_EQ(ReasonOfHello(HelloFor(options_, "ucx", "")), "bad_items");
  EXPECT_EQ(ReasonOfHello(HelloFor(options_, "ucx", std::string(5000, 'x'))), "bad_items");
  EXPECT_EQ(ReasonOfHello(HelloFor(options_, "nccl", "x")), "cluster_mismatch");
  EXPECT_EQ(ReasonOfHello(HelloFor(options_, "grpc", "")), "");
  // Without the pair's key nothing that UCX would read is taken.
  v1::HelloRequest stranger = HelloFor(options_, "ucx", "not an address");
  stranger.set_pair_key(1);
  EXPECT_EQ(ReasonOfHello(stranger), "cluster_mismatch");
  // A worker that has ucx alone, and one that has none.
  ExpertServerOptions options = TestServerOptions();
  options.is_side_only = true;
  StartServer(options);
  EXPECT_EQ(ReasonOfHello(HelloFor(options_, "grpc", "")), "cluster_mismatch");
  auto server = ExpertServer::Start(TestServerOptions(), sink_);
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  server_->SetRegistration(WorkerId(4), kWorkerKey, Epoch(90));
  address_ = "127.0.0.1:" + std::to_string(server_->port());
  EXPECT_EQ(ReasonOf(Connect(TestTerms(options_)).status()), "cluster_mismatch");
}

TEST(UcxReachTest, OnlyTheLoopbackAndTrustedNetworksAreReached) {
  for (const char* address : {"127.0.0.1", "127.9.9.9:80", "::1", "[::1]:80"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"", "localhost", "10.0.0.1", "0.0.0.0", "128.0.0.1:1", "[::2]:80",
                              "::", "127.0.0.1.example.org", "[::1"}) {
    EXPECT_FALSE(IsLoopback(address) && address[0] != '[') << address;
  }
  EXPECT_EQ(ReasonOf(CheckUcxReach({"10.0.0.1", false})), "untrusted_network");
  EXPECT_TRUE(CheckUcxReach({"10.0.0.1", true}).ok());
  EXPECT_EQ(ReasonOf(MakeUcxServer({"0.0.0.0", false}).status()), "untrusted_network");
  // Trusted, but no address of this machine.
  EXPECT_EQ(ReasonOf(MakeUcxServer({"0.0.0.0", true}).status()), "ucx_unavailable");
  EXPECT_EQ(ReasonOf(UcxReachTo("10.0.0.1:5", false).status()), "untrusted_network");
  EXPECT_EQ(UcxReachTo("127.0.0.1:5", false)->host, "127.0.0.1");
  EXPECT_EQ(ReasonOf(UcxReachTo("somewhere:5", true).status()), "ucx_unavailable");
}

// stdout has results and the ready line alone; UCX prints to it by itself.
TEST(UcxLogTest, WhatUcxSaysIsALogLineOfOurs) {
  ::setenv("UCX_TLS", "tcp", 1);               // NOLINT(concurrency-mt-unsafe)
  ::setenv("UCX_NET_DEVICES", "nowhere0", 1);  // NOLINT(concurrency-mt-unsafe)
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const auto probed = ProbeUcx({});
  const std::string printed = ::testing::internal::GetCapturedStdout();
  const std::string logged = ::testing::internal::GetCapturedStderr();
  ::unsetenv("UCX_TLS");          // NOLINT(concurrency-mt-unsafe)
  ::unsetenv("UCX_NET_DEVICES");  // NOLINT(concurrency-mt-unsafe)
  EXPECT_EQ(ReasonOf(probed.status()), "ucx_unavailable") << probed.status();
  EXPECT_EQ(printed, "");
  EXPECT_THAT(logged, ::testing::HasSubstr("WARN  ucx what="));
}

}  // namespace
}  // namespace conclave::transport
