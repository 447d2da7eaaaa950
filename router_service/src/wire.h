// Between messages of proto/cluster.proto and the core's values. Everything that comes in is
// checked here: a message that passes has fields in range, units without twins, and exactly one
// content. Errors are kInvalidArgument ("message_field") with the field's name in front.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "conclave/router_service/router_core.h"
#include "conclave/router_service/router_types.h"

namespace conclave::v1 {
class ExpertRef;
class GetStatusResponse;
class PlacementUpdate;
class RebalanceResponse;
class RecordingStatus;
class WatchRequest;
class WorkerCommand;
class WorkerReport;
}  // namespace conclave::v1

namespace conclave::router_service {

absl::StatusOr<Event> FromWire(const v1::WorkerReport& report, SessionId session,
                               uint64_t fresh_key);
absl::StatusOr<Event> FromWire(const v1::WatchRequest& request, SessionId session);
absl::StatusOr<ExpertUnit> FromWire(const v1::ExpertRef& ref);

void ToWire(const RouterIdentity& router, v1::WorkerCommand& command);
void ToWire(const SendRegistered& action, const CoreOptions& options, v1::WorkerCommand& command);
void ToWire(const SendPrepare& action, v1::WorkerCommand& command);
void ToWire(const SendRetire& action, v1::WorkerCommand& command);
void ToWire(const SendDrainState& action, v1::WorkerCommand& command);
void ToWire(const SendHeartbeatAck& action, v1::WorkerCommand& command);
// What turns `from` into `to`, or all of `to` when null. Keys of pairs for a frontend's id; none
// without one.
void ToWire(const PlacementView* from, const PlacementView& to, std::optional<uint32_t> frontend_id,
            v1::PlacementUpdate& update);

void ToWire(const RouterStatus& status, v1::GetStatusResponse& response);
RouterStatus FromWire(const v1::GetStatusResponse& response);
void ToWire(const RecordingStatus& recording, v1::RecordingStatus& out);
RecordingStatus FromWire(const v1::RecordingStatus& in);
void ToWire(const RebalancePlan& plan, v1::RebalanceResponse& response);
RebalancePlan FromWire(const v1::RebalanceResponse& response);
void ToWire(ExpertUnit unit, v1::ExpertRef& ref);

// Letters, digits and "._-", 1 to 64 of them.
bool IsName(const std::string& text);

}  // namespace conclave::router_service
