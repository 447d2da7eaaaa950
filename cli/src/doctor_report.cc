#include "doctor_report.h"

#include <dlfcn.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/kernels/isa.h"
#include "conclave/kernels/peak.h"
#include "conclave/service/units.h"
#include "conclave/transport/channel_choice.h"
#include "conclave/transport/ucx_channel.h"
#include "table.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kOpenFilesWanted = 10'256;

int64_t LimitOf(__rlimit_resource resource) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return -1;
  }
  return static_cast<int64_t>(limit.rlim_cur);
}

std::string GiB(int64_t bytes) {
  return Fixed(static_cast<double>(bytes) / static_cast<double>(kMiB * 1024), 1) + " GiB";
}

// The CPU features that an ISA path asks for, as the kernel names them.
std::string FeaturesText(const service::Machine& machine) {
  std::string out;
  for (const char* flag : {"avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
                           "avx512_vnni", "avx512_bf16", "amx_bf16"}) {
    if (machine.HasFlag(flag)) {
      out += (out.empty() ? "" : " ") + std::string(flag);
    }
  }
  return out.empty() ? "none of those that matter" : out;
}

std::string Joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) {
    out += (out.empty() ? "" : ", ") + word;
  }
  return out;
}

// Of products, in the words of their numeric mode.
std::string PeaksText(const kernels::ArithmeticPeaks& peaks) {
  const auto text = [](const std::optional<double>& peak) {
    return peak.has_value() ? Fixed(*peak * 1e-9, 0) : std::string("unknown");
  };
  return "f32 " + text(peaks.f32_fma) + ", bf16 " + text(peaks.bf16_gemm()) + ", int8 " +
         text(peaks.int8_dot) + " Gop/s";
}

std::string LimitText(int64_t limit) { return limit < 0 ? "unlimited" : std::to_string(limit); }

// dlsym's pointer as the function it is.
template <typename Fn>
Fn Symbol(void* library, const char* name) {
  return reinterpret_cast<Fn>(::dlsym(library, name));
}

CudaFindings AskDriver(void* library) {
  // The driver API keeps these names and types; a result of 0 is success.
  const auto init = Symbol<int (*)(unsigned)>(library, "cuInit");
  const auto count = Symbol<int (*)(int*)>(library, "cuDeviceGetCount");
  const auto get = Symbol<int (*)(int*, int)>(library, "cuDeviceGet");
  const auto name = Symbol<int (*)(char*, int, int)>(library, "cuDeviceGetName");
  const auto memory = Symbol<int (*)(size_t*, int)>(library, "cuDeviceTotalMem_v2");
  CudaFindings findings;
  if (init == nullptr || count == nullptr || get == nullptr || name == nullptr ||
      memory == nullptr) {
    findings.state = "the driver lacks functions";
    return findings;
  }
  int num_devices = 0;
  int rc = init(0);
  rc = rc == 0 ? count(&num_devices) : rc;
  constexpr int kNoDevice = 100;  // CUDA_ERROR_NO_DEVICE
  if (rc != 0 && rc != kNoDevice) {
    findings.state = "the driver fails with error " + std::to_string(rc);
    return findings;
  }
  findings.state = num_devices > 0 ? "present" : "no device";
  for (int i = 0; i < num_devices; ++i) {
    int device = 0;
    std::array<char, 256> text{};
    size_t bytes = 0;
    if (get(&device, i) == 0 && name(text.data(), static_cast<int>(text.size()) - 1, device) == 0 &&
        memory(&bytes, device) == 0) {
      findings.devices.push_back({text.data(), static_cast<int64_t>(bytes)});
    }
  }
  return findings;
}

std::string WhyIsa(const service::Machine& machine, const std::string& isa) {
  if (isa == "avx512-bf16") {
    return "the best path there is";
  }
  const char* missing = isa == "avx512" ? "avx512_bf16" : isa == "avx2" ? "avx512f" : "avx2";
  return machine.HasFlag(missing) ? "the best path that this CPU and kernel run"
                                  : std::string("this CPU has no ") + missing;
}

json::value Optional(const std::optional<double>& value) {
  return value.has_value() ? json::value(*value) : json::value();
}
json::value Optional(const std::optional<int64_t>& value) {
  return value.has_value() ? json::value(*value) : json::value();
}
json::value LimitValue(int64_t limit) { return limit < 0 ? json::value() : json::value(limit); }

}  // namespace

