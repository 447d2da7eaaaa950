#include "conclave/service/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>

namespace conclave::service {
namespace {

// Empty when the file is not there. These files are small by nature; the bound is for a strange
// `root`.
std::string ReadSmall(const std::string& path) {
  constexpr size_t kBytesMax = size_t{4} << 20;
  constexpr size_t kChunk = size_t{16} << 10;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  while (file && text.size() < kBytesMax) {
    const size_t before = text.size();
    text.resize(before + kChunk);
    file.read(text.data() + before, kChunk);
    text.resize(before + static_cast<size_t>(file.gcount()));
  }
  return text;
}

std::string_view Trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\n");
  return first == std::string_view::npos
             ? std::string_view()
             : text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

std::optional<int64_t> ToInt(std::string_view text) {
  text = Trim(text);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value)
                                                                  : std::nullopt;
}

std::optional<int64_t> ReadInt(const std::string& path) { return ToInt(ReadSmall(path)); }

void ReadCpuInfo(const std::string& root, Machine& machine) {
  std::istringstream lines(ReadSmall(root + "/proc/cpuinfo"));
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) {
      continue;
    }
    const std::string_view key = Trim(std::string_view(line).substr(0, colon));
    const std::string_view value = Trim(std::string_view(line).substr(colon + 1));
    if (key == "model name" && machine.cpu_model.empty()) {
      machine.cpu_model = std::string(value);
    }
    if (key == "flags" && machine.cpu_flags.empty()) {
      std::istringstream words{std::string(value)};
      for (std::string word; words >> word;) {
        machine.cpu_flags.push_back(word);
      }
      std::sort(machine.cpu_flags.begin(), machine.cpu_flags.end());
    }
  }
}

// Package and core of a logical CPU; without topology each counts as a core.
std::string CoreOf(const std::string& root, int cpu) {
  const std::string name = "cpu" + std::to_string(cpu);
  const std::string folder = root + "/sys/devices/system/cpu/" + name + "/topology/";
  const std::string core = ReadSmall(folder + "core_id");
  return core.empty() ? name : ReadSmall(folder + "physical_package_id") + "/" + core;
}

// In the order of their first logical CPUs.
std::vector<std::vector<int>> CoresOf(const std::string& root, const std::vector<int>& cpus) {
  std::map<std::string, size_t> index;
  std::vector<std::vector<int>> cores;
  for (const int cpu : cpus) {
    const auto [found, is_new] = index.emplace(CoreOf(root, cpu), cores.size());
    if (is_new) {
      cores.emplace_back();
    }
    cores[found->second].push_back(cpu);
  }
  return cores;
}

int64_t MemInfo(const std::string& text, std::string_view key) {
  const size_t at = text.find(std::string(key) + ":");
  if (at == std::string::npos) {
    return 0;
  }
  const size_t start = at + key.size() + 1;
  const size_t end = text.find("kB", start);
  return end == std::string::npos
             ? 0
             : ToInt(std::string_view(text).substr(start, end - start)).value_or(0) * 1024;
}

// The folders of this process's cgroup and of its ancestors, the root included: a limit binds at
// any level. v1 has one tree per controller, v2 one for all (`controller` empty).
std::vector<std::string> CgroupFolders(const std::string& root, std::string_view controller) {
  std::istringstream lines(ReadSmall(root + "/proc/self/cgroup"));
  const std::string base =
      root + "/sys/fs/cgroup" + (controller.empty() ? "" : "/" + std::string(controller));
  std::vector<std::string> folders = {base};
  for (std::string line; std::getline(lines, line);) {
    // "0::/a/b" or "4:cpu,cpuacct:/a/b".
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_ours = controller.empty()
                             ? names == ",,"
                             : names.find("," + std::string(controller) + ",") != std::string::npos;
    if (!is_ours) {
      continue;
    }
    std::string path = line.substr(second + 1);
    while (path.size() > 1) {
      folders.push_back(base + path);
      path.resize(path.rfind('/'));
    }
  }
  return folders;
}

void KeepLess(std::optional<double>& least, double value) {
  least = least.has_value() ? std::min(*least, value) : value;
}

