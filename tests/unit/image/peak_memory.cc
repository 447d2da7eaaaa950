#include "peak_memory.h"

#include <fstream>
#include <string>

namespace conclave::image {
namespace {

int64_t PeakBytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  int64_t kibibytes = 0;
  while (status >> word) {
    if (word == "VmHWM:") {
      status >> kibibytes;
      break;
    }
  }
  return kibibytes << 10;
}

}  // namespace

std::optional<int64_t> PeakGrowthBytes(const std::function<void()>& run) {
  run();  // code and heap that any run touches are not the input's doing
  {
    std::ofstream reset("/proc/self/clear_refs");
    reset << "5" << std::flush;
    if (!reset) {
      return std::nullopt;
    }
  }
  const int64_t before = PeakBytes();
  run();
  return PeakBytes() - before;
}

}  // namespace conclave::image
