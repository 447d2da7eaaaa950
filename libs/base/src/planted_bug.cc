#include "conclave/base/planted_bug.h"

#include <atomic>

namespace conclave {
namespace {

// Read on hot paths of test builds, so that it costs one load while nothing is planted.
std::atomic<bool> is_any_planted{false};
std::string_view planted;

}  // namespace

void PlantBug(std::string_view name) {
  planted = name;
  is_any_planted.store(!name.empty(), std::memory_order_release);
}

bool IsPlantedBug(std::string_view name) {
  return is_any_planted.load(std::memory_order_acquire) && planted == name;
}

}  // namespace conclave
