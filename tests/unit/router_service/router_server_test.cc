// Goal: a worker, a frontend and an operator get along with the router over real sockets, and a
// peer that talks nonsense harms nobody but itself.
// Method: the server on a free port, peers on generated stubs that read and write by hand.
#include "conclave/router_service/router_server.h"

#include <grpcpp/grpcpp.h>

#include <filesystem>
#include <future>
#include <memory>

#include "cluster.grpc.pb.h"
#include "conclave/base/status.h"
#include "conclave/router_service/admin_client.h"
#include "conclave/router_service/routing_trace.h"
#include "conclave/transport/grpc_support.h"
#include "conclave/transport/pair_key.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

// A test that goes wrong ends here instead of hanging.
constexpr std::chrono::seconds kPatience{30};

void FillModel(v1::ModelIdentity& model, v1::NumericMode& numeric) {
  model.set_manifest_hash("0123456789abcdef");
  model.set_row_width(64);
  model.set_top_k(2);
  numeric.set_dtype("bf16");
  numeric.set_isa("avx2");
  numeric.set_kernel_revision(1);
}

v1::WorkerReport Registration(const std::string& name) {
  v1::WorkerReport report;
  v1::RegisterWorker& r = *report.mutable_register_();
  r.set_protocol_major(1);
  r.set_name(name);
  r.set_incarnation(1);
  r.set_data_address("127.0.0.1:12345");
  r.set_host_id("host");
  r.add_channels("grpc");
  FillModel(*r.mutable_model(), *r.mutable_numeric());
  r.set_memory_bytes(1 << 20);
  r.set_expert_bytes(1 << 10);
  r.set_speed(1);
  v1::MoeLayer& layer = *r.add_moe_layers();
  layer.set_layer(1);
  layer.set_num_experts(4);
  return report;
}