std::optional<double> CpuQuota(const std::string& root) {
  std::optional<double> quota;
  for (const std::string& folder : CgroupFolders(root, "")) {
    std::istringstream words(ReadSmall(folder + "/cpu.max"));
    std::string max;
    double period = 0;
    if (words >> max >> period && max != "max" && period > 0) {
      if (const auto granted = ToInt(max); granted.has_value() && *granted > 0) {
        KeepLess(quota, static_cast<double>(*granted) / period);
      }
    }
  }
  for (const std::string& folder : CgroupFolders(root, "cpu")) {
    const auto granted = ReadInt(folder + "/cpu.cfs_quota_us");
    const auto period = ReadInt(folder + "/cpu.cfs_period_us");
    if (granted.value_or(-1) > 0 && period.value_or(0) > 0) {
      KeepLess(quota, static_cast<double>(*granted) / static_cast<double>(*period));
    }
  }
  return quota;
}

// Of one cgroup: its limit and what it uses.
void ReadMemoryLimit(const std::string& folder, const char* limit_file, const char* usage_file,
                     Machine& machine) {
  const auto limit = ReadInt(folder + "/" + limit_file);
  // v1 says "no limit" by a huge number.
  if (!limit.has_value() || *limit <= 0 || *limit >= machine.memory_bytes) {
    return;
  }
  const int64_t used = ReadInt(folder + "/" + usage_file).value_or(0);
  machine.memory_limit_bytes = std::min(machine.memory_limit_bytes.value_or(*limit), *limit);
  machine.memory_available_bytes =
      std::min(machine.memory_available_bytes, std::max<int64_t>(0, *limit - used));
}

int CountNumaNodes(const std::string& root) {
  int count = 0;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(root + "/sys/devices/system/node", error)) {
    const std::string name = entry.path().filename().string();
    count += name.starts_with("node") && ToInt(name.substr(4)).has_value() ? 1 : 0;
  }
  return std::max(1, count);
}

}  // namespace

bool Machine::HasFlag(const std::string& flag) const {
  return std::binary_search(cpu_flags.begin(), cpu_flags.end(), flag);
}

Machine ReadMachine(const std::string& root, const std::vector<int>& cpus) {
  Machine machine;
  ReadCpuInfo(root, machine);
  machine.num_cpus = std::max(1, static_cast<int>(cpus.size()));
  machine.cores = CoresOf(root, cpus);
  machine.num_cores = std::max(1, static_cast<int>(machine.cores.size()));
  machine.cpu_quota = CpuQuota(root);
  const std::string memory = ReadSmall(root + "/proc/meminfo");
  machine.memory_bytes = MemInfo(memory, "MemTotal");
  machine.memory_available_bytes = MemInfo(memory, "MemAvailable");
  for (const std::string& folder : CgroupFolders(root, "")) {
    ReadMemoryLimit(folder, "memory.max", "memory.current", machine);
  }
  for (const std::string& folder : CgroupFolders(root, "memory")) {
    ReadMemoryLimit(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", machine);
  }
  const std::string thp = ReadSmall(root + "/sys/kernel/mm/transparent_hugepage/enabled");
  const size_t open = thp.find('[');
  const size_t close = thp.find(']');
  if (open != std::string::npos && close != std::string::npos && close > open) {
    machine.huge_pages = thp.substr(open + 1, close - open - 1);
  }
  machine.num_numa_nodes = CountNumaNodes(root);
  return machine;
}

Machine ReadMachine() {
  std::vector<int> cpus;
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) {
        cpus.push_back(cpu);
      }
    }
  } else {
    // More CPUs than the fixed set holds.
    for (unsigned cpu = 0; cpu < std::max(1U, std::thread::hardware_concurrency()); ++cpu) {
      cpus.push_back(static_cast<int>(cpu));
    }
  }
  return ReadMachine("", cpus);
}

int DefaultThreads(const Machine& machine) {
  int threads = machine.num_cores;
  if (machine.cpu_quota.has_value()) {
    threads = std::min(threads, static_cast<int>(std::floor(*machine.cpu_quota)));
  }
  return std::max(1, threads);
}

std::vector<std::vector<int>> PinnedCores(const Machine& machine, int threads) {
  return static_cast<size_t>(std::max(threads, 0)) == machine.cores.size()
             ? machine.cores
             : std::vector<std::vector<int>>();
}

}  // namespace conclave::service
