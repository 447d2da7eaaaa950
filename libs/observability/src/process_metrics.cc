// What this process uses, read from /proc at every scrape. A figure that cannot be read is left out
// of the page.
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "conclave/observability/metrics.h"

namespace conclave::observability {
namespace {

using Samples = std::vector<Metrics::Sample>;

Samples One(double value) { return {Metrics::Sample{{}, value}}; }

Samples ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  if (!(statm >> total >> resident)) {
    return {};
  }
  return One(static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
}

Samples CpuSeconds() {
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) {
    return {};
  }
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return One(seconds(usage.ru_utime) + seconds(usage.ru_stime));
}

Samples OpenFiles() {
  std::error_code error;
  const std::filesystem::directory_iterator files("/proc/self/fd", error);
  if (error) {
    return {};
  }
  // Without the folder itself, which is open while it is read.
  return One(static_cast<double>(std::distance(begin(files), end(files))) - 1);
}

Samples OpenFilesMax() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return {};
  }
  return One(static_cast<double>(limit.rlim_cur));
}

}  // namespace

void Metrics::AddProcessMetrics() {
  AddCollector("process_resident_memory_bytes", "Resident memory.", Kind::kGauge, ResidentBytes);
  AddCollector("process_cpu_seconds_total", "User and system CPU time.", Kind::kCounter,
               CpuSeconds);
  AddCollector("process_open_fds", "Open file descriptors.", Kind::kGauge, OpenFiles);
  AddCollector("process_max_fds", "Most file descriptors it may open.", Kind::kGauge, OpenFilesMax);
  const double start = static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                               std::chrono::system_clock::now().time_since_epoch())
                                               .count()) *
                       1e-3;
  AddGauge("process_start_time_seconds", "Start of the process, Unix seconds.").Set(start);
}

}  // namespace conclave::observability
