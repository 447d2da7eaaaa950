// What this machine offers to this process: cores it may use, its memory, its limits. Read from
// /proc and /sys, where a container's limits are seen too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace conclave::service {

struct Machine {
  std::string cpu_model;
  std::vector<std::string> cpu_flags;   // as the kernel names them, sorted
  int num_cpus = 1;                     // logical ones in the affinity mask
  int num_cores = 1;                    // physical ones among them
  std::vector<std::vector<int>> cores;  // [num_cores]: the logical CPUs of each, by number
  std::optional<double> cpu_quota;      // CPUs granted by the cgroup; nullopt: no limit
  int64_t memory_bytes = 0;             // installed
  int64_t memory_available_bytes =
      0;  // what can be taken without swapping, the cgroup's limit included
  std::optional<int64_t> memory_limit_bytes;  // of the cgroup; nullopt: none
  std::string huge_pages;                     // "always", "madvise", "never"; empty: unknown
  int num_numa_nodes = 1;

  bool HasFlag(const std::string& flag) const;
};

// `root` stands before /proc and /sys, for tests; `cpus` are the logical CPUs of the affinity mask.
Machine ReadMachine(const std::string& root, const std::vector<int>& cpus);

// Of this process.
Machine ReadMachine();

// Compute threads: one per physical core that the process may use, not more than the cgroup's quota
// gives (a thread beyond it is stopped by the kernel in the middle of a step). At least 1.
int DefaultThreads(const Machine& machine);

// To what ThreadPool may bind `threads` threads: the cores, when there are as many of them, else
// none. Fewer threads than cores are left to the system, which moves them away from other load,
// and so are more.
std::vector<std::vector<int>> PinnedCores(const Machine& machine, int threads);

}  // namespace conclave::service
