// Goal: a frontend finds the router that leads among several, and again when it has gone.
// Method: the client, with routers that stand by or lead on real sockets. A wait that would never
// end fails by the test's time limit.
#include "conclave/frontend/router_client.h"

#include <grpcpp/grpcpp.h>

#include <memory>

#include "cluster.grpc.pb.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/transport/grpc_support.h"
#include "gtest/gtest.h"

namespace conclave::frontend {
namespace {

class FakeRouter final : public v1::ClusterService::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::PlacementUpdate, v1::WatchRequest>;

  explicit FakeRouter(bool is_leader, int port = 0) : is_leader_(is_leader) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeRouter() override { server_->Shutdown(std::chrono::system_clock::now()); }

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // Waits for a frontend that registers.
  std::string AwaitName() {
    MutexLock lock(mu_);
    while (name_.empty()) {
      changed_.Wait(mu_);
    }
    return name_;
  }

  // Waits until it has taken what this router said.
  void AwaitAcknowledgement() {
    MutexLock lock(mu_);
    while (!has_acknowledged_) {
      changed_.Wait(mu_);
    }
  }

  grpc::Status WatchPlacement(grpc::ServerContext* /*context*/, Stream* stream) override {
    if (!is_leader_) {
      return {grpc::StatusCode::UNAVAILABLE, "standby: another one leads"};
    }
    v1::WatchRequest request;
    while (stream->Read(&request)) {
      if (request.has_register_()) {
        v1::PlacementUpdate update;
        update.mutable_router()->set_term(1);
        update.mutable_router()->set_router_id("r");
        update.mutable_registered()->set_frontend_id(1);
        stream->Write(update);
        MutexLock lock(mu_);
        name_ = request.register_().name();
        changed_.NotifyAll();
        continue;
      }
      // An acknowledgement: the update has been taken.
      MutexLock lock(mu_);
      has_acknowledged_ = true;
      changed_.NotifyAll();
    }
    return grpc::Status::OK;
  }

 private:
  const bool is_leader_;
  int port_ = 0;
  Mutex mu_;
  CondVar changed_;
  std::string name_ ABSL_GUARDED_BY(mu_);
  bool has_acknowledged_ ABSL_GUARDED_BY(mu_) = false;
  std::unique_ptr<grpc::Server> server_;
};

TEST(RouterClientTest, TheRouterThatLeadsIsFoundAmongSeveral) {
  FakeRouter standby(false);
  auto leader = std::make_unique<FakeRouter>(true);
  RouterClientOptions options;
  options.routers = {"127.0.0.1:9", standby.address(), leader->address()};
  options.name = "f";
  options.on_view = [](ClusterView /*view*/) {};
  RouterClient client(std::move(options), {});
  client.Start();
  EXPECT_EQ(leader->AwaitName(), "f");
  const int port = leader->port();
  leader.reset();
  FakeRouter again(true, port);
  EXPECT_EQ(again.AwaitName(), "f");
}

// A router says nothing while nothing changes: that is no silence, but its end is one.
TEST(RouterClientTest, SilenceBeginsWithTheEndOfTheStream) {
  auto router = std::make_unique<FakeRouter>(true);
  RouterClientOptions options;
  options.routers = {router->address()};
  options.name = "f";
  options.on_view = [](ClusterView /*view*/) {};
  RouterClient client(std::move(options), {});
  EXPECT_EQ(client.silence_ms(), -1);
  client.Start();
  router->AwaitAcknowledgement();
  const MonotonicTime quiet_since = Clock::Real().Now();
  while (Clock::Real().Now() - quiet_since < std::chrono::milliseconds(20)) {
    EXPECT_EQ(client.silence_ms(), 0);
  }
  router.reset();
  while (client.silence_ms() < 20) {
  }
  EXPECT_FALSE(client.status().ok());
}

}  // namespace
}  // namespace conclave::frontend
