// What `conclave doctor` finds, and its two forms. Finding is apart from printing, so that the
// forms can be tested.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conclave/kernels/peak.h"
#include "conclave/service/machine.h"

namespace conclave::cli {

struct CudaDevice {
  std::string name;
  int64_t memory_bytes = 0;
};

struct CudaFindings {
  std::string state;  // "no driver", "no device", "present", or the driver's complaint
  std::vector<CudaDevice> devices;
};

// What carries calls between frontends and workers.
struct ChannelFindings {
  std::string ucx_version;                  // empty: UCX does not work here
  std::vector<std::string> ucx_transports;  // on the loopback
  std::string ucx_why;                      // that it does not work
  // What `--channel auto` chooses, and why: on one machine, and between machines without
  // --trusted-network.
  std::string local;
  std::string local_why;
  std::string network;
  std::string network_why;
};

// A limit of this process; below 0: unlimited.
struct Limits {
  int64_t open_files = 0;
  int64_t locked_bytes = 0;
  int64_t core_bytes = 0;
};

struct DoctorReport {
  service::Machine machine;
  Limits limits;
  CudaFindings cuda;
  ChannelFindings channels;
  std::string grpc_version;        // of the library: the API of --grpc-listen, and the cluster
  std::vector<std::string> isas;   // that run here, slowest first
  double read_bandwidth = 0;       // bytes per second with `threads`
  kernels::ArithmeticPeaks peaks;  // of the chosen path with `threads`
  // The defaults that follow.
  int threads = 1;
  std::string isa;
  std::string isa_why;
  std::string dtype;
  std::vector<std::string> warnings;
};

// Asks the driver, if there is one. Loads libcuda.so.1 at run time and nothing else, so that this
// binary starts without it.
CudaFindings ProbeCuda();

// Opens UCX; some milliseconds.
ChannelFindings ProbeChannels();

// Everything; takes about a second, most of it for the bandwidth of the memory. `threads`: 0 for
// the default.
DoctorReport Examine(int threads);

// What in a report deserves attention. Pure.
std::vector<std::string> WarningsOf(const DoctorReport& report);

std::string ToText(const DoctorReport& report);
std::string ToJson(const DoctorReport& report);  // one object, with a newline

}  // namespace conclave::cli
