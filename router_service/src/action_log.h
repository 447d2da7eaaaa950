// The core's log lines as those of this process.
#pragma once

#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

// Values come from peers: they are made printable.
void WriteLog(const LogAction& action);

}  // namespace conclave::router_service
