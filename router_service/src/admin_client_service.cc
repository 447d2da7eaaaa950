#include <utility>

#include "cluster.grpc.pb.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/router_service/admin_client.h"
#include "conclave/transport/grpc_support.h"
#include "wire.h"

namespace conclave::router_service {

struct AdminClient::State {
  AdminClientOptions options;
  std::unique_ptr<v1::AdminService::Stub> stub;

  // One call, with the time that it may take.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*,
                                                                               const Request&,
                                                                               Response*),
                                const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + options.timeout);
    Response response;
    const absl::Status status =
        transport::FromGrpc((stub.get()->*method)(&context, request, &response));
    if (status.ok()) {
      return response;
    }
    return Told(status);
  }

  // What a call that failed says to whoever made it.
  absl::Status Told(const absl::Status& status) const {
    const bool is_ours = !ReasonOf(status).empty();
    if (!is_ours && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status))) {
      return Error(absl::StatusCode::kUnavailable, "connect",
                   options.address + ": no router answers there");
    }
    if (!is_ours && absl::IsUnimplemented(status)) {
      return Error(absl::StatusCode::kUnimplemented, "router_version",
                   options.address +
                       ": this router does not know the call; expected one of version " +
                       "0.1.0 or later");
    }
    return is_ours ? status : Error(status.code(), "internal", MessageOf(status));
  }

  // A call whose answers come one by one, until the stream or `take` ends it. `context` has its
  // deadline.
  template <typename Request, typename Response, typename Take>
  absl::Status Stream(grpc::ClientContext& context,
                      std::unique_ptr<grpc::ClientReader<Response>> (
                          v1::AdminService::Stub::*method)(grpc::ClientContext*, const Request&),
                      const Request& request, const Take& take) {
    const auto reader = (stub.get()->*method)(&context, request);
    absl::Status taken;
    for (Response response; taken.ok() && reader->Read(&response);) {
      taken = take(response);
    }
    if (!taken.ok()) {
      context.TryCancel();
      (void)reader->Finish();
      return taken;
    }
    const absl::Status status = transport::FromGrpc(reader->Finish());
    return status.ok() ? status : Told(status);
  }

  Mutex mu;
  bool is_cancelled ABSL_GUARDED_BY(mu) = false;
  grpc::ClientContext* watch ABSL_GUARDED_BY(mu) = nullptr;  // of the WatchLive under way
};

AdminClient::AdminClient(std::unique_ptr<State> state) : state_(std::move(state)) {}
AdminClient::~AdminClient() = default;

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Create(
    const AdminClientOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(
      const transport::TlsIdentity tls,
      transport::ReadTlsFiles(options.tls_certificate, options.tls_key, options.tls_authority));
  auto state = std::make_unique<State>();
  state->options = options;
  state->stub = v1::AdminService::NewStub(
      grpc::CreateCustomChannel(options.address, transport::ChannelCredentialsOf(tls),
                                transport::ClientArguments(transport::kControlMessageBytes)));
  return std::unique_ptr<AdminClient>(new AdminClient(std::move(state)));
}

absl::StatusOr<RouterStatus> AdminClient::Status() {
  CONCLAVE_ASSIGN_OR_RETURN(
      const v1::GetStatusResponse response,
      state_->Call(&v1::AdminService::Stub::GetStatus, v1::GetStatusRequest()));
  return FromWire(response);
}

absl::StatusOr<bool> AdminClient::Drain(const std::string& name) {
  v1::DrainWorkerRequest request;
  request.set_name(name);
  CONCLAVE_ASSIGN_OR_RETURN(const v1::DrainWorkerResponse response,
                            state_->Call(&v1::AdminService::Stub::DrainWorker, request));
  return response.is_drained();
}

absl::Status AdminClient::Undrain(const std::string& name) {
  v1::UndrainWorkerRequest request;
  request.set_name(name);
  return state_->Call(&v1::AdminService::Stub::UndrainWorker, request).status();
}

