// What comes in, checked.
#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "cluster.pb.h"
#include "conclave/base/status.h"
#include "conclave/service/address.h"
#include "wire.h"

namespace conclave::router_service {
namespace {

constexpr int kUnitsMax = 1 << 17;  // a message of 4 MiB holds no more
constexpr int kLayersMax = 4096;
constexpr int kExpertsMax = 65'536;  // ids are 16 bits in frames
constexpr int kChannelsMax = 8;
constexpr size_t kTextMax = 256;
constexpr int64_t kBytesMax = int64_t{1} << 50;
// No machine computes so many rows in a window; beyond, averages would lose all else.
constexpr uint64_t kRowsMax = uint64_t{1} << 40;

absl::Status Bad(const std::string& field, const std::string& expected) {
  return WithParam(InvalidArgument("message_field", field + ": expected " + expected), field);
}

bool IsHex(const std::string& text, size_t size_min, size_t size_max) {
  return text.size() >= size_min && text.size() <= size_max &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Words such as "bf16" and "avx512-bf16".
bool IsWord(const std::string& text) {
  return !text.empty() && text.size() <= 32 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
}

bool IsPlain(const std::string& text) {
  return text.size() <= kTextMax &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

absl::Status CheckAddress(const std::string& field, const std::string& text) {
  const auto address = service::ParseAddress(text);
  if (!address.ok() || address->port == 0 || address->host == "0.0.0.0" || address->host == "::" ||
      address->host.empty()) {
    return WithParam(InvalidArgument("placement_worker",
                                     field + ": expected HOST:PORT that others can connect to, "
                                             "with a port of 1 to 65535"),
                     field);
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const v1::ModelIdentity& in, ModelIdentity& out) {
  if (!IsHex(in.manifest_hash(), 8, 128)) {
    return Bad("model.manifest_hash", "8 to 128 lower-case hex digits");
  }
  if (in.row_width() < 1 || in.row_width() > (1 << 20)) {
    return Bad("model.row_width", "1 to 1048576");
  }
  if (in.top_k() < 1 || in.top_k() > 1024) {
    return Bad("model.top_k", "1 to 1024");
  }
  out = {in.manifest_hash(), in.row_width(), in.top_k()};
  return absl::OkStatus();
}

absl::Status ReadNumeric(const v1::NumericMode& in, NumericMode& out) {
  if (!IsWord(in.dtype())) {
    return Bad("numeric.dtype", "a word such as bf16");
  }
  if (!IsWord(in.isa())) {
    return Bad("numeric.isa", "a word such as avx2");
  }
  out = {in.dtype(), in.isa(), in.kernel_revision()};
  return absl::OkStatus();
}

absl::Status ReadRouter(const v1::RouterIdentity& in, RouterIdentity& out) {
  if (!in.router_id().empty() && !IsHex(in.router_id(), 16, 16)) {
    return Bad("last_router.router_id", "16 lower-case hex digits");
  }
  out = {in.term(), in.router_id()};
  return absl::OkStatus();
}

absl::Status ReadHeld(const google::protobuf::RepeatedPtrField<v1::HeldExpert>& in,
                      const std::string& field, std::vector<HeldExpert>& out) {
  if (in.size() > kUnitsMax) {
    return Bad(field, "at most " + std::to_string(kUnitsMax) + " experts");
  }
  std::set<ExpertUnit> seen;
  for (const v1::HeldExpert& item : in) {
    HeldExpert& held = out.emplace_back();
    absl::StatusOr<ExpertUnit> unit = FromWire(item.expert());
    if (!unit.ok()) {
      return Annotate(unit.status(), field);
    }
    held.unit = *unit;
    if (!seen.insert(held.unit).second) {
      return Bad(field, "every expert once");
    }
    if (item.weight_hash().size() != held.weight_hash.size()) {
      return Bad(field + ".weight_hash", "32 bytes");
    }
    std::copy(item.weight_hash().begin(), item.weight_hash().end(), held.weight_hash.begin());
    held.canary_checksum = item.canary_checksum();
  }
  return absl::OkStatus();
}

absl::Status ReadUnits(const google::protobuf::RepeatedPtrField<v1::ExpertRef>& in,
                       const std::string& field, std::vector<ExpertUnit>& out) {
  if (in.size() > kUnitsMax) {
    return Bad(field, "at most " + std::to_string(kUnitsMax) + " experts");
  }
  for (const v1::ExpertRef& item : in) {
    absl::StatusOr<ExpertUnit> unit = FromWire(item);
    if (!unit.ok()) {
      return Annotate(unit.status(), field);
    }
    out.push_back(*unit);
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(const google::protobuf::RepeatedPtrField<v1::MoeLayer>& in,
                        std::vector<MoeLayer>& out) {
  if (in.size() > kLayersMax) {
    return Bad("register.moe_layers", "at most " + std::to_string(kLayersMax) + " layers");
  }
  int64_t num_units = 0;
  for (const v1::MoeLayer& item : in) {
    const bool is_ascending = out.empty() || item.layer() > out.back().layer.value();
    if (item.layer() < 0 || !is_ascending || item.num_experts() < 1 ||
        item.num_experts() > kExpertsMax) {
      return Bad("register.moe_layers", "ascending layers of 1 to 65536 experts");
    }
    num_units += item.num_experts();
    out.push_back({LayerId(item.layer()), item.num_experts()});
  }
  if (num_units > kUnitsMax) {
    return Bad("register.moe_layers", "at most " + std::to_string(kUnitsMax) + " experts");
  }
  return absl::OkStatus();
}

absl::Status CheckMemberFields(const std::string& name, const std::string& cluster_id,
                               uint64_t incarnation) {
  if (!IsName(name)) {
    return Bad("register.name", "1 to 64 letters, digits or ._-");
  }
  if (!cluster_id.empty() && !IsName(cluster_id)) {
    return Bad("register.cluster_id", "1 to 64 letters, digits or ._-, or nothing");
  }
  if (incarnation == 0) {
    return Bad("register.incarnation", "nanoseconds of the process's start, found 0");
  }
  return absl::OkStatus();
}

absl::StatusOr<Event> ReadWorker(const v1::RegisterWorker& in, SessionId session, uint64_t key) {
  WorkerRegisterEvent event;
  event.session = session;
  event.fresh_key = key;
  WorkerRegistration& r = event.registration;
  CONCLAVE_RETURN_IF_ERROR(CheckMemberFields(in.name(), in.cluster_id(), in.incarnation()));
  CONCLAVE_RETURN_IF_ERROR(CheckAddress("register.data_address", in.data_address()));
  CONCLAVE_RETURN_IF_ERROR(ReadModel(in.model(), r.model));
  CONCLAVE_RETURN_IF_ERROR(ReadNumeric(in.numeric(), r.numeric));
  CONCLAVE_RETURN_IF_ERROR(ReadRouter(in.last_router(), r.last_router));
  CONCLAVE_RETURN_IF_ERROR(ReadHeld(in.held(), "register.held", r.held));
  CONCLAVE_RETURN_IF_ERROR(ReadLayers(in.moe_layers(), r.moe_layers));
  if (!IsPlain(in.host_id())) {
    return Bad("register.host_id", "at most 256 printable characters without spaces");
  }
  if (in.channels_size() < 1 || in.channels_size() > kChannelsMax ||
      !std::all_of(in.channels().begin(), in.channels().end(), IsWord)) {
    return Bad("register.channels", "1 to 8 words such as grpc");
  }
  if (in.memory_bytes() < 0 || in.memory_bytes() > kBytesMax) {
    return Bad("register.memory_bytes", "0 to 2^50");
  }
  if (in.expert_bytes() < 1 || in.expert_bytes() > kBytesMax) {
    return Bad("register.expert_bytes", "1 to 2^50");
  }
  if (!std::isfinite(in.speed()) || in.speed() < 1e-6 || in.speed() > 1e9) {
    return Bad("register.speed", "0.000001 to 1000000000");
  }
  r.protocol_major = in.protocol_major();
  r.cluster_id = in.cluster_id();
  r.name = in.name();
  r.incarnation = in.incarnation();
  r.data_address = in.data_address();
  r.host_id = in.host_id();
  r.channels.assign(in.channels().begin(), in.channels().end());
  r.memory_bytes = in.memory_bytes();
  r.speed = in.speed();
  r.expert_bytes = in.expert_bytes();
  r.last_epoch = Epoch(in.last_epoch());
  r.is_draining = in.is_draining();
  return Event(std::move(event));
}

absl::StatusOr<Event> ReadHeartbeat(const v1::Heartbeat& in, SessionId session) {
  if (!std::isfinite(in.busy_ratio()) || in.busy_ratio() < 0 || in.busy_ratio() > 1.001) {
    return Bad("heartbeat.busy_ratio", "0 to 1");
  }
  HeartbeatEvent event;
  event.session = session;
  event.seq = in.seq();
  event.oldest_call_age_us = in.oldest_call_age_us();
  event.queued_rows = in.queued_rows();
  event.busy_ratio = std::min(1.0, in.busy_ratio());
  event.tick_lateness_us = in.tick_lateness_us();
  event.is_canary_ok = in.is_canary_ok();
  event.epoch = Epoch(in.epoch());
  return Event(event);
}

absl::StatusOr<Event> ReadLoad(const v1::LoadReport& in, SessionId session) {
  LoadEvent event;
  event.session = session;
  event.seq = in.seq();
  if (in.experts_size() > kUnitsMax) {
    return Bad("load.experts", "at most " + std::to_string(kUnitsMax) + " experts");
  }
  if (!std::isfinite(in.us_per_row()) || in.us_per_row() < 0) {
    return Bad("load.us_per_row", "a finite number of at least 0");
  }
  for (const v1::ExpertRows& item : in.experts()) {
    ExpertRows& rows = event.experts.emplace_back();
    CONCLAVE_ASSIGN_OR_RETURN(rows.unit, FromWire(item.expert()));
    rows.rows = {item.decode_text(), item.decode_image(), item.prefill_text(),
                 item.prefill_image()};
    for (const uint64_t count : rows.rows) {
      if (count > kRowsMax) {
        return Bad("load.experts", "at most 2^40 rows");
      }
    }
  }
  return Event(std::move(event));
}

absl::StatusOr<Event> ReadPrepareResult(const v1::PrepareResult& in, SessionId session) {
  PrepareResultEvent event;
  event.session = session;
  event.plan_id = in.plan_id();
  CONCLAVE_RETURN_IF_ERROR(ReadHeld(in.ready(), "prepare_result.ready", event.ready));
  CONCLAVE_RETURN_IF_ERROR(ReadUnits(in.failed(), "prepare_result.failed", event.failed));
  event.error = in.error().substr(0, kTextMax);
  return Event(std::move(event));
}

absl::StatusOr<Event> ReadFrontend(const v1::RegisterFrontend& in, SessionId session) {
  FrontendRegisterEvent event;
  event.session = session;
  FrontendRegistration& r = event.registration;
  CONCLAVE_RETURN_IF_ERROR(CheckMemberFields(in.name(), in.cluster_id(), in.incarnation()));
  CONCLAVE_RETURN_IF_ERROR(ReadModel(in.model(), r.model));
  CONCLAVE_RETURN_IF_ERROR(ReadNumeric(in.numeric(), r.numeric));
  CONCLAVE_RETURN_IF_ERROR(ReadRouter(in.last_router(), r.last_router));
  r.protocol_major = in.protocol_major();
  r.cluster_id = in.cluster_id();
  r.name = in.name();
  r.incarnation = in.incarnation();
  r.last_epoch = Epoch(in.last_epoch());
  if (!in.api_address().empty()) {
    CONCLAVE_RETURN_IF_ERROR(CheckAddress("register.api_address", in.api_address()));
    r.api_address = in.api_address();
  }
  return Event(std::move(event));
}

absl::StatusOr<Event> ReadPeerReport(const v1::PeerReport& in, SessionId session) {
  PeerReportEvent event;
  event.session = session;
  event.worker = WorkerId(in.worker_id());
  event.worker_incarnation = in.worker_incarnation();
  switch (in.kind()) {
    case v1::PeerReport::KIND_LINK_LOST:
      event.kind = PeerReportKind::kLinkLost;
      break;
    case v1::PeerReport::KIND_TIMEOUT:
      event.kind = PeerReportKind::kTimeout;
      break;
    case v1::PeerReport::KIND_SLOW:
      event.kind = PeerReportKind::kSlow;
      break;
    case v1::PeerReport::KIND_BAD_REPLY:
      event.kind = PeerReportKind::kBadReply;
      break;
    case v1::PeerReport::KIND_RECOVERED:
      event.kind = PeerReportKind::kRecovered;
      break;
    default:
      return Bad("peer_report.kind", "a kind");
  }
  return Event(event);
}

}  // namespace

bool IsName(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

absl::StatusOr<ExpertUnit> FromWire(const v1::ExpertRef& ref) {
  if (ref.layer() < 0 || ref.layer() >= (1 << 16) || ref.expert() < 0 ||
      ref.expert() >= kExpertsMax) {
    return Bad("expert", "a layer and an expert of 0 to 65535");
  }
  return ExpertUnit{LayerId(ref.layer()), ExpertId(ref.expert())};
}

absl::StatusOr<Event> FromWire(const v1::WorkerReport& report, SessionId session,
                               uint64_t fresh_key) {
  switch (report.report_case()) {
    case v1::WorkerReport::kRegister:
      return ReadWorker(report.register_(), session, fresh_key);
    case v1::WorkerReport::kHeartbeat:
      return ReadHeartbeat(report.heartbeat(), session);
    case v1::WorkerReport::kLoad:
      return ReadLoad(report.load(), session);
    case v1::WorkerReport::kPrepareResult:
      return ReadPrepareResult(report.prepare_result(), session);
    case v1::WorkerReport::kRetireResult:
      return Event(RetireResultEvent{session, report.retire_result().plan_id()});
    case v1::WorkerReport::kDrainWish:
      return Event(DrainWishEvent{session});
    case v1::WorkerReport::kExpertsLost: {
      ExpertsLostEvent event;
      event.session = session;
      CONCLAVE_RETURN_IF_ERROR(
          ReadUnits(report.experts_lost().experts(), "experts_lost.experts", event.experts));
      event.why = report.experts_lost().why().substr(0, kTextMax);
      return Event(std::move(event));
    }
    case v1::WorkerReport::REPORT_NOT_SET:
      break;
  }
  return Bad("report", "one of its contents, found none that this router knows");
}

absl::StatusOr<Event> FromWire(const v1::WatchRequest& request, SessionId session) {
  switch (request.request_case()) {
    case v1::WatchRequest::kRegister:
      return ReadFrontend(request.register_(), session);
    case v1::WatchRequest::kAck:
      return Event(EpochAckEvent{session, Epoch(request.ack().epoch())});
    case v1::WatchRequest::kPeerReport:
      return ReadPeerReport(request.peer_report(), session);
    case v1::WatchRequest::kResync:
      return Event(ResyncEvent{session});
    case v1::WatchRequest::kReport:  // no event of the core: see live_picture.h
    case v1::WatchRequest::REQUEST_NOT_SET:
      break;
  }
  return Bad("request", "one of its contents, found none that this router knows");
}

}  // namespace conclave::router_service
