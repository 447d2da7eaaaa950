// Goal: cores, quota and memory are what a container sees, with cgroup v1 and v2 and without.
// Method: folders that look like /proc and /sys.
#include "conclave/service/machine.h"

#include <gtest/gtest.h>

#include "conclave/testing/temp_folder.h"

namespace conclave::service {
namespace {

class MachineTest : public ::testing::Test {
 protected:
  MachineTest() {
    temp_.Write("proc/meminfo",
                "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n");
    temp_.Write(
        "proc/cpuinfo",
        "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor : 1\n");
  }
  // Two threads per core.
  void WriteTopology(int num_cpus) {
    for (int cpu = 0; cpu < num_cpus; ++cpu) {
      const std::string folder = "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      temp_.Write(folder + "core_id", std::to_string(cpu / 2) + "\n");
      temp_.Write(folder + "physical_package_id", "0\n");
    }
  }
  Machine Read(int num_cpus) {
    std::vector<int> cpus;
    for (int cpu = 0; cpu < num_cpus; ++cpu) {
      cpus.push_back(cpu);
    }
    return ReadMachine(temp_.path(), cpus);
  }

  testing::TempFolder temp_;
};

TEST_F(MachineTest, ReadsCpuAndMemory) {
  WriteTopology(8);
  temp_.Write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  temp_.Write("sys/devices/system/node/node0/x", "");
  temp_.Write("sys/devices/system/node/node1/x", "");
  temp_.Write("sys/devices/system/node/nodes", "");
  const Machine machine = Read(8);
  EXPECT_EQ(machine.cpu_model, "Some CPU");
  EXPECT_TRUE(machine.HasFlag("avx2"));
  EXPECT_FALSE(machine.HasFlag("avx"));
  EXPECT_EQ(machine.num_cpus, 8);
  EXPECT_EQ(machine.num_cores, 4);
  EXPECT_EQ(machine.memory_bytes, int64_t{16} << 30);
  EXPECT_EQ(machine.memory_available_bytes, int64_t{8} << 30);
  EXPECT_EQ(machine.huge_pages, "madvise");
  EXPECT_EQ(machine.num_numa_nodes, 2);
  EXPECT_EQ(machine.cpu_quota, std::nullopt);
  EXPECT_EQ(DefaultThreads(machine), 4);
}

TEST_F(MachineTest, AffinityLimitsTheCores) {
  WriteTopology(8);
  EXPECT_EQ(ReadMachine(temp_.path(), {0, 1}).num_cores, 1);
  EXPECT_EQ(ReadMachine(temp_.path(), {0, 2, 4}).num_cores, 3);
}

TEST_F(MachineTest, CoresHoldTheirLogicalCpus) {
  using Cores = std::vector<std::vector<int>>;
  WriteTopology(8);
  EXPECT_EQ(Read(4).cores, (Cores{{0, 1}, {2, 3}}));
  EXPECT_EQ(ReadMachine(temp_.path(), {1, 4, 5}).cores, (Cores{{1}, {4, 5}}));
}

TEST_F(MachineTest, CoresOfTwoPackagesAreNotOne) {
  WriteTopology(4);
  temp_.Write("sys/devices/system/cpu/cpu2/topology/core_id", "0\n");
  temp_.Write("sys/devices/system/cpu/cpu2/topology/physical_package_id", "1\n");
  EXPECT_EQ(ReadMachine(temp_.path(), {0, 2}).num_cores, 2);
}

TEST_F(MachineTest, ThreadsArePinnedOnlyWhereEachHasACore) {
  WriteTopology(8);
  const Machine machine = Read(8);
  EXPECT_EQ(PinnedCores(machine, 4), machine.cores);
  EXPECT_TRUE(PinnedCores(machine, 3).empty());
  EXPECT_TRUE(PinnedCores(machine, 5).empty());
  EXPECT_TRUE(PinnedCores(machine, 0).empty());
}

TEST_F(MachineTest, WithoutTopologyEveryCpuCounts) { EXPECT_EQ(Read(3).num_cores, 3); }

TEST_F(MachineTest, EmptyRootStillGivesAUsableMachine) {
  const testing::TempFolder empty;
  const Machine machine = ReadMachine(empty.path(), {});
  EXPECT_EQ(machine.num_cores, 1);
  EXPECT_EQ(machine.memory_bytes, 0);
  EXPECT_EQ(DefaultThreads(machine), 1);
}

TEST_F(MachineTest, CgroupV2QuotaAndLimitAtAnyLevel) {
  temp_.Write("proc/self/cgroup", "0::/a/b\n");
  temp_.Write("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  temp_.Write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  temp_.Write("sys/fs/cgroup/a/b/memory.max", "4294967296\n");
  temp_.Write("sys/fs/cgroup/a/b/memory.current", "1073741824\n");
  const Machine machine = Read(8);
  EXPECT_EQ(machine.cpu_quota, 2.5);
  EXPECT_EQ(machine.memory_limit_bytes, int64_t{4} << 30);
  EXPECT_EQ(machine.memory_available_bytes, int64_t{3} << 30);
  EXPECT_EQ(DefaultThreads(machine), 2);
}

TEST_F(MachineTest, CgroupV2InsideAContainerIsItsRoot) {
  temp_.Write("proc/self/cgroup", "0::/\n");
  temp_.Write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  const Machine machine = Read(8);
  EXPECT_EQ(machine.cpu_quota, 0.5);
  EXPECT_EQ(DefaultThreads(machine), 1);
}

TEST_F(MachineTest, CgroupV1QuotaAndLimit) {
  temp_.Write("proc/self/cgroup",
              "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/y\n");
  temp_.Write("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "300000\n");
  temp_.Write("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n");
  temp_.Write("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "2147483648\n");
  temp_.Write("sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "0\n");
  const Machine machine = Read(8);
  EXPECT_EQ(machine.cpu_quota, 3.0);
  EXPECT_EQ(machine.memory_available_bytes, int64_t{2} << 30);
}

TEST_F(MachineTest, NoLimitInV1AndNonsenseAreNoLimits) {
  temp_.Write("proc/self/cgroup", "no colons\n0::/\n");
  temp_.Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  temp_.Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  temp_.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  temp_.Write("sys/fs/cgroup/cpu.max", "garbage\n");
  temp_.Write("sys/fs/cgroup/memory.max", "-5\n");
  const Machine machine = Read(2);
  EXPECT_EQ(machine.cpu_quota, std::nullopt);
  EXPECT_EQ(machine.memory_limit_bytes, std::nullopt);
}

TEST_F(MachineTest, RealOneIsUsable) {
  const Machine machine = ReadMachine();
  EXPECT_GE(machine.num_cores, 1);
  EXPECT_LE(machine.num_cores, machine.num_cpus);
  EXPECT_GT(machine.memory_bytes, 0);
}

}  // namespace
}  // namespace conclave::service
