// placement_bench: the study of data-plane.md section 12 with the real planner: 61 layers of 256
// experts on 288 places each, log-normal loads that drift. Prints, per setting, the mean of max /
// mean load over ten windows for a placement that is kept, one that is planned anew, and one that
// is changed within its budget; the part of the replicas that moved; and the processor time of both
// planners, median and least of the windows (another process on the machine does not count).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <random>

#include "conclave/placement/planner.h"

namespace conclave::placement {
namespace {

constexpr int32_t kLayers = 61;
constexpr int32_t kExperts = 256;
constexpr int32_t kPlaces = 288;
constexpr int kWindows = 10;

double CpuMs() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double Least(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

void Run(int32_t workers, double sigma, double drift) {
  PlanProblem problem;
  for (int32_t w = 0; w < workers; ++w) {
    problem.workers.push_back({WorkerId(w), w, 1.0, int64_t{kLayers} * kPlaces / workers, true});
  }
  std::mt19937_64 random(1);
  std::normal_distribution<double> start(0.0, sigma);
  std::normal_distribution<double> step(0.0, drift);
  for (int32_t l = 0; l < kLayers; ++l) {
    for (int32_t e = 0; e < kExperts; ++e) {
      problem.units.push_back({{LayerId(l), ExpertId(e)}, std::exp(start(random)), 1});
    }
  }
  PlanOptions options;
  options.replication = 1;
  const Plan first = *PlanFull(problem, options);
  std::vector<Replica> kept = first.replicas;
  std::vector<Replica> current = first.replicas;
  double stale = 0, split = 0, full = 0, incremental = 0, moved = 0;
  std::vector<double> full_ms, next_ms;
  for (int window = 0; window < kWindows; ++window) {
    for (PlanUnit& unit : problem.units) {
      unit.load *= std::exp(step(random));
    }
    stale += ImbalanceOf(problem, kept, {}) / kWindows;
    split += ImbalanceOf(problem, kept, SplitShares(problem, kept)) / kWindows;
    double before = CpuMs();
    full += PlanFull(problem, options)->ratio_after / kWindows;
    full_ms.push_back(CpuMs() - before);
    before = CpuMs();
    const Plan next = *PlanIncremental(problem, current, options);
    next_ms.push_back(CpuMs() - before);
    current = next.replicas;
    incremental += next.ratio_after / kWindows;
    moved += 100.0 * next.num_replicas_moved / (kLayers * kPlaces) / kWindows;
  }
  std::printf("%7d  %5.1f  %5.1f  %6.3f  %11.3f  %6.3f  %11.3f  %7.1f  %5.1f %5.1f  %5.1f %5.1f\n",
              workers, sigma, drift, stale, split, full, incremental, moved, Median(full_ms),
              Least(full_ms), Median(next_ms), Least(next_ms));
}

}  // namespace
}  // namespace conclave::placement

int main() {
  std::printf(
      "workers  sigma  drift    kept  kept, split    full  incremental  moved %%   full ms     "
      "next ms\n");
  conclave::placement::Run(32, 0.7, 0.1);
  conclave::placement::Run(32, 0.7, 0.3);
  conclave::placement::Run(32, 1.0, 0.2);
  conclave::placement::Run(72, 0.7, 0.1);
  conclave::placement::Run(144, 0.7, 0.1);
  return 0;
}
