// Image preprocessing from decoded pixels to the tower's input: 1024×768 to 336, each fit, with
// each version of the inner loops.
//
//   image_bench --benchmark_repetitions=5
//
// Names read op/path:<its number in enum RowPath>; the label names the path. Everything runs on
// one thread, so the column "CPU" is what a picture costs.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <random>
#include <vector>

#include "conclave/image/image.h"
#include "row_ops.h"

namespace conclave::image {
namespace {

constexpr int32_t kWidth = 1024;
constexpr int32_t kHeight = 768;
constexpr int32_t kSize = 336;

RgbImage RandomImage(int32_t width, int32_t height) {
  std::minstd_rand random(1);
  RgbImage image{width, height, {}};
  image.pixels.resize(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height));
  for (uint8_t& value : image.pixels) {
    value = static_cast<uint8_t>(random() >> 8);
  }
  return image;
}

PreprocessSpec SpecOf(Fit fit) {
  return {
      kSize, fit, {0.48145466F, 0.4578275F, 0.40821073F}, {0.26862954F, 0.26130258F, 0.2757771F}};
}

void UsePath(benchmark::State& state) {
  constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};
  UseRowPath(static_cast<RowPath>(state.range(0)));
  state.SetLabel(kNames[state.range(0)]);
}

void Fits(benchmark::State& state, Fit fit) {
  UsePath(state);
  const RgbImage source = RandomImage(kWidth, kHeight);
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(FitAndResize(source, SpecOf(fit)).pixels.data());
  }
}

void Normalizes(benchmark::State& state) {
  UsePath(state);
  const RgbImage source = RandomImage(kSize, kSize);
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(Normalize(source, SpecOf(Fit::kPad)).data());
  }
}

void EachPath(benchmark::internal::Benchmark* bench) {
  bench->ArgName("path")->Unit(benchmark::kMillisecond);
  for (const RowPath path : SupportedRowPaths()) {
    bench->Arg(static_cast<int64_t>(path));
  }
}

BENCHMARK_CAPTURE(Fits, Pad, Fit::kPad)->Apply(EachPath);
BENCHMARK_CAPTURE(Fits, Crop, Fit::kCrop)->Apply(EachPath);
BENCHMARK_CAPTURE(Fits, Stretch, Fit::kStretch)->Apply(EachPath);
BENCHMARK(Normalizes)->Apply(EachPath);

}  // namespace
}  // namespace conclave::image
