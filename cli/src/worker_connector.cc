#include "worker_connector.h"

#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/transport/ucx_channel.h"

namespace conclave::cli {
namespace {

constexpr std::chrono::milliseconds kConnectWithin{2'000};

}  // namespace

WorkerConnector::WorkerConnector(transport::ChannelWish wish, bool is_trusted_network,
                                 transport::TlsIdentity tls)
    : wish_(wish), is_trusted_network_(is_trusted_network), tls_(std::move(tls)) {}

absl::Status WorkerConnector::CheckUcx(const frontend::ClusterMember& member) {
  CONCLAVE_RETURN_IF_ERROR(
      transport::UcxReachTo(member.data_address, is_trusted_network_).status());
  MutexLock lock(mu_);
  const MonotonicTime now = Clock::Real().Now();
  // Asked again for the same start of a worker: the link before is lost.
  if (const auto it = ucx_since_.find({member.id, member.incarnation});
      it != ucx_since_.end() && now - it->second < kUcxProvenAfter) {
    return Error(absl::StatusCode::kUnavailable, "ucx_unavailable",
                 "ucx to " + member.name + ": expected a link that lasts, lost it within " +
                     std::to_string(kUcxProvenAfter.count()) + " s");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> WorkerConnector::ConnectGrpc(
    const frontend::ClusterMember& member, const transport::PairTerms& terms,
    transport::Doorbell& bell, const std::string& why) {
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<transport::ExpertChannel> channel,
                            transport::ConnectGrpcChannel(member.data_address, tls_, terms, bell,
                                                          Clock::Real(), kConnectWithin));
  observability::LogInfo("channel chosen",
                         {{"worker", member.name}, {"channel", "grpc"}, {"why", why}});
  return channel;
}

absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> WorkerConnector::Connect(
    const frontend::ClusterMember& member, const transport::PairTerms& terms,
    transport::Doorbell& bell) {
  const absl::Status ucx =
      wish_ == transport::ChannelWish::kGrpc ? absl::OkStatus() : CheckUcx(member);
  CONCLAVE_ASSIGN_OR_RETURN(const transport::ChannelChoice choice,
                            transport::ChooseChannel(wish_, ucx, member.channels));
  if (choice.channel == "grpc") {
    return ConnectGrpc(member, terms, bell, choice.why);
  }
  CONCLAVE_ASSIGN_OR_RETURN(const transport::UcxReach reach,
                            transport::UcxReachTo(member.data_address, is_trusted_network_));
  absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> channel = transport::ConnectUcxChannel(
      member.data_address, tls_, terms, reach, bell, Clock::Real(), kConnectWithin);
  if (channel.ok()) {
    observability::LogInfo("channel chosen",
                           {{"worker", member.name}, {"channel", "ucx"}, {"why", choice.why}});
    MutexLock lock(mu_);
    std::erase_if(ucx_since_, [&member](const auto& entry) {
      return entry.first.first == member.id && entry.first.second != member.incarnation;
    });
    ucx_since_[{member.id, member.incarnation}] = Clock::Real().Now();
    return channel;
  }
  // What the worker says of itself it would say on any channel.
  const bool may_fall_back =
      wish_ == transport::ChannelWish::kAuto && ReasonOf(channel.status()) == "ucx_unavailable" &&
      transport::ChooseChannel(wish_, channel.status(), member.channels).ok();
  if (!may_fall_back) {
    return channel;
  }
  return ConnectGrpc(member, terms, bell, MessageOf(channel.status()));
}

}  // namespace conclave::cli
