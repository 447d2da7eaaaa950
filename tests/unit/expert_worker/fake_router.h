// A router that does what a test says: takes registrations over gRPC, acknowledges heartbeats, and
// keeps what it hears.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cluster.grpc.pb.h"
#include "conclave/base/mutex.h"

namespace conclave::expert_worker {

class FakeRouter final : public v1::ClusterService::Service {
 public:
  using Stream = grpc::ServerReaderWriter<v1::WorkerCommand, v1::WorkerReport>;
  static constexpr uint64_t kWorkerKey = 0x1234;

  // On `port`, 0: a free one. `refusal`: what registrations are answered with.
  explicit FakeRouter(int port = 0, grpc::Status refusal = grpc::Status::OK)
      : refusal_(std::move(refusal)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeRouter() override { Stop(); }

  void Stop() {
    if (server_ != nullptr) {
      server_->Shutdown(std::chrono::system_clock::now());
      server_.reset();
    }
  }

  int port() const { return port_; }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status JoinWorker(grpc::ServerContext* /*context*/, Stream* stream) override {
    if (!refusal_.ok()) {
      return refusal_;
    }
    v1::WorkerReport report;
    while (stream->Read(&report)) {
      if (report.has_register_()) {
        v1::WorkerCommand command;
        v1::WorkerRegistered* registered = command.mutable_registered();
        registered->set_worker_id(5);
        registered->set_worker_key(kWorkerKey);
        registered->set_heartbeat_interval_ms(20);
        registered->set_suspect_after_ms(600);
        registered->set_dead_after_ms(1500);
        registered->set_load_interval_ms(50);
        SendOn(*stream, command);
        MutexLock lock(mu_);
        stream_ = stream;
      } else if (report.has_heartbeat()) {
        v1::WorkerCommand command;
        command.mutable_heartbeat_ack()->set_seq(report.heartbeat().seq());
        SendOn(*stream, command);
      }
      MutexLock lock(mu_);
      reports_.push_back(report);
      changed_.NotifyAll();
    }
    MutexLock lock(mu_);
    stream_ = nullptr;
    return grpc::Status::OK;
  }

  // To the worker that registered last.
  void Send(const v1::WorkerCommand& command) {
    Stream* stream = nullptr;
    {
      MutexLock lock(mu_);
      stream = stream_;
    }
    SendOn(*stream, command);
  }

  // The first report, of those that have not been given out, of which `is_wanted` is true. A test
  // that would wait for ever fails by its time limit.
  v1::WorkerReport Await(const std::function<bool(const v1::WorkerReport&)>& is_wanted) {
    MutexLock lock(mu_);
    while (true) {
      for (; next_ < reports_.size(); ++next_) {
        if (is_wanted(reports_[next_])) {
          return reports_[next_++];
        }
      }
      changed_.Wait(mu_);
    }
  }

 private:
  void SendOn(Stream& stream, v1::WorkerCommand command) {
    command.mutable_router()->set_term(1);
    command.mutable_router()->set_router_id("00000000000000aa");
    MutexLock lock(write_mu_);
    stream.Write(command);
  }

  const grpc::Status refusal_;
  int port_ = 0;
  Mutex write_mu_;
  Mutex mu_;
  CondVar changed_;
  std::vector<v1::WorkerReport> reports_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  Stream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace conclave::expert_worker