v1::WatchRequest FrontendRegistration(const std::string& name) {
  v1::WatchRequest request;
  v1::RegisterFrontend& r = *request.mutable_register_();
  r.set_protocol_major(1);
  r.set_name(name);
  r.set_incarnation(0x1234'0000'0000'0000);
  FillModel(*r.mutable_model(), *r.mutable_numeric());
  return request;
}

class RouterServerTest : public ::testing::Test {
 protected:
  void SetUp() override { StartServer(""); }

  void StartServer(const std::string& state_dir) {
    RouterServerOptions options;
    options.core.recover = milliseconds(50);
    options.tick = milliseconds(10);
    options.state_dir = state_dir;
    auto server = RouterServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateCustomChannel(Address(), grpc::InsecureChannelCredentials(),
                                         transport::ClientArguments(1 << 22));
    cluster_ = v1::ClusterService::NewStub(channel_);
    auto admin = AdminClient::Create({.address = Address()});
    ASSERT_TRUE(admin.ok());
    admin_ = *std::move(admin);
  }
  std::string Address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  // One peer's stream.
  template <typename In, typename Out>
  struct Peer {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<In, Out>> stream;
    Peer() { context.set_deadline(std::chrono::system_clock::now() + kPatience); }
    bool Send(const In& message) { return stream->Write(message); }
    // The status at the end; what was sent before is thrown away.
    absl::Status End() {
      Out message;
      while (stream->Read(&message)) {
      }
      return transport::FromGrpc(stream->Finish());
    }
  };
  using Worker = Peer<v1::WorkerReport, v1::WorkerCommand>;
  using Frontend = Peer<v1::WatchRequest, v1::PlacementUpdate>;

  std::unique_ptr<Worker> JoinWorker(const v1::WorkerReport& first) {
    auto worker = std::make_unique<Worker>();
    worker->stream = cluster_->JoinWorker(&worker->context);
    EXPECT_TRUE(worker->Send(first));
    return worker;
  }
  std::unique_ptr<Frontend> Watch(const v1::WatchRequest& first) {
    auto frontend = std::make_unique<Frontend>();
    frontend->stream = cluster_->WatchPlacement(&frontend->context);
    EXPECT_TRUE(frontend->Send(first));
    return frontend;
  }
  // The next command with this content; placements and acknowledgements on the way are passed over.
  static v1::WorkerCommand Await(Worker& worker, v1::WorkerCommand::CommandCase which) {
    v1::WorkerCommand command;
    while (worker.stream->Read(&command)) {
      if (command.command_case() == which) {
        return command;
      }
    }
    ADD_FAILURE() << "the stream ended: " << worker.stream->Finish().error_message();
    return {};
  }
  // Loads what the next Prepare asks for.
  static void LoadOnce(Worker& worker) {
    const v1::WorkerCommand command = Await(worker, v1::WorkerCommand::kPrepare);
    v1::WorkerReport report;
    report.mutable_prepare_result()->set_plan_id(command.prepare().plan_id());
    for (const v1::ExpertRef& expert : command.prepare().experts()) {
      v1::HeldExpert& held = *report.mutable_prepare_result()->add_ready();
      *held.mutable_expert() = expert;
      held.set_weight_hash(std::string(31, 'w') + static_cast<char>('a' + expert.expert()));
      held.set_canary_checksum(7);
    }
    EXPECT_TRUE(worker.Send(report));
  }

  std::unique_ptr<RouterServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ClusterService::Stub> cluster_;
  std::unique_ptr<AdminClient> admin_;
};

TEST_F(RouterServerTest, AWorkerRegistersLoadsAndServesAndAFrontendSeesIt) {
  const auto worker = JoinWorker(Registration("w"));
  const v1::WorkerCommand registered = Await(*worker, v1::WorkerCommand::kRegistered);
  EXPECT_EQ(registered.router().term(), 1u);
  EXPECT_EQ(registered.router().router_id().size(), 16u);
  EXPECT_EQ(registered.registered().heartbeat_interval_ms(), 200u);
  EXPECT_NE(registered.registered().worker_key(), 0u);

  v1::WorkerReport beat;
  beat.mutable_heartbeat()->set_seq(1);
  beat.mutable_heartbeat()->set_is_canary_ok(true);
  ASSERT_TRUE(worker->Send(beat));
  LoadOnce(*worker);

  const auto frontend = Watch(FrontendRegistration("f"));
  v1::PlacementUpdate update;
  ASSERT_TRUE(frontend->stream->Read(&update));
  EXPECT_EQ(update.base_epoch(), 0u) << "the first is a snapshot";
  ASSERT_TRUE(update.has_registered());
  const uint32_t id = update.registered().frontend_id();
  // Until everything is served: deltas on what came before, without gaps.
  std::map<int32_t, int> num_workers;
  uint64_t epoch = 0;
  for (;;) {
    if (update.base_epoch() != 0) {
      EXPECT_EQ(update.base_epoch(), epoch);
      EXPECT_FALSE(update.has_registered());
    }
    epoch = update.epoch();
    for (const v1::Member& member : update.workers()) {
      EXPECT_EQ(member.pair_key(), transport::PairKey(registered.registered().worker_key(), id));
    }
    for (const v1::ExpertReplicas& replicas : update.experts()) {
      num_workers[replicas.expert().expert()] = replicas.workers_size();
      if (replicas.workers_size() > 0) {
        EXPECT_EQ(replicas.weight_hash().size(), 32u);
      }
    }
    v1::WatchRequest ack;
    ack.mutable_ack()->set_epoch(epoch);
    ASSERT_TRUE(frontend->Send(ack));
    if (num_workers.size() == 4 &&
        std::all_of(num_workers.begin(), num_workers.end(),
                    [](const auto& entry) { return entry.second == 1; })) {
      break;
    }
    ASSERT_TRUE(frontend->stream->Read(&update));
  }
  v1::WatchRequest resync;
  (void)resync.mutable_resync();
  ASSERT_TRUE(frontend->Send(resync));
  do {
    ASSERT_TRUE(frontend->stream->Read(&update));
  } while (update.base_epoch() != 0);
  EXPECT_EQ(update.experts_size(), 4);

  const auto status = admin_->Status();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->state, "serving");
  ASSERT_EQ(status->workers.size(), 1u);
  EXPECT_EQ(status->workers[0].member.name, "w");
  EXPECT_EQ(status->workers[0].num_experts, 4);
  EXPECT_EQ(status->frontends.size(), 1u);
  EXPECT_EQ(status->replication_lowest, 1);
  worker->context.TryCancel();
  frontend->context.TryCancel();
  (void)worker->End();
  (void)frontend->End();
}

