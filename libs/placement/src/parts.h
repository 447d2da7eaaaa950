// Small parts that the room's files share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "conclave/placement/placement.h"

namespace conclave::placement {

inline size_t Index(int32_t i) { return static_cast<size_t>(i); }

// As messages name it: "layer 3 expert 1".
inline std::string Describe(ExpertUnit unit) {
  return "layer " + std::to_string(unit.layer.value()) + " expert " +
         std::to_string(unit.expert.value());
}

}  // namespace conclave::placement
