// Goal: a worker that takes a stream and hangs holds nobody up.
// Method: a server made of generated code alone, which stops reading. What the grpc channel has in
// common with others is in pair_channel_test.cc.
#include "expert.grpc.pb.h"
#include "gmock/gmock.h"
#include "pair_fixture.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

class GrpcChannelTest : public PairTest {};

// A stream that nobody reads until it is cancelled.
class DeafStream final : public grpc::ServerBidiReactor<v1::Frame, v1::Frame> {
 public:
  explicit DeafStream(bool is_taken) {
    if (is_taken) {
      StartSendInitialMetadata();
    }
  }
  void OnCancel() override { Finish(grpc::Status::CANCELLED); }
  void OnDone() override { delete this; }
};

// Takes the handshake and the stream, and then reads nothing, as a stopped process.
class DeafWorker final : public v1::ExpertService::CallbackService {
 public:
  explicit DeafWorker(bool takes_stream) : takes_stream_(takes_stream) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~DeafWorker() override { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::ServerUnaryReactor* Hello(grpc::CallbackServerContext* context,
                                  const v1::HelloRequest* request,
                                  v1::HelloResponse* response) override {
    response->set_session(1);
    response->set_worker_incarnation(request->worker_incarnation());
    response->set_num_slots(request->num_slots());
    response->set_max_rows(request->max_rows());
    response->set_max_pairs(request->max_rows() * request->model().top_k());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerBidiReactor<v1::Frame, v1::Frame>* Exchange(
      grpc::CallbackServerContext* /*context*/) override {
    return new DeafStream(takes_stream_);
  }

 private:
  const bool takes_stream_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(GrpcChannelTest, AWorkerThatDoesNotReadIsGivenUpWhenTheQueueIsFull) {
  DeafWorker worker(true);
  address_ = worker.address();
  FrameLimits limits = SampleLimits();
  limits.max_rows = 256;
  limits.max_pairs = 512;
  limits.row_width = 1024;
  options_ = TestServerOptions(limits);
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  const SampleCall sample = MakeSampleCall(1, limits, 256);
  absl::Status status;
  int num_sent = 0;
  while (num_sent < 100) {
    CallSlot* slot = channel->Acquire();
    ASSERT_NE(slot, nullptr);
    FillFrom(sample, *slot);
    status = channel->Dispatch(slot);
    if (!status.ok()) {
      channel->Release(slot);
      break;
    }
    ++num_sent;
    channel->Cancel(slot);
    channel->Release(slot);
  }
  // Half a MiB each: nearly 8 MiB wait here, the rest is what the network took.
  EXPECT_GE(num_sent, 12);
  EXPECT_LT(num_sent, 100);
  EXPECT_EQ(ReasonOf(status), "link_lost");
  EXPECT_THAT(MessageOf(status), HasSubstr("too slowly"));
  EXPECT_TRUE(bell_.TryTake());
}

TEST_F(GrpcChannelTest, AWorkerThatDoesNotTakeTheStreamIsNotWaitedForLonger) {
  DeafWorker worker(false);
  address_ = worker.address();
  options_ = TestServerOptions();
  const auto channel = Connect(TestTerms(options_), {}, std::chrono::milliseconds(300));
  ASSERT_FALSE(channel.ok());
  EXPECT_EQ(ReasonOf(channel.status()), "connect");
}

}  // namespace
}  // namespace conclave::transport