TEST_F(RouterServerTest, OperatorsGetAnswersAndReasons) {
  const auto worker = JoinWorker(Registration("w"));
  (void)Await(*worker, v1::WorkerCommand::kRegistered);
  LoadOnce(*worker);
  EXPECT_EQ(ReasonOf(admin_->Drain("w").status()), "not_kill_safe");
  EXPECT_EQ(ReasonOf(admin_->Drain("x").status()), "worker_unknown");
  EXPECT_EQ(ReasonOf(admin_->Drain("bad name").status()), "message_field");
  EXPECT_TRUE(admin_->Replicate({LayerId(1), ExpertId(0)}, 2).ok());
  EXPECT_EQ(ReasonOf(admin_->Replicate({LayerId(2), ExpertId(0)}, 2).status()), "expert_unknown");
  EXPECT_TRUE(admin_->Pin({LayerId(1), ExpertId(0)}, "w", false).ok());
  EXPECT_TRUE(admin_->Rebalance(true, true).ok());
  EXPECT_TRUE(admin_->Rebalance(false, false).ok());
  EXPECT_TRUE(admin_->AtRiskWithout("w").ok());
  EXPECT_TRUE(admin_->Undrain("w").ok());
  worker->context.TryCancel();
  (void)worker->End();
}

TEST_F(RouterServerTest, AStreamStartsWithARegistration) {
  v1::WorkerReport beat;
  beat.mutable_heartbeat()->set_seq(1);
  EXPECT_EQ(ReasonOf(JoinWorker(beat)->End()), "message_field");
  EXPECT_EQ(ReasonOf(JoinWorker(v1::WorkerReport())->End()), "message_field");
  v1::WatchRequest ack;
  ack.mutable_ack()->set_epoch(1);
  EXPECT_EQ(ReasonOf(Watch(ack)->End()), "message_field");
  const auto twice = JoinWorker(Registration("w"));
  ASSERT_TRUE(twice->Send(Registration("w")));
  EXPECT_EQ(ReasonOf(twice->End()), "message_field");
}

TEST_F(RouterServerTest, EveryFieldOfARegistrationIsChecked) {
  using Change = std::function<void(v1::RegisterWorker&)>;
  const std::vector<std::pair<std::string, Change>> cases = {
      {"message_field", [](auto& r) { r.set_name(""); }},
      {"message_field", [](auto& r) { r.set_name("a b"); }},
      {"message_field", [](auto& r) { r.set_name(std::string(65, 'a')); }},
      {"message_field", [](auto& r) { r.set_incarnation(0); }},
      {"message_field", [](auto& r) { r.clear_model(); }},
      {"message_field", [](auto& r) { r.mutable_model()->set_manifest_hash("xyz"); }},
      {"message_field", [](auto& r) { r.mutable_model()->set_top_k(-1); }},
      {"message_field", [](auto& r) { r.clear_numeric(); }},
      {"message_field", [](auto& r) { r.clear_channels(); }},
      {"message_field", [](auto& r) { r.set_speed(0); }},
      {"message_field", [](auto& r) { r.set_speed(std::numeric_limits<double>::quiet_NaN()); }},
      {"message_field", [](auto& r) { r.set_memory_bytes(-1); }},
      {"message_field", [](auto& r) { r.set_expert_bytes(0); }},
      {"message_field", [](auto& r) { r.mutable_moe_layers(0)->set_num_experts(0); }},
      {"message_field", [](auto& r) { *r.add_moe_layers() = r.moe_layers(0); }},
      {"message_field", [](auto& r) { r.add_held()->set_weight_hash("short"); }},
      {"message_field", [](auto& r) { r.mutable_last_router()->set_router_id("nonsense"); }},
      {"moe_layers", [](auto& r) { r.clear_moe_layers(); }},
      {"placement_worker", [](auto& r) { r.set_data_address("0.0.0.0:1"); }},
      {"placement_worker", [](auto& r) { r.set_data_address("127.0.0.1:0"); }},
      {"placement_worker", [](auto& r) { r.set_data_address("127.0.0.1:65536"); }},
      {"cluster_mismatch", [](auto& r) { r.set_protocol_major(2); }},
  };
  for (size_t i = 0; i < cases.size(); ++i) {
    v1::WorkerReport report = Registration("w" + std::to_string(i));
    cases[i].second(*report.mutable_register_());
    const absl::Status status = JoinWorker(report)->End();
    EXPECT_EQ(ReasonOf(status), cases[i].first) << i << ": " << status;
  }
}

