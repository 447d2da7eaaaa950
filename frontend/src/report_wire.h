// A frontend's figures as the router is told of them (proto/cluster.proto, FrontendReport).
#pragma once

#include "conclave/live/figures.h"

namespace conclave::v1 {
class FrontendReport;
}  // namespace conclave::v1

namespace conclave::frontend {

// What changed since `before`, or everything where that is null.
void ToWire(const live::FrontendFigures* before, const live::FrontendFigures& now,
            v1::FrontendReport& report);

}  // namespace conclave::frontend
