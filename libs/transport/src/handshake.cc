#include "handshake.h"

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "expert.grpc.pb.h"
#include "grpc_envelope.h"
#include "grpc_pair.h"

namespace conclave::transport {
namespace {

// Of a stream that was cancelled; far above what a starved machine needs.
constexpr std::chrono::seconds kEndMax{60};

v1::HelloRequest HelloOf(const PairTerms& terms, const char* name, const std::string& ucx_address) {
  v1::HelloRequest hello;
  hello.set_protocol_major(kProtocolMajor);
  hello.set_protocol_minor(kProtocolMinor);
  hello.set_cluster_id(terms.cluster_id);
  hello.mutable_model()->set_manifest_hash(terms.manifest_hash);
  hello.mutable_model()->set_row_width(terms.row_width);
  hello.mutable_model()->set_top_k(terms.top_k);
  hello.mutable_numeric()->set_dtype(std::string(NameOf(terms.mode)));
  hello.mutable_numeric()->set_isa(terms.isa);
  hello.mutable_numeric()->set_kernel_revision(terms.kernel_revision);
  hello.set_frontend_id(terms.frontend_id);
  hello.set_frontend_incarnation(terms.frontend_incarnation);
  hello.set_pair_key(terms.pair_key);
  hello.set_worker_incarnation(terms.worker_incarnation);
  hello.set_channel(name);
  hello.set_ucx_address(ucx_address);
  hello.set_num_slots(terms.num_slots);
  hello.set_max_rows(terms.max_rows);
  return hello;
}

// What was granted, in the channel's words.
absl::StatusOr<ChannelLimits> LimitsOf(const PairTerms& terms, const v1::HelloResponse& granted) {
  const bool is_within = granted.worker_incarnation() == terms.worker_incarnation &&
                         granted.num_slots() >= 1 && granted.num_slots() <= terms.num_slots &&
                         granted.max_rows() >= 1 && granted.max_rows() <= terms.max_rows &&
                         granted.max_pairs() >= granted.max_rows() &&
                         granted.max_pairs() <= UINT16_MAX;
  if (!is_within) {
    return Error(absl::StatusCode::kInternal, "protocol_violation",
                 "worker: expected at most " + std::to_string(terms.num_slots) + " slots of " +
                     std::to_string(terms.max_rows) + " rows, found a grant of " +
                     std::to_string(granted.num_slots()) + " of " +
                     std::to_string(granted.max_rows()) + " or of another incarnation");
  }
  ChannelLimits limits;
  limits.num_slots = static_cast<uint16_t>(granted.num_slots());
  limits.max_rows = static_cast<uint16_t>(granted.max_rows());
  limits.max_pairs = static_cast<uint16_t>(granted.max_pairs());
  limits.row_width = terms.row_width;
  limits.dtype = WireDtypeOf(terms.mode);
  return limits;
}

FrameLimits FrameLimitsOf(const PairTerms& terms, const ChannelLimits& limits) {
  FrameLimits frames;
  frames.max_rows = limits.max_rows;
  frames.max_pairs = limits.max_pairs;
  frames.row_width = limits.row_width;
  frames.dtype = limits.dtype;
  frames.num_layers = terms.num_layers;
  frames.num_experts_max = terms.num_experts_max;
  frames.top_k = terms.top_k;
  frames.num_models = terms.num_models;
  frames.gate_bound = terms.gate_bound;
  return frames;
}

}  // namespace

absl::StatusOr<Handshake> ShakeHands(const std::string& address, const TlsIdentity& tls,
                                     const PairTerms& terms, const char* name,
                                     const std::string& ucx_address,
                                     std::chrono::milliseconds timeout) {
  CONCLAVE_CHECK(terms.num_slots >= 1 && terms.max_rows >= 1 && terms.row_width >= 1);
  CONCLAVE_CHECK(terms.max_rows <= kMaxRowsPerCall);
  FrameLimits wanted = FrameLimitsOf(
      terms, {.max_rows = terms.max_rows, .max_pairs = UINT16_MAX, .row_width = terms.row_width});
  wanted.dtype = WireDtypeOf(terms.mode);
  const auto message_bytes = static_cast<int>(std::max(
      MaxFrameBytes(wanted) + kEnvelopeBytesMax, ucx_address.empty() ? 0 : kSideHelloBytesMax));
  Handshake hands;
  hands.channel =
      grpc::CreateCustomChannel(address, ChannelCredentialsOf(tls), ClientArguments(message_bytes));

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  v1::HelloResponse granted;
  const grpc::Status answer = v1::ExpertService::NewStub(hands.channel)
                                  ->Hello(&context, HelloOf(terms, name, ucx_address), &granted);
  if (!answer.ok()) {
    const absl::Status status = FromGrpc(answer);
    if (ReasonOf(status).empty()) {
      return Error(absl::StatusCode::kUnavailable, "connect",
                   "worker at " + address + ": expected an answer within " +
                       std::to_string(timeout.count()) + " ms, found none (" +
                       absl::StatusCodeToString(status.code()) + ")");
    }
    return Annotate(status, "worker at " + address);
  }
  if (!tls.empty()) {
    CONCLAVE_RETURN_IF_ERROR(CheckRole(*context.auth_context(), "worker"));
  }
  CONCLAVE_ASSIGN_OR_RETURN(hands.limits, LimitsOf(terms, granted));
  hands.frame_limits = FrameLimitsOf(terms, hands.limits);
  hands.session = granted.session();
  hands.ucx_address = granted.ucx_address();
  return hands;
}

absl::StatusOr<std::unique_ptr<Lifeline>> Lifeline::Open(std::shared_ptr<grpc::Channel> channel,
                                                         uint64_t session, MonotonicTime until,
                                                         std::function<void()> on_lost) {
  std::unique_ptr<Lifeline> line(new Lifeline(std::move(channel), std::move(on_lost)));
  line->context_.AddMetadata(kSessionMetadata, SessionText(session));
  grpc::GenericStub stub(line->channel_);
  stub.PrepareBidiStreamingCall(&line->context_, "/conclave.v1.ExpertService/Exchange", {},
                                line.get());
  {
    MutexLock lock(line->mu_);
    line->is_started_ = true;
  }
  line->StartRead(&line->message_);
  line->StartCall();
  CONCLAVE_RETURN_IF_ERROR(line->WaitForOpen(until));
  return line;
}

absl::Status Lifeline::WaitForOpen(MonotonicTime until) {
  MutexLock lock(mu_);
  while (!is_open_ && !is_done_) {
    const auto left = until - Clock::Real().Now();
    if (left <= std::chrono::nanoseconds::zero()) {
      break;
    }
    changed_.WaitFor(mu_, std::min<std::chrono::nanoseconds>(left, std::chrono::seconds(1)));
  }
  if (is_open_ && !is_over_) {
    return absl::OkStatus();
  }
  on_lost_ = nullptr;
  if (is_done_ && !ReasonOf(end_).empty()) {
    return end_;
  }
  return Error(absl::StatusCode::kUnavailable, "connect",
               "worker: shook hands but did not open the stream in time");
}

Lifeline::~Lifeline() { Close(); }

void Lifeline::Close() {
  {
    MutexLock lock(mu_);
    on_lost_ = nullptr;
    if (!is_started_) {
      return;
    }
  }
  context_.TryCancel();
  // Must be waited for: the last reference to a gRPC channel that is dropped on one of gRPC's
  // threads makes it join itself.
  const MonotonicTime until = Clock::Real().Now() + kEndMax;
  MutexLock lock(mu_);
  while (!is_done_) {
    CONCLAVE_CHECK(Clock::Real().Now() < until);
    changed_.WaitFor(mu_, std::chrono::milliseconds(100));
  }
}

void Lifeline::Lose() {
  // Under the lock, so that the owner's end waits for it.
  MutexLock lock(mu_);
  is_over_ = true;
  if (on_lost_ != nullptr) {
    std::exchange(on_lost_, nullptr)();
  }
}

void Lifeline::OnReadInitialMetadataDone(bool ok) {
  MutexLock lock(mu_);
  is_open_ = ok;
  changed_.NotifyAll();
}

void Lifeline::OnReadDone(bool ok) {
  Lose();
  if (ok) {
    // Nothing is said on this stream: who speaks there is no worker of ours.
    context_.TryCancel();
  }
}

void Lifeline::OnDone(const grpc::Status& status) {
  Lose();
  MutexLock lock(mu_);
  is_done_ = true;
  end_ = FromGrpc(status);
  changed_.NotifyAll();
}

}  // namespace conclave::transport
