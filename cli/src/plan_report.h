// What `conclave plan` prints: tables for people, JSON with every field for scripts. Pure.
#pragma once

#include <string>

#include "conclave/router_service/what_if.h"

namespace conclave::cli {

std::string PlanText(const router_service::WhatIfReport& report);
std::string PlanJson(const router_service::WhatIfReport& report);

}  // namespace conclave::cli
