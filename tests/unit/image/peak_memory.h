// How far the resident memory of this process rises above its present level while something runs.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace conclave::image {

// Bytes; nullopt where the kernel does not let a process reset its own peak.
std::optional<int64_t> PeakGrowthBytes(const std::function<void()>& run);

}  // namespace conclave::image