CudaFindings ProbeCuda() {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return {"no driver", {}};
  }
  // Never closed: the driver starts threads of its own.
  return AskDriver(library);
}

ChannelFindings ProbeChannels() {
  ChannelFindings findings;
  const absl::StatusOr<transport::UcxReport> ucx = transport::ProbeUcx({});
  if (ucx.ok()) {
    findings.ucx_version = ucx->version;
    findings.ucx_transports = ucx->transports;
  } else {
    findings.ucx_why = MessageOf(ucx.status());
  }
  const std::vector<std::string> both = {"ucx", "grpc"};
  const auto choose = [&both](const absl::Status& status) {
    // Both ends allow both, so there is always one.
    return *transport::ChooseChannel(transport::ChannelWish::kAuto, status, both);
  };
  const transport::ChannelChoice local = choose(ucx.status());
  findings.local = local.channel;
  findings.local_why = local.why;
  // An address of nobody's, for the rule about all that are not of the loopback.
  const transport::ChannelChoice network = choose(transport::CheckUcxReach({"0.0.0.0", false}));
  findings.network = network.channel;
  findings.network_why = "without --trusted-network";
  return findings;
}

DoctorReport Examine(int threads) {
  DoctorReport report;
  report.machine = service::ReadMachine();
  report.limits = {LimitOf(RLIMIT_NOFILE), LimitOf(RLIMIT_MEMLOCK), LimitOf(RLIMIT_CORE)};
  report.cuda = ProbeCuda();
  report.channels = ProbeChannels();
  report.grpc_version = grpc::Version();
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    report.isas.emplace_back(kernels::NameOf(isa));
  }
  report.isa = report.isas.empty() ? "scalar" : report.isas.back();
  report.isa_why = WhyIsa(report.machine, report.isa);
  report.threads = threads > 0 ? threads : service::DefaultThreads(report.machine);
  report.dtype = "bf16";
  ThreadPool pool(report.threads);
  const kernels::ReadProbe probe(
      kernels::ReadProbe::BytesFor(report.machine.memory_available_bytes), pool);
  report.read_bandwidth = probe.MeasureBest(pool);
  report.peaks =
      kernels::MeasurePeaks(kernels::SupportedIsas().back(), pool, std::chrono::milliseconds(10));
  report.warnings = WarningsOf(report);
  return report;
}

std::vector<std::string> WarningsOf(const DoctorReport& report) {
  std::vector<std::string> out;
  const service::Machine& machine = report.machine;
  if (report.limits.open_files >= 0 && report.limits.open_files < kOpenFilesWanted) {
    out.push_back("open files: the soft limit is " + std::to_string(report.limits.open_files) +
                  "; 10,000 connections need " + std::to_string(kOpenFilesWanted) +
                  " (ulimit -n; conclave raises it as far as the hard limit goes)");
  }
  if (machine.huge_pages == "never") {
    out.push_back(
        "transparent huge pages are off: reading weights is slower; expected madvise or always in "
        "/sys/kernel/mm/transparent_hugepage/enabled");
  }
  if (machine.cpu_quota.has_value() && *machine.cpu_quota < machine.num_cores) {
    out.push_back("the cgroup grants " + Fixed(*machine.cpu_quota, 1) + " CPUs of " +
                  std::to_string(machine.num_cores) + " cores: more threads would be throttled");
  }
  if (report.limits.core_bytes != 0) {
    out.push_back(
        "core dumps are allowed: servers forbid them for themselves, because memory "
        "holds prompts and images");
  }
  if (report.isa == "scalar") {
    out.push_back("no vector path runs here: expect a tenth of the speed");
  }
  return out;
}

