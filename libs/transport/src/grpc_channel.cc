#include "conclave/transport/grpc_channel.h"

#include <string>
#include <utility>

#include "conclave/base/status.h"
#include "grpc_link.h"
#include "handshake.h"

namespace conclave::transport {
namespace {

class GrpcChannel final : public ExpertChannel {
 public:
  explicit GrpcChannel(std::unique_ptr<Link> link) : link_(std::move(link)) {}
  ~GrpcChannel() override { link_->Close(); }

  const ChannelLimits& limits() const override { return link_->limits(); }
  CallSlot* Acquire() override { return link_->Acquire(); }
  absl::Status Dispatch(CallSlot* slot) override { return link_->Dispatch(slot); }
  std::optional<absl::Status> Poll(CallSlot* slot) override { return link_->Poll(slot); }
  absl::Status Await(CallSlot* slot) override { return link_->Await(slot); }
  absl::Status LinkStatus() const override { return link_->LinkStatus(); }
  void Cancel(CallSlot* slot) override { link_->Cancel(slot); }
  void Release(CallSlot* slot) override { link_->Release(slot); }
  void Ping() override { link_->Ping(); }
  LinkSigns CheckOn() override {
    link_->Ping();
    return {link_->LinkStatus(), link_->last_heard()};
  }
  MonotonicTime last_heard() const override { return link_->last_heard(); }
  std::chrono::nanoseconds ping_round_trip() const override { return link_->ping_round_trip(); }
  LinkCounters counters() const override { return link_->counters(); }
  const char* name() const override { return "grpc"; }

 private:
  const std::unique_ptr<Link> link_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectGrpcChannel(
    const std::string& address, const TlsIdentity& tls, const PairTerms& terms, Doorbell& bell,
    const Clock& clock, std::chrono::milliseconds timeout) {
  const MonotonicTime until = clock.Now() + timeout;
  CONCLAVE_ASSIGN_OR_RETURN(Handshake hands,
                            ShakeHands(address, tls, terms, "grpc", std::string(), timeout));
  auto link = std::make_unique<Link>(std::move(hands.channel), hands.limits, hands.frame_limits,
                                     terms, bell, clock);
  CONCLAVE_RETURN_IF_ERROR(Annotate(link->Open(hands.session, until), "worker at " + address));
  return std::make_unique<GrpcChannel>(std::move(link));
}

}  // namespace conclave::transport
