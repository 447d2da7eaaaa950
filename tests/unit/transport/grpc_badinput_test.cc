// Goal: no byte that a peer sends harms the worker or another peer; what is no frame ends its
// stream, what breaks the terms is refused.
// Method: a raw gRPC client after a good handshake: garbage, broken envelopes, frames of a peer
// that computes CRCs but lies, duplicates, and cancels of what is not there.
#include <random>

#include "expert.grpc.pb.h"
#include "gmock/gmock.h"
#include "pair_fixture.h"

namespace conclave::transport {
namespace {

// A frontend made of generated code alone.
class RawPeer {
 public:
  explicit RawPeer(const std::string& address, const ExpertServerOptions& server)
      : stub_(v1::ExpertService::NewStub(
            grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), Unshared()))) {
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
    request.set_channel("grpc");
    request.set_num_slots(terms.num_slots);
    request.set_max_rows(terms.max_rows);
    grpc::ClientContext hello;
    v1::HelloResponse response;
    const grpc::Status status = stub_->Hello(&hello, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx",
                  static_cast<unsigned long long>(response.session()));
    session_ = text;
    context_.AddMetadata("conclave-session", session_);
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
    stream_ = stub_->Exchange(&context_);
  }

  bool Send(std::span<const std::byte> frame) {
    v1::Frame message;
    message.set_frame(frame.data(), frame.size());
    return stream_->Write(message);
  }
  bool Send(const FrameBytes& frame) { return Send(frame.bytes()); }

  // Empty when the stream is over.
  std::vector<std::byte> Receive() {
    v1::Frame message;
    if (!stream_->Read(&message)) {
      return {};
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(message.frame().data());
    return {bytes, bytes + message.frame().size()};
  }

  // What is no frame is dropped twice; the reason of the third is the stream's end.
  template <typename Bytes>
  std::string EndReasonOfThree(const Bytes& bytes) {
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(Send(bytes));
    }
    return EndReason();
  }
  // The reason with which the worker ended the stream.
  std::string EndReason() {
    while (!Receive().empty()) {
    }
    return ReasonOf(FromGrpc(stream_->Finish()));
  }

  v1::ExpertService::Stub& stub() { return *stub_; }
  const std::string& session() const { return session_; }

 private:
  static grpc::ChannelArguments Unshared() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return arguments;
  }

  std::unique_ptr<v1::ExpertService::Stub> stub_;
  grpc::ClientContext context_;
  std::string session_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::Frame, v1::Frame>> stream_;
};

class GrpcBadInputTest : public PairTest {
 protected:
  void SetUp() override { StartServer(); }

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
  // The reason of the NACK that is received next.
  std::string NextNack(RawPeer& peer) {
    const std::vector<std::byte> bytes = peer.Receive();
    const FrameBytes frame(bytes.data(), bytes.size());
    const auto nack = ParseNack(frame.bytes());
    return nack.ok() ? ReasonOf(ToStatus(nack->code)) : "no NACK";
  }
  // The next frame answers this call.
  void ExpectAnswer(RawPeer& peer, const SampleCall& call) {
    const std::vector<std::byte> bytes = peer.Receive();
    const FrameBytes frame(bytes.data(), bytes.size());
    const auto reply = ParseReply(frame.bytes(), options_.limits);
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_TRUE(CheckAnswers(call.view, *reply).ok());
  }
  // Another peer is served as if nothing had happened.
  void ExpectHealthy() {
    const auto channel = MustConnect();
    ASSERT_NE(channel, nullptr);
    CallSlot* slot = Begin(*channel, 77, 5);
    EXPECT_TRUE(WaitForEnd(*channel, slot).ok());
    EXPECT_TRUE(IsEcho(*slot));
  }
};

TEST_F(GrpcBadInputTest, AnyClientThatKeepsToTheContractIsServed) {
  RawPeer peer(address_, options_);
  const SampleCall call = CallOf(2, 9);
  ASSERT_TRUE(peer.Send(FrameOf(call)));
  ExpectAnswer(peer, call);
}