std::string ToText(const DoctorReport& report) {
  const service::Machine& machine = report.machine;
  std::string out;
  const auto line = [&out](std::string name, const std::string& value) {
    name.resize(18, ' ');
    out += name + value + "\n";
  };
  line("cpu", machine.cpu_model.empty() ? "unknown" : machine.cpu_model);
  line("features", FeaturesText(machine));
  line("cores", std::to_string(machine.num_cores) + " (" + std::to_string(machine.num_cpus) +
                    " logical), " + std::to_string(machine.num_numa_nodes) + " NUMA node" +
                    (machine.num_numa_nodes == 1 ? "" : "s"));
  line("cpu quota",
       machine.cpu_quota.has_value() ? Fixed(*machine.cpu_quota, 2) + " CPUs" : "none");
  line("memory", GiB(machine.memory_bytes) + ", " + GiB(machine.memory_available_bytes) +
                     " available" +
                     (machine.memory_limit_bytes.has_value()
                          ? ", cgroup limit " + GiB(*machine.memory_limit_bytes)
                          : ", no cgroup limit"));
  line("read bandwidth", Fixed(report.read_bandwidth * 1e-9, 1) + " GB/s with " +
                             std::to_string(report.threads) + " threads");
  line("arithmetic", PeaksText(report.peaks));
  line("huge pages", machine.huge_pages.empty() ? "unknown" : machine.huge_pages);
  line("limits", "open files " + LimitText(report.limits.open_files) + ", locked memory " +
                     LimitText(report.limits.locked_bytes) + ", core " +
                     LimitText(report.limits.core_bytes));
  line("cuda", report.cuda.state);
  for (const CudaDevice& device : report.cuda.devices) {
    line("", device.name + ", " + GiB(device.memory_bytes));
  }
  const ChannelFindings& channels = report.channels;
  line("apis", "http, grpc " + report.grpc_version + " (with --grpc-listen)");
  line("channels", "inproc, grpc" + std::string(channels.ucx_version.empty() ? "" : ", ucx"));
  line("ucx", channels.ucx_version.empty()
                  ? channels.ucx_why
                  : channels.ucx_version + ": " + Joined(channels.ucx_transports));
  out += "\nDefaults that follow:\n";
  line("  threads", std::to_string(report.threads));
  line("  isa", report.isa + " (" + report.isa_why + ")");
  line("  dtype", report.dtype);
  line("  channel", channels.local + " on one machine (" + channels.local_why + "), " +
                        channels.network + " between machines (" + channels.network_why + ")");
  for (const std::string& warning : report.warnings) {
    out += "\nwarning: " + warning + "\n";
  }
  return out;
}

std::string ToJson(const DoctorReport& report) {
  const service::Machine& machine = report.machine;
  json::array devices;
  for (const CudaDevice& device : report.cuda.devices) {
    devices.push_back(json::object{{"name", device.name}, {"memory_bytes", device.memory_bytes}});
  }
  const json::object object{
      {"cpu", json::object{{"model", machine.cpu_model},
                           {"flags", json::value_from(machine.cpu_flags)},
                           {"cores", machine.num_cores},
                           {"logical", machine.num_cpus},
                           {"numa_nodes", machine.num_numa_nodes},
                           {"quota", Optional(machine.cpu_quota)}}},
      {"memory", json::object{{"total_bytes", machine.memory_bytes},
                              {"available_bytes", machine.memory_available_bytes},
                              {"limit_bytes", Optional(machine.memory_limit_bytes)},
                              {"read_bytes_per_second", report.read_bandwidth},
                              {"huge_pages", machine.huge_pages}}},
      {"arithmetic",
       json::object{{"f32_fma_operations_per_second", Optional(report.peaks.f32_fma)},
                    {"bf16_dot_operations_per_second", Optional(report.peaks.bf16_dot)},
                    {"bf16_gemm_operations_per_second", Optional(report.peaks.bf16_gemm())},
                    {"int8_dot_operations_per_second", Optional(report.peaks.int8_dot)}}},
      {"limits", json::object{{"open_files", LimitValue(report.limits.open_files)},
                              {"locked_bytes", LimitValue(report.limits.locked_bytes)},
                              {"core_bytes", LimitValue(report.limits.core_bytes)}}},
      {"cuda", json::object{{"state", report.cuda.state}, {"devices", devices}}},
      {"apis", json::object{{"grpc_version", report.grpc_version}}},
      {"channels",
       json::object{{"ucx_version", report.channels.ucx_version.empty()
                                        ? json::value()
                                        : json::value(report.channels.ucx_version)},
                    {"ucx_transports", json::value_from(report.channels.ucx_transports)},
                    {"ucx_why", report.channels.ucx_why},
                    {"local", report.channels.local},
                    {"local_why", report.channels.local_why},
                    {"network", report.channels.network},
                    {"network_why", report.channels.network_why}}},
      {"isa", json::object{{"supported", json::value_from(report.isas)},
                           {"chosen", report.isa},
                           {"why", report.isa_why}}},
      {"defaults",
       json::object{{"threads", report.threads}, {"isa", report.isa}, {"dtype", report.dtype}}},
      {"warnings", json::value_from(report.warnings)}};
  return json::serialize(object) + "\n";
}

}  // namespace conclave::cli
