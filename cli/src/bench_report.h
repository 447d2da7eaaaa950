// What `conclave bench` measured, and its two forms. Measuring is apart from printing, so that the
// arithmetic and the forms can be tested.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conclave/kernels/isa.h"
#include "conclave/kernels/peak.h"
#include "conclave/tensor/dtype.h"

namespace conclave::cli {

// Of a list of values; all zero for an empty one.
struct Spread {
  double median = 0;  // of an even number of values: the mean of the two in the middle
  double min = 0;
  double max = 0;
};
Spread SpreadOf(std::vector<double> values);

// What the machine gave at one moment.
struct BoundsSample {
  double read = 0;  // bytes per second
  kernels::ArithmeticPeaks peaks;
};

// What limited a case, if it was done as well as it can be.
enum class Limit : uint8_t {
  kMemory,      // reading its bytes
  kArithmetic,  // doing its operations
};

// One round of a case, with the machine's bounds before and after it.
struct Round {
  double seconds = 0;
  // Of this round, and so of its own rows' experts. 0: not counted.
  double bytes = 0;
  double operations = 0;
  // The larger of before and after: a bound that a disturbance lowered is none.
  double read = 0;  // bytes per second
  double peak = 0;  // operations per second of the numeric mode; 0: none, as on the scalar path
};

// What a case is compared with.
enum class Against : uint8_t {
  kMemory,      // the read bandwidth alone
  kArithmetic,  // the arithmetic peak alone
  kBoth,        // whichever takes longer
  kNothing
};

// The part of what the machine could do that a round did: the least time that the bound allows over
// the time that it took. 0 where there is nothing to compare with.
double ShareOf(const Round& round, Against against);
// Which of the two bounds of a round is the longer one.
Limit LimitOf(const Round& round);

// The larger figure of each bound of two samples.
BoundsSample Larger(const BoundsSample& a, const BoundsSample& b);

// One line of the report.
struct BenchCase {
  std::string name;    // "decode", "prefill", "step", "encode", "preprocess", "load", ...
  int64_t rows = 0;    // of a step; 0: not of this case
  int64_t tokens = 0;  // of a round: what the rates count
  int64_t context = 0;
  Against against = Against::kNothing;
  std::vector<Round> rounds;
};

struct BenchReport {
  std::string bench;  // "decode", ...
  // The model.
  std::string model;
  std::string model_type;
  int64_t num_parameters = 0;
  int64_t weight_bytes = 0;  // in memory
  // How it was run.
  DType dtype = DType::kBf16;
  kernels::Isa isa = kernels::Isa::kScalar;
  int threads = 1;
  int repeat = 0;
  // The machine.
  std::string cpu_model;
  int num_cores = 0;
  double load_before = 0;  // averages of the last minute
  double load_after = 0;
  int64_t probe_bytes = 0;
  std::vector<BoundsSample> bounds;
  // The build.
  std::string version;
  std::string compiler;
  std::string build_flags;
  std::vector<BenchCase> cases;
  // Further figures of this kind of bench: name with its unit, value.
  std::vector<std::pair<std::string, double>> extras;
};

std::string ToText(const BenchReport& report);
// One object, with a newline; docs/cli.md says its keys.
std::string ToJson(const BenchReport& report);

}  // namespace conclave::cli