TEST_F(GrpcBadInputTest, GarbageEndsItsStreamAndNothingElse) {
  std::mt19937_64 rng(4);
  uint64_t num_bad = 0;
  for (const size_t size : {0, 1, 63, 64, 65, 1000}) {
    std::vector<std::byte> garbage(size);
    std::generate(garbage.begin(), garbage.end(), [&] { return static_cast<std::byte>(rng()); });
    RawPeer peer(address_, options_);
    EXPECT_EQ(peer.EndReasonOfThree(garbage), size < 64 ? "short_header" : "bad_magic") << size;
    num_bad += 3;
    EXPECT_TRUE(Eventually([&] { return server_->counters().malformed == num_bad; }));
  }
  ExpectHealthy();
}

TEST_F(GrpcBadInputTest, AMessageAboveTheLimitEndsItsStreamUnread) {
  for (const size_t size : {size_t{1200}, size_t{1} << 20}) {
    const std::vector<std::byte> zeros(size);
    RawPeer peer(address_, options_);
    peer.Send(zeros);
    EXPECT_TRUE(peer.Receive().empty());
    EXPECT_TRUE(Eventually([&] { return server_->counters().sessions == 0; }));
  }
  EXPECT_EQ(server_->counters().bytes_received, 0u);
  ExpectHealthy();
}

TEST_F(GrpcBadInputTest, TruncatedAndFlippedFramesEndTheirStream) {
  const FrameBytes good = FrameOf(CallOf(0, 1));
  FrameBytes flipped(good);
  flipped.data()[26] ^= std::byte{1};
  {
    RawPeer peer(address_, options_);
    EXPECT_EQ(peer.EndReasonOfThree(good.Prefix(good.size() - 1)), "bad_length");
  }
  {
    RawPeer peer(address_, options_);
    EXPECT_EQ(peer.EndReasonOfThree(flipped), "bad_crc");
  }
  EXPECT_EQ(server_->counters().malformed, 6u);
  EXPECT_EQ(sink_.num_submitted(), 0);
  ExpectHealthy();
}

TEST_F(GrpcBadInputTest, OneDamagedFrameIsDroppedAndTheNextIsServed) {
  RawPeer peer(address_, options_);
  FrameBytes flipped = FrameOf(CallOf(1, 1));
  flipped.data()[26] ^= std::byte{1};
  ASSERT_TRUE(peer.Send(flipped));
  ASSERT_TRUE(peer.Send(flipped));
  const SampleCall call = CallOf(1, 2);
  ASSERT_TRUE(peer.Send(FrameOf(call)));
  ExpectAnswer(peer, call);
  EXPECT_EQ(server_->counters().malformed, 2u);
  EXPECT_EQ(sink_.num_submitted(), 1);
}

TEST_F(GrpcBadInputTest, WhatBreaksTheTermsIsRefusedAndTheStreamGoesOn) {
  RawPeer peer(address_, options_);
  uint64_t seq = 0;
  const auto nack = [&](auto change) {
    SampleCall call = CallOf(1, ++seq);
    FrameBytes frame = FrameOf(call);
    FrameHeader header = frame.header();
    change(header, frame);
    frame.Seal(header, 8 * call.view.pair_row.size());
    EXPECT_TRUE(peer.Send(frame));
    return NextNack(peer);
  };
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.layer = 8; }), "no_such_layer");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.model = 9; }), "cluster_mismatch");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.row_width = 23; }), "shape_mismatch");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.rows = 0; }), "bad_items");
  EXPECT_EQ(nack([](FrameHeader& h, FrameBytes&) { h.slot = 8; }), "bad_items");
  EXPECT_EQ(nack([](FrameHeader&, FrameBytes& f) {
              const float nan = std::numeric_limits<float>::quiet_NaN();
              std::memcpy(f.data() + kFrameHeaderBytes, &nan, sizeof(nan));
            }),
            "bad_gate");
  EXPECT_EQ(sink_.num_submitted(), 0);
  ASSERT_TRUE(peer.Send(FrameOf(CallOf(1, ++seq))));
  EXPECT_FALSE(peer.Receive().empty());
  EXPECT_EQ(sink_.num_submitted(), 1);
}

