// What `conclave cluster` prints: tables for people, JSON with every field for scripts. Pure.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/router_service/router_types.h"

namespace conclave::cli {

std::string StatusText(const router_service::RouterStatus& status);
std::string StatusJson(const router_service::RouterStatus& status);
std::string RebalanceText(const router_service::RebalancePlan& plan, bool is_dry_run);
std::string RebalanceJson(const router_service::RebalancePlan& plan, bool is_dry_run);
std::string RecordingText(const router_service::RecordingStatus& recording);
std::string RecordingJson(const router_service::RecordingStatus& recording);
std::string KillSafeText(const std::string& name,
                         const std::vector<placement::ExpertUnit>& at_risk);
std::string KillSafeJson(const std::string& name,
                         const std::vector<placement::ExpertUnit>& at_risk);

// "1:3": layer and expert. kInvalidArgument ("usage").
absl::StatusOr<placement::ExpertUnit> ParseExpert(const std::string& text);
std::string ToString(placement::ExpertUnit unit);
// "7.12": term and number.
std::string ToString(Epoch epoch);

}  // namespace conclave::cli