absl::StatusOr<Epoch> AdminClient::Pin(ExpertUnit unit, const std::string& worker, bool undo) {
  v1::PinExpertRequest request;
  ToWire(unit, *request.mutable_expert());
  request.set_worker(worker);
  request.set_unpin(undo);
  CONCLAVE_ASSIGN_OR_RETURN(const v1::PinExpertResponse response,
                            state_->Call(&v1::AdminService::Stub::PinExpert, request));
  return Epoch(response.epoch());
}

absl::StatusOr<Epoch> AdminClient::Replicate(ExpertUnit unit, int32_t replicas) {
  v1::ReplicateExpertRequest request;
  ToWire(unit, *request.mutable_expert());
  request.set_replicas(replicas);
  CONCLAVE_ASSIGN_OR_RETURN(const v1::ReplicateExpertResponse response,
                            state_->Call(&v1::AdminService::Stub::ReplicateExpert, request));
  return Epoch(response.epoch());
}

absl::StatusOr<RebalancePlan> AdminClient::Rebalance(bool is_dry_run, bool is_full) {
  v1::RebalanceRequest request;
  request.set_dry_run(is_dry_run);
  request.set_full(is_full);
  CONCLAVE_ASSIGN_OR_RETURN(const v1::RebalanceResponse response,
                            state_->Call(&v1::AdminService::Stub::Rebalance, request));
  return FromWire(response);
}

absl::StatusOr<RecordingStatus> AdminClient::StartRecording() {
  CONCLAVE_ASSIGN_OR_RETURN(
      const v1::StartRecordingResponse response,
      state_->Call(&v1::AdminService::Stub::StartRecording, v1::StartRecordingRequest()));
  return FromWire(response.recording());
}

absl::StatusOr<RecordingStatus> AdminClient::StopRecording() {
  CONCLAVE_ASSIGN_OR_RETURN(
      const v1::StopRecordingResponse response,
      state_->Call(&v1::AdminService::Stub::StopRecording, v1::StopRecordingRequest()));
  return FromWire(response.recording());
}

absl::Status AdminClient::GetRecording(
    const std::function<absl::Status(const std::string& piece)>& take) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + state_->options.timeout);
  return state_->Stream(
      context, &v1::AdminService::Stub::GetRecording, v1::GetRecordingRequest(),
      [&](const v1::GetRecordingResponse& response) { return take(response.chunk()); });
}

absl::Status AdminClient::WatchLive(
    const std::function<absl::Status(const std::string& event, const std::string& json)>& take) {
  grpc::ClientContext context;
  {
    MutexLock lock(state_->mu);
    if (state_->is_cancelled) {
      return absl::CancelledError("cancelled");
    }
    state_->watch = &context;
  }
  absl::Status status = state_->Stream(
      context, &v1::AdminService::Stub::WatchLive, v1::WatchLiveRequest(),
      [&](const v1::LiveUpdate& update) { return take(update.event(), update.json()); });
  MutexLock lock(state_->mu);
  state_->watch = nullptr;
  if (state_->is_cancelled) {
    return absl::CancelledError("cancelled");
  }
  return status.ok() ? Error(absl::StatusCode::kUnavailable, "connect",
                             state_->options.address + ": the router ended the stream")
                     : status;
}

void AdminClient::Cancel() {
  MutexLock lock(state_->mu);
  state_->is_cancelled = true;
  if (state_->watch != nullptr) {
    state_->watch->TryCancel();
  }
}

absl::StatusOr<std::vector<ExpertUnit>> AdminClient::AtRiskWithout(const std::string& name) {
  v1::CheckKillSafeRequest request;
  request.set_name(name);
  CONCLAVE_ASSIGN_OR_RETURN(const v1::CheckKillSafeResponse response,
                            state_->Call(&v1::AdminService::Stub::CheckKillSafe, request));
  std::vector<ExpertUnit> at_risk;
  for (const v1::ExpertRef& ref : response.at_risk()) {
    CONCLAVE_ASSIGN_OR_RETURN(at_risk.emplace_back(), FromWire(ref));
  }
  return at_risk;
}

}  // namespace conclave::router_service
