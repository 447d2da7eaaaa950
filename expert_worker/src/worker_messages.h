// Between the messages of cluster.proto and the plain structs of the state machine. The messages
// are only named here: whoever calls these includes their headers, which *_service.cc may.
#pragma once

#include "absl/status/statusor.h"
#include "conclave/expert_worker/worker_control.h"
#include "router_link.h"

namespace conclave::v1 {
class RegisterWorker;
class WorkerCommand;
class WorkerReport;
}  // namespace conclave::v1

namespace conclave::expert_worker {

// kInternal ("protocol_violation") for a message that holds no command, a negative layer or expert,
// or a hash that is none.
absl::StatusOr<RouterCommand> FromCommand(const v1::WorkerCommand& message);

v1::WorkerReport ToReport(const RouterReport& report);

// The part of a registration that changes from one to the next.
void AddFacts(const RegistrationFacts& facts, v1::RegisterWorker* out);

}  // namespace conclave::expert_worker
