// Goal: a worker joins a router, loads what it is told, answers frontends with the bits of a worker
// core, reports, survives its router, and leaves when it may. Method: the whole worker in this
// process, over gRPC on the loopback, with a router that a test drives and a real channel.
#include "conclave/expert_worker/worker_server.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "conclave/base/status.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/transport/grpc_channel.h"
#include "conclave/transport/pair_key.h"
#include "fake_router.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

using std::chrono::milliseconds;

class WorkerServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
  }

  WorkerServerOptions Options(const std::string& router) {
    WorkerServerOptions options;
    options.routers = {router};
    options.name = "tiny-1";
    options.dtype = DType::kF32;
    options.compute = compute_;
    options.memory_bytes = int64_t{1} << 30;
    options.max_rows = 64;
    options.drain_timeout = milliseconds(20'000);
    return options;
  }
  std::unique_ptr<WorkerServer> Start(const WorkerServerOptions& options) {
    auto started = WorkerServer::Start(*checkpoint_, options);
    EXPECT_TRUE(started.ok()) << started.status();
    return started.ok() ? *std::move(started) : nullptr;
  }

  static v1::WorkerCommand PrepareOf(uint64_t plan_id,
                                     const std::vector<placement::ExpertUnit>& units) {
    v1::WorkerCommand command;
    command.mutable_prepare()->set_plan_id(plan_id);
    for (const placement::ExpertUnit unit : units) {
      v1::ExpertRef* ref = command.mutable_prepare()->add_experts();
      ref->set_layer(unit.layer.value());
      ref->set_expert(unit.expert.value());
    }
    return command;
  }
  static v1::WorkerCommand PlacementOf(uint64_t epoch,
                                       const std::vector<placement::ExpertUnit>& units,
                                       const std::vector<int32_t>& workers) {
    v1::WorkerCommand command;
    command.mutable_placement()->set_epoch(epoch);
    for (const placement::ExpertUnit unit : units) {
      v1::ExpertReplicas* replicas = command.mutable_placement()->add_experts();
      replicas->mutable_expert()->set_layer(unit.layer.value());
      replicas->mutable_expert()->set_expert(unit.expert.value());
      for (const int32_t worker : workers) {
        replicas->add_workers(worker);
      }
    }
    return command;
  }

  // A frontend's channel to the worker.
  std::unique_ptr<transport::ExpertChannel> Connect(const WorkerServer& server,
                                                    uint64_t incarnation) {
    transport::PairTerms terms;
    terms.manifest_hash = checkpoint::ManifestHash(*checkpoint_);
    terms.row_width = kWidth;
    terms.top_k = static_cast<uint16_t>(checkpoint_->desc().moe.top_k);
    terms.mode = DType::kF32;
    terms.kernel_revision = kernels::kKernelRevision;
    terms.frontend_id = 9;
    terms.pair_key = transport::PairKey(FakeRouter::kWorkerKey, 9);
    terms.worker_incarnation = incarnation;
    terms.max_rows = 64;
    terms.num_layers = static_cast<uint16_t>(checkpoint_->desc().num_layers);
    terms.num_experts_max = 4;
    auto channel = transport::ConnectGrpcChannel("127.0.0.1:" + std::to_string(server.port()), {},
                                                 terms, bell_, Clock::Real(), milliseconds(5000));
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.ok() ? *std::move(channel) : nullptr;
  }

  // Sends `call` and waits for its end; the rows of the answer are in `call` then.
  static absl::Status Ask(transport::ExpertChannel& channel, OwnedCall& call,
                          std::vector<WorkerId>* holders = nullptr) {
    transport::CallSlot* slot = channel.Acquire();
    std::copy(call.weights.begin(), call.weights.end(), slot->pair_weight.begin());
    std::copy(call.pair_rows.begin(), call.pair_rows.end(), slot->pair_row.begin());
    std::copy(call.pair_experts.begin(), call.pair_experts.end(), slot->pair_expert.begin());
    std::memcpy(slot->rows.data(), call.view.rows.data(), call.view.rows.size());
    const size_t pairs = call.weights.size();
    slot->call.layer = call.view.layer;
    slot->call.num_rows = call.view.num_rows;
    slot->call.deadline_us = 5'000'000;
    slot->call.pair_weight = slot->pair_weight.first(pairs);
    slot->call.pair_row = slot->pair_row.first(pairs);
    slot->call.pair_expert = slot->pair_expert.first(pairs);
    slot->call.rows = slot->rows.first(call.view.rows.size());
    CONCLAVE_RETURN_IF_ERROR(channel.Dispatch(slot));
    const absl::Status status = channel.Await(slot);
    if (status.ok()) {
      std::memcpy(call.reply.rows.data(), slot->reply.rows.data(), slot->reply.rows.size());
    }
    if (holders != nullptr) {
      holders->assign(slot->holders.begin(), slot->holders.end());
    }
    channel.Release(slot);
    return status;
  }

  ThreadPool pool_{1};
  kernels::Context compute_{kernels::Isa::kScalar, pool_};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  transport::Doorbell bell_;
};

