// Serves a set of requests on one checkpoint under a configuration of the engine and records the
// logits of every token: what tests of exactness compare.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "assembly.h"
#include "conclave/frontend/engine.h"
#include "conclave/kernels/isa.h"

namespace conclave::testing {

inline constexpr int kWorkers[] = {1, 2, 4};
inline constexpr int kThreads[] = {1, 2};
inline constexpr int kTogether[] = {1, 3, 8};
inline constexpr int kChunks[] = {512, 64, 16};
inline constexpr bool kFrames[] = {false, true};
inline constexpr frontend::MicroBatching kMicroBatching[] = {frontend::MicroBatching::kOne,
                                                             frontend::MicroBatching::kTwo};

// Indices into the axes above: workers, threads, sequences at once, chunk, frames, micro-batches.
using Config = std::array<int, 6>;

std::string Describe(const Config& config);

// The instruction-set paths to serve on, the scalar one first: all that the machine has. With
// sanitizers the scalar one is left out where there is another: its kernels are compiled without
// them (libs/kernels/CMakeLists.txt) and would take four fifths of the time.
std::vector<kernels::Isa> PathsToServe();

// Configurations among which every pair of values of two axes occurs.
std::vector<Config> CoveringConfigs();

// Logits that every token of every request was chosen from: [request][token][vocabulary].
using Logits = std::vector<std::vector<std::vector<float>>>;

struct Served {
  Logits logits;
  std::vector<std::vector<float>> features;  // of every picture
  int num_tokens = 0;
};

struct ServeOptions {
  std::string folder;  // of the checkpoint
  DType dtype = DType::kBf16;
  kernels::Isa isa = kernels::Isa::kScalar;
  Config config{};
  // The same engine serves all requests twice, and the second time, when whole prompts are kept, is
  // what is returned.
  bool again = false;
};

// The requests of one model, made after it was loaded.
using RequestsOf = std::function<std::vector<frontend::SequenceRequest>(cli::Assembly&)>;

// Greedy, through an engine that is stepped by hand, with some steps between arrivals, so that the
// next prompt meets answers under way. Failures are reported by GoogleTest.
Served Serve(const ServeOptions& options, const RequestsOf& requests_of);

// Byte for byte; a fatal failure names the first difference.
void ExpectSame(const Served& expected, const Served& found, const std::string& what);

}  // namespace conclave::testing