TEST_F(RouterServerTest, AHeartbeatWithNonsenseEndsTheStream) {
  const auto worker = JoinWorker(Registration("w"));
  (void)Await(*worker, v1::WorkerCommand::kRegistered);
  v1::WorkerReport beat;
  beat.mutable_heartbeat()->set_seq(1);
  beat.mutable_heartbeat()->set_busy_ratio(1e300);
  ASSERT_TRUE(worker->Send(beat));
  EXPECT_EQ(ReasonOf(worker->End()), "message_field");
}

TEST_F(RouterServerTest, AMessageAboveTheLimitIsRefused) {
  v1::WorkerReport report = Registration("w");
  report.mutable_register_()->set_host_id(std::string(5 << 20, 'x'));
  auto worker = std::make_unique<Worker>();
  worker->stream = cluster_->JoinWorker(&worker->context);
  (void)worker->Send(report);
  EXPECT_FALSE(worker->End().ok());
  EXPECT_TRUE(admin_->Status().ok()) << "others do not notice";
}

TEST_F(RouterServerTest, TheStateOutlivesTheServer) {
  std::string folder = (std::filesystem::temp_directory_path() / "router_XXXXXX").string();
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  server_.reset();
  StartServer(folder);
  {
    const auto worker = JoinWorker(Registration("w"));
    (void)Await(*worker, v1::WorkerCommand::kRegistered);
    LoadOnce(*worker);
    RouterServerOptions second;
    second.state_dir = folder;
    EXPECT_EQ(ReasonOf(RouterServer::Start(second).status()), "state_dir_locked");
    server_.reset();
    EXPECT_EQ(ReasonOf(worker->End()), "draining");
  }
  StartServer(folder);
  const auto worker = JoinWorker(Registration("w"));
  EXPECT_EQ(Await(*worker, v1::WorkerCommand::kRegistered).router().term(), 2u);
  worker->context.TryCancel();
  (void)worker->End();
  server_.reset();
  std::filesystem::remove_all(folder);
}

TEST_F(RouterServerTest, AnAddressInUseIsAnError) {
  RouterServerOptions options;
  options.port = server_->port();
  EXPECT_EQ(ReasonOf(RouterServer::Start(options).status()), "bind");
}

TEST_F(RouterServerTest, AClientWithoutARouterSaysSo) {
  const std::string address = Address();
  server_.reset();
  const auto client =
      AdminClient::Create({.address = address, .timeout = std::chrono::milliseconds(300)});
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(ReasonOf((*client)->Status().status()), "connect");
}

TEST_F(RouterServerTest, ARecordingIsFetchedInPiecesOverBothDoors) {
  const auto fetch = [this] {
    std::string file;
    const absl::Status status = admin_->GetRecording([&](const std::string& piece) {
      file += piece;
      return absl::OkStatus();
    });
    return std::pair(status, file);
  };
  EXPECT_EQ(ReasonOf(admin_->StartRecording().status()), "recording_model");
  EXPECT_EQ(ReasonOf(fetch().first), "no_recording");
  const auto worker = JoinWorker(Registration("w"));
  absl::StatusOr<RecordingStatus> started = admin_->StartRecording();
  for (const auto until = std::chrono::steady_clock::now() + kPatience;
       !started.ok() && std::chrono::steady_clock::now() < until;) {
    started = admin_->StartRecording();
  }
  ASSERT_TRUE(started.ok()) << started.status();
  EXPECT_TRUE(started->is_recording);
  // The door of the process itself.
  std::promise<absl::StatusOr<RecordingStatus>> stopped;
  server_->StopRecording(
      [&](const absl::StatusOr<RecordingStatus>& status) { stopped.set_value(status); });
  const absl::StatusOr<RecordingStatus> status = stopped.get_future().get();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_FALSE(status->is_recording);
  std::promise<std::string> inside;
  server_->GetRecording([&](absl::StatusOr<Recording> recording) {
    std::string file;
    for (const auto& piece : recording.value_or(Recording{}).pieces) {
      file += *piece;
    }
    inside.set_value(file);
  });
  const auto [fetched, file] = fetch();
  EXPECT_TRUE(fetched.ok()) << fetched;
  EXPECT_EQ(file, inside.get_future().get());
  EXPECT_EQ(file.size(), status->bytes);
  EXPECT_TRUE(ReadTrace(file).ok());
  // Whoever takes it may stop in the middle.
  EXPECT_EQ(ReasonOf(admin_->GetRecording(
                [](const std::string&) { return NotFound("enough", "no more"); })),
            "enough");
  EXPECT_TRUE(admin_->Status().ok());
}

}  // namespace
}  // namespace conclave::router_service
