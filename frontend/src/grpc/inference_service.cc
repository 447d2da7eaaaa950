#include <google/protobuf/stubs/logging.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/frontend/inference_server.h"
#include "conclave/service/address.h"
#include "conclave/transport/grpc_public.h"
#include "conclave/transport/grpc_support.h"
#include "grpc/call_loop.h"
#include "grpc/chat_call.h"
#include "grpc/grpc_error.h"
#include "http/server_state.h"
#include "inference.grpc.pb.h"

namespace conclave::frontend {
namespace {

// What gRPC may hold of messages that are under way, before anybody has checked them; beyond it,
// connections are refused and calls cancelled. Room for some of the largest in any case.
constexpr int64_t kQuotaBytesMin = int64_t{256} << 20;
constexpr int64_t kQuotaMessages = 8;

// Chat takes its request as bytes: gRPC answers a message that it cannot read with UNIMPLEMENTED,
// and reads it without a bound of what it becomes.
using Base = v1::InferenceService::WithRawCallbackMethod_Chat<
    v1::InferenceService::WithCallbackMethod_GetModel<v1::InferenceService::Service>>;

class Service final : public Base {
 public:
  explicit Service(const CallContext& shared) : shared_(shared) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request) override {
    const std::shared_ptr<ChatCall> call = ChatCall::Start(shared_, *context);
    call->Serve(*request);
    return call.get();
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* /*request*/,
                                     v1::GetModelResponse* response) override {
    const MonotonicTime start = shared_.clock.Now();
    const RunningRequest running(shared_.state);
    NameRequest(*context, shared_.state);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    grpc::Status status;
    if (const std::optional<HttpError> error = NotServing(shared_.state); error.has_value()) {
      status = ToGrpcError(*error, *context);
    } else {
      const ModelCard& card = shared_.state.backend()->model();
      response->set_id(card.id);
      response->set_max_model_len(static_cast<uint32_t>(card.max_model_len));
      response->set_has_vision(card.has_vision);
      response->set_system_fingerprint(card.fingerprint);
    }
    reactor->Finish(status);
    if (shared_.observer) {
      const std::chrono::duration<double> elapsed = shared_.clock.Now() - start;
      shared_.observer("GetModel", NameOf(status.error_code()), elapsed.count());
    }
    return reactor;
  }

 private:
  const CallContext shared_;
};

}  // namespace

struct InferenceServer::Impl {
  Impl(const InferenceServerOptions& server_options, CallObserver call_observer)
      : options(server_options),
        observer(std::move(call_observer)),
        state(StateOptions(server_options), HttpObserver()),
        loop(*options.clock, static_cast<size_t>(options.limits.connections_max),
             [this] { TellHealth(); }),
        service(CallContext{state, loop, *options.clock, observer}) {}

  ~Impl() {
    if (server != nullptr) {
      server->Shutdown(std::chrono::system_clock::now());
      server->Wait();
    }
    loop.Stop();  // it tells the health to the server
  }

  static HttpServerOptions StateOptions(const InferenceServerOptions& options) {
    HttpServerOptions out;
    out.limits = options.limits;
    out.tracer = options.tracer;
    return out;
  }

  absl::Status Listen(const transport::TlsIdentity& tls);
  bool IsReady() const {
    const ChatBackend* backend = state.backend();
    return !state.is_draining() && backend != nullptr && backend->Readiness().ok();
  }
  // The loop's thread, and Listen before there is one.
  void TellHealth();

  const InferenceServerOptions options;
  const CallObserver observer;
  ServerState state;
  CallLoop loop;
  Service service;
  bool was_ready = false;
  std::unique_ptr<grpc::Server> server;
  uint16_t port = 0;
};

absl::Status InferenceServer::Impl::Listen(const transport::TlsIdentity& tls) {
  // Of servers that are made afterwards, hence here; a process has no other that outsiders reach.
  grpc::EnableDefaultHealthCheckService(true);
  // It would write a line of its own form for every text of a client that is no UTF-8, which is
  // answered and counted already.
  google::protobuf::SetLogHandler(nullptr);
  grpc::ServerBuilder builder;
  const int64_t message_bytes =
      std::min<int64_t>(options.limits.body_bytes_max, std::numeric_limits<int>::max());
  transport::SetPublicServerLimits(builder, static_cast<int>(message_bytes));
  grpc::ResourceQuota quota("inference");
  quota.Resize(static_cast<size_t>(std::max(kQuotaBytesMin, kQuotaMessages * message_bytes)));
  builder.SetResourceQuota(quota);
  const std::string address = service::ToString(service::Address{options.host, options.port});
  int bound = 0;
  builder.AddListeningPort(address, transport::ServerCredentialsOf(tls), &bound);
  builder.RegisterService(&service);
  server = builder.BuildAndStart();
  if (server == nullptr || bound == 0) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 "bind " + address + ": the address is in use or not of this machine");
  }
  port = static_cast<uint16_t>(bound);
  grpc::HealthCheckServiceInterface& health = *server->GetHealthCheckService();
  health.SetServingStatus(false);
  health.SetServingStatus(v1::InferenceService::service_full_name(), false);
  loop.Start();
  return absl::OkStatus();
}

void InferenceServer::Impl::TellHealth() {
  if (const bool is_ready = IsReady(); is_ready != was_ready) {
    was_ready = is_ready;
    server->GetHealthCheckService()->SetServingStatus(is_ready);
  }
}

InferenceServer::InferenceServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
InferenceServer::~InferenceServer() = default;

absl::StatusOr<std::unique_ptr<InferenceServer>> InferenceServer::Start(
    const InferenceServerOptions& options, const transport::TlsIdentity& tls,
    CallObserver observer) {
  auto impl = std::make_unique<Impl>(options, std::move(observer));
  CONCLAVE_RETURN_IF_ERROR(impl->Listen(tls));
  return std::unique_ptr<InferenceServer>(new InferenceServer(std::move(impl)));
}

uint16_t InferenceServer::port() const { return impl_->port; }

void InferenceServer::SetBackend(ChatBackend& backend) {
  impl_->state.SetBackend(backend);
  impl_->loop.Wake();
}

void InferenceServer::StartDraining() {
  impl_->state.StartDraining();
  impl_->loop.Wake();
}

bool InferenceServer::Drain(std::chrono::milliseconds timeout) {
  StartDraining();
  return impl_->state.WaitUntilIdle(timeout);
}

}  // namespace conclave::frontend
