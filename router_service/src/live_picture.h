// What the router tells the live picture (docs/live.md).
#pragma once

#include "absl/status/status.h"
#include "conclave/live/board.h"
#include "conclave/live/figures.h"
#include "conclave/router_service/router_types.h"

namespace conclave::v1 {
class FrontendReport;
}  // namespace conclave::v1

namespace conclave::router_service {

live::ClusterPicture ToPicture(const RouterStatus& status);

// Takes a report into what the same stream has reported before. kInvalidArgument ("message_field")
// with the field's name in front; `figures` is then as it was.
absl::Status ApplyReport(const v1::FrontendReport& report, live::FrontendFigures& figures);

}  // namespace conclave::router_service