TEST_F(GrpcBadInputTest, FramesOfTheWrongSideOrOfAnotherFrontendEndTheStream) {
  const auto reason = [this](const FrameBytes& frame) {
    RawPeer peer(address_, options_);
    return peer.EndReasonOfThree(frame);
  };
  SampleCall call = CallOf(0, 1);
  ReplyView reply;
  reply.rows = {call.rows.As<std::byte>(), call.view.rows.size()};
  EXPECT_EQ(reason(FrameBytes::OfReply(call.view, reply, false, options_.limits)), "type");
  EXPECT_EQ(reason(ControlOf({.type = FrameType::kPong, .frontend = kFrontend})), "type");
  EXPECT_EQ(reason(ControlOf({.type = FrameType::kCredit, .frontend = kFrontend})), "type");
  EXPECT_EQ(reason(ControlOf({.type = FrameType::kPing, .frontend = kFrontend + 1})),
            "cluster_mismatch");
  call.view.frontend = kFrontend + 1;
  EXPECT_EQ(reason(FrameOf(call)), "cluster_mismatch");
  ExpectHealthy();
}

TEST_F(GrpcBadInputTest, ADuplicateIsAnsweredOnce) {
  RawPeer peer(address_, options_);
  const FrameBytes frame = FrameOf(CallOf(3, 5));
  ASSERT_TRUE(peer.Send(frame));
  ASSERT_TRUE(peer.Send(frame));
  ASSERT_TRUE(peer.Send(FrameOf(CallOf(3, 4))));
  ASSERT_TRUE(peer.Send(ControlOf({.type = FrameType::kPing, .frontend = kFrontend, .seq = 1})));
  int num_replies = 0;
  bool is_ponged = false;
  while (!is_ponged || num_replies == 0) {
    const std::vector<std::byte> bytes = peer.Receive();
    ASSERT_FALSE(bytes.empty());
    const FrameBytes answer(bytes.data(), bytes.size());
    num_replies += ParseReply(answer.bytes(), options_.limits).ok() ? 1 : 0;
    is_ponged = is_ponged || ParseControl(answer.bytes()).ok();
  }
  EXPECT_EQ(sink_.num_submitted(), 1);
  EXPECT_EQ(server_->counters().duplicates, 2u);
}

TEST_F(GrpcBadInputTest, CancelsOfWhatIsNotThereDoNothing) {
  RawPeer peer(address_, options_);
  for (uint32_t i = 0; i < 1000; ++i) {
    ASSERT_TRUE(peer.Send(ControlOf(
        {.type = FrameType::kCancel, .frontend = kFrontend, .slot = i * 7919, .seq = i})));
  }
  ASSERT_TRUE(peer.Send(FrameOf(CallOf(0, 1))));
  EXPECT_FALSE(peer.Receive().empty());
  EXPECT_EQ(server_->counters().cancelled, 0u);
}

TEST_F(GrpcBadInputTest, ASessionTakesOneStream) {
  RawPeer peer(address_, options_);
  ASSERT_TRUE(peer.Send(FrameOf(CallOf(0, 1))));
  ASSERT_FALSE(peer.Receive().empty());
  const auto reason = [&](const std::vector<std::string>& sessions) {
    grpc::ClientContext context;
    for (const std::string& session : sessions) {
      context.AddMetadata("conclave-session", session);
    }
    const auto stream = peer.stub().Exchange(&context);
    v1::Frame frame;
    EXPECT_FALSE(stream->Read(&frame));
    return ReasonOf(FromGrpc(stream->Finish()));
  };
  EXPECT_EQ(reason({peer.session()}), "unknown_session");
  EXPECT_EQ(reason({}), "unknown_session");
  EXPECT_EQ(reason({"0000000000000000"}), "unknown_session");
  EXPECT_EQ(reason({"nonsense"}), "unknown_session");
  EXPECT_EQ(reason({peer.session(), peer.session()}), "unknown_session");
  ASSERT_TRUE(peer.Send(FrameOf(CallOf(0, 2))));
  EXPECT_FALSE(peer.Receive().empty());
}

TEST_F(GrpcBadInputTest, APeerThatDoesNotReadIsDropped) {
  ExpertServerOptions options = TestServerOptions();
  options.send_bytes_max = 64 << 10;
  StartServer(options);
  RawPeer peer(address_, options_);
  // PINGs alone: their answers fill the network's buffers, and then wait.
  const FrameBytes ping = ControlOf({.type = FrameType::kPing, .frontend = kFrontend, .seq = 1});
  int num_sent = 0;
  while (num_sent < 1'000'000 && peer.Send(ping)) {
    ++num_sent;
  }
  EXPECT_TRUE(Eventually([&] { return server_->counters().slow_peers == 1; })) << num_sent;
  EXPECT_TRUE(sink_.WaitForGone(1));
  ExpectHealthy();
}

}  // namespace
}  // namespace conclave::transport
