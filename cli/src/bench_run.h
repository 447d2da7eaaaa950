// The measurements of `conclave bench`: one model in this process, driven directly, with the
// machine's bounds measured before the first round and after every one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "assembly.h"
#include "bench_report.h"

namespace conclave::cli {

enum class BenchKind : uint8_t { kDecode, kPrefill, kStep, kImage, kLoad };

struct BenchOptions {
  BenchKind kind = BenchKind::kDecode;
  std::string model_dir;
  std::string vision_tower;  // as --vision-tower, may be empty
  bool require_manifest = false;
  DType dtype = DType::kBf16;
  kernels::Isa isa = kernels::Isa::kScalar;
  int threads = 1;
  int repeat = 5;  // rounds, each of all cases; >= 1
  // Off: rounds follow each other at once and have no shares, for several processes side by side.
  bool has_bounds = true;
  // Positions of every stream before the first measured step (decode, step). Their keys and values
  // are zeros: that they are in memory counts, not what they are.
  int32_t context = 512;
  bool is_context_default = true;  // then it is lowered to what the model has room for
  int32_t tokens = 32;             // steps of a round (decode, step)
  std::vector<int32_t> rows;       // streams of each case (step)
  int32_t prompt = 512;            // rows of the prompt (prefill)
  int32_t chunk = 512;             // rows of a step of it
  std::string image;               // an encoded picture; empty: a made-up one of 1280 by 960 pixels
};

// Errors: those of the checkpoint; "model_needs_memory"; "usage" where the model cannot do what is
// asked (too few positions, no vision tower); the picture's own. `progress` may be null: called
// while a model loads, but not in rounds that time it.
absl::StatusOr<BenchReport> Measure(const BenchOptions& options, const Progress& progress);

}  // namespace conclave::cli