TEST_F(WorkerServerTest, JoinsLoadsAnswersReportsAndLeaves) {
  FakeRouter router;
  const auto server = Start(Options(router.address()));
  ASSERT_NE(server, nullptr);
  const v1::RegisterWorker joined =
      router.Await([](const auto& report) { return report.has_register_(); }).register_();
  EXPECT_EQ(joined.name(), "tiny-1");
  EXPECT_EQ(joined.data_address(), "127.0.0.1:" + std::to_string(server->port()));
  EXPECT_EQ(joined.model().manifest_hash(), checkpoint::ManifestHash(*checkpoint_));
  EXPECT_EQ(joined.numeric().isa(), "scalar");
  EXPECT_EQ(joined.moe_layers_size(), 2);
  EXPECT_EQ(joined.held_size(), 0);
  router.Await([](const auto& report) { return report.has_heartbeat(); });

  router.Send(PrepareOf(7, Units({0, 1, 2})));
  const v1::PrepareResult prepared =
      router.Await([](const auto& report) { return report.has_prepare_result(); }).prepare_result();
  EXPECT_EQ(prepared.plan_id(), 7u);
  ASSERT_EQ(prepared.ready_size(), 6);
  EXPECT_EQ(prepared.failed_size(), 0) << prepared.error();
  EXPECT_EQ(prepared.ready(0).weight_hash().size(), 32u);
  router.Send(PlacementOf(0x100000001, Units({0, 1, 2}), {5}));
  EXPECT_TRUE(server->WaitReady());
  EXPECT_EQ(server->worker_id(), 5);

  const auto core = LoadWorker(*checkpoint_, AllExperts(), DType::kF32, compute_);
  const auto channel = Connect(*server, joined.incarnation());
  ASSERT_NE(channel, nullptr);
  const Tokens tokens = RandomTokens(4, 12, transport::WireDtype::kF32);
  const auto want = MakeCall(tokens, AllOf(tokens), {0, 1, 2}, 2);
  const auto got = MakeCall(tokens, AllOf(tokens), {0, 1, 2}, 2);
  ASSERT_TRUE(core->Execute(want->view, want->reply).ok());
  const absl::Status status = Ask(*channel, *got);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(std::memcmp(want->reply.rows.data(), got->reply.rows.data(), want->reply.rows.size()),
            0);
  const v1::LoadReport load = router
                                  .Await([](const auto& report) {
                                    return report.has_load() && report.load().experts_size() > 0;
                                  })
                                  .load();
  uint64_t rows = 0;
  for (const v1::ExpertRows& expert : load.experts()) {
    rows += expert.decode_text();
  }
  EXPECT_EQ(rows, got->view.pair_row.size());

  // What it does not hold is refused, with who does.
  router.Send(PlacementOf(0x100000002, Units(AllExperts()), {5, 6}));
  const auto elsewhere = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  std::vector<WorkerId> holders;
  while (holders.empty()) {  // until the placement has arrived
    EXPECT_EQ(ReasonOf(Ask(*channel, *elsewhere, &holders)), "not_held");
  }
  EXPECT_EQ(holders, std::vector<WorkerId>{WorkerId(6)});

  v1::WorkerCommand retire;
  retire.mutable_retire()->set_plan_id(8);
  retire.mutable_retire()->add_experts()->set_layer(2);
  router.Send(retire);
  const v1::RetireResult retired =
      router.Await([](const auto& report) { return report.has_retire_result(); }).retire_result();
  EXPECT_EQ(retired.plan_id(), 8u);
  EXPECT_GT(retired.freed_bytes(), 0);
  EXPECT_EQ(ReasonOf(Ask(*channel, *got)), "not_held");

  server->Drain();
  router.Await([](const auto& report) { return report.has_drain_wish(); });
  EXPECT_EQ(server->figures().state, WorkerState::kDraining);
  v1::WorkerCommand drained;
  drained.mutable_drain()->set_is_draining(true);
  drained.mutable_drain()->set_is_drained(true);
  router.Send(drained);
  EXPECT_TRUE(server->WaitStopped().ok());
}

