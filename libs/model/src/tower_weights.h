// What VisionTower::Load reads, for a packed file.
#pragma once

#include "absl/status/status.h"
#include "conclave/model/weight_source.h"

namespace conclave::model {

// Loads all that VisionTower::Load does from `source`, which records it; nothing is kept.
absl::Status RecordTower(const WeightSource& source, DType mode, ThreadPool& pool);

}  // namespace conclave::model