TEST_F(WorkerServerTest, ServesWithoutItsRouterAndComesBackWithWhatItHolds) {
  auto router = std::make_unique<FakeRouter>();
  const int port = router->port();
  const auto server = Start(Options(router->address()));
  ASSERT_NE(server, nullptr);
  const uint64_t incarnation =
      router->Await([](const auto& report) { return report.has_register_(); })
          .register_()
          .incarnation();
  router->Await([](const auto& report) { return report.has_heartbeat(); });
  router->Send(PrepareOf(1, Units(AllExperts())));
  router->Await([](const auto& report) { return report.has_prepare_result(); });
  ASSERT_TRUE(server->WaitReady());
  const auto channel = Connect(*server, incarnation);
  ASSERT_NE(channel, nullptr);
  router.reset();

  const Tokens tokens = RandomTokens(4, 3, transport::WireDtype::kF32);
  const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 0);
  EXPECT_TRUE(Ask(*channel, *call).ok());

  FakeRouter again(port);
  const v1::RegisterWorker joined =
      again.Await([](const auto& report) { return report.has_register_(); }).register_();
  EXPECT_EQ(joined.held_size(), 8);
  EXPECT_EQ(joined.incarnation(), incarnation);
  EXPECT_EQ(joined.last_router().term(), 1u);
  EXPECT_TRUE(Ask(*channel, *call).ok());
}

TEST_F(WorkerServerTest, ARefusedWorkerStopsAndSaysWhy) {
  FakeRouter router(0, {grpc::StatusCode::FAILED_PRECONDITION, "cluster_mismatch: another model"});
  const auto server = Start(Options(router.address()));
  ASSERT_NE(server, nullptr);
  EXPECT_FALSE(server->WaitReady());
  EXPECT_EQ(ReasonOf(server->WaitStopped()), "cluster_mismatch");
}

TEST_F(WorkerServerTest, AWorkerWithoutARouterStopsAtOnce) {
  const auto server = Start(Options("127.0.0.1:1"));
  ASSERT_NE(server, nullptr);
  server->Drain();
  EXPECT_FALSE(server->WaitReady());
  EXPECT_TRUE(server->WaitStopped().ok());
}

TEST_F(WorkerServerTest, TheRouterThatLeadsIsFoundAmongSeveral) {
  FakeRouter standby(0, {grpc::StatusCode::UNAVAILABLE, "standby: another one leads"});
  auto first = std::make_unique<FakeRouter>();
  WorkerServerOptions options = Options(standby.address());
  options.routers = {"127.0.0.1:9", standby.address(), first->address()};
  const auto server = Start(options);
  ASSERT_NE(server, nullptr);
  const auto is_registration = [](const v1::WorkerReport& report) {
    return report.has_register_();
  };
  EXPECT_EQ(first->Await(is_registration).register_().name(), "tiny-1");
  // The leader leaves and comes back: the worker goes round until it does.
  const int port = first->port();
  first.reset();
  FakeRouter again(port);
  EXPECT_EQ(again.Await(is_registration).register_().last_router().term(), 1u);
}

}  // namespace
}  // namespace conclave::expert_worker
