// Speed of the kernels: GEMM against the arithmetic peak at large M and against the memory at
// M = 1, attention, and the row operations of one decoder layer.
//
//   kernels_bench --benchmark_filter=MatMul --benchmark_repetitions=5
//
// Names read op/<isa>/<sizes>/<threads>. FLOP counters count a multiply-add as two operations; byte
// counters count each weight, key or value once.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "conclave/kernels/attention.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/matmul.h"

namespace conclave::kernels {
namespace {

std::vector<float> RandomFloats(int64_t n, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) {
    value = uniform(random);
  }
  return values;
}

std::vector<Bf16> ToBf16s(const std::vector<float>& values) {
  std::vector<Bf16> out;
  out.reserve(values.size());
  for (const float value : values) {
    out.push_back(ToBf16(value));
  }
  return out;
}

void SetRates(benchmark::State& state, double flops, double bytes) {
  using benchmark::Counter;
  const double runs = static_cast<double>(state.iterations());
  state.counters["FLOP/s"] = Counter(flops * runs, Counter::kIsRate);
  state.counters["B/s"] = Counter(bytes * runs, Counter::kIsRate);
}

void MatMulBf16(benchmark::State& state, Isa isa, int64_t m, int64_t k, int64_t n, int threads) {
  ThreadPool pool(threads);
  const Context context(isa, pool);
  const std::vector<Bf16> x = ToBf16s(RandomFloats(m * k, 1));
  const std::vector<float> row = RandomFloats(n * k, 2);
  PackedMatrix w(n, k, DType::kBf16);
  w.PackRows(0, MatView<const float>(row.data(), n, k), pool);
  std::vector<float> y(static_cast<size_t>(m * n));
  for (auto _ : state) {
    MatMul(context, MatView<const Bf16>(x.data(), m, k), w, {}, MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), static_cast<double>(w.size_bytes()));
}

void MatMulF32(benchmark::State& state, Isa isa, int64_t m, int64_t k, int64_t n, int threads) {
  ThreadPool pool(threads);
  const Context context(isa, pool);
  const std::vector<float> x = RandomFloats(m * k, 1);
  const std::vector<float> row = RandomFloats(n * k, 2);
  PackedMatrix w(n, k, DType::kF32);
  w.PackRows(0, MatView<const float>(row.data(), n, k), pool);
  std::vector<float> y(static_cast<size_t>(m * n));
  for (auto _ : state) {
    MatMul(context, MatView<const float>(x.data(), m, k), w, {}, MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), static_cast<double>(w.size_bytes()));
}

// What the memory gives: sums of a buffer far larger than the caches, in as many streams as there
// are threads.
void ReadMemory(benchmark::State& state, int threads) {
  ThreadPool pool(threads);
  constexpr int64_t kTaskWords = int64_t{1} << 17;
  constexpr int64_t kTasks = 512;
  AlignedBuffer buffer(static_cast<size_t>(kTaskWords * kTasks) * sizeof(uint64_t));
  std::memset(buffer.As<char>(), 1, buffer.size_bytes());
  const uint64_t* words = buffer.As<uint64_t>();
  for (auto _ : state) {
    pool.ParallelFor(kTasks, [&](int64_t task) {
      const uint64_t* from = words + task * kTaskWords;
      uint64_t sums[32] = {};
      for (int64_t i = 0; i < kTaskWords; i += 32) {
        for (int64_t s = 0; s < 32; ++s) {
          sums[s] += from[i + s];
        }
      }
      benchmark::DoNotOptimize(sums);
    });
  }
  SetRates(state, 0.0, static_cast<double>(buffer.size_bytes()));
}

// `rows` queries at the end of a context of `tokens`: 1 is decode, more a chunk of prefill.
void Attention(benchmark::State& state, Isa isa, int64_t rows, int64_t tokens, int64_t heads,
               int64_t head_dim, int threads) {
  ThreadPool pool(threads);
  const Context context(isa, pool);
  const KvLayout layout{.num_kv_heads = heads, .head_dim = head_dim, .dtype = DType::kBf16};
  const int64_t blocks = (tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  AlignedBuffer memory(static_cast<size_t>(blocks) * layout.block_bytes());
  std::vector<int32_t> table;
  for (int64_t block = 0; block < blocks; ++block) {
    table.push_back(static_cast<int32_t>(block));
  }
  const std::vector<float> values = RandomFloats(heads * head_dim, 3);
  for (int64_t t = 0; t < tokens; ++t) {
    StoreKv(
        context, layout, values, values, t % kKvBlockTokens,
        memory.As<std::byte>() + static_cast<size_t>(t / kKvBlockTokens) * layout.block_bytes());
  }
  const std::vector<float> q = RandomFloats(rows * heads * head_dim, 4);
  std::vector<float> out(q.size());
  std::vector<KvRange> ranges;
  for (int64_t r = 0; r < rows; ++r) {
    ranges.push_back(
        {memory.As<std::byte>(), layout.block_bytes(), table.data(), 0, tokens - rows + r + 1});
  }
  const int64_t width = heads * head_dim;
  for (auto _ : state) {
    Attend(context, layout, heads, 0.125f, MatView<const float>(q.data(), rows, width), ranges,
           MatView<float>(out.data(), rows, width));
    benchmark::DoNotOptimize(out.data());
  }
  SetRates(state, 4.0 * static_cast<double>(rows * (tokens - rows / 2) * width),
           static_cast<double>(memory.size_bytes()));
}

void Elementwise(benchmark::State& state, Isa isa, int op) {
  ThreadPool pool(1);
  const Context context(isa, pool);
  constexpr int64_t kRows = 16;
  constexpr int64_t kCols = 2560;
  const std::vector<float> x = RandomFloats(2 * kRows * kCols, 5);
  const std::vector<float> w = RandomFloats(kCols, 6);
  std::vector<float> y(static_cast<size_t>(kRows * kCols));
  const MatView<const float> in(x.data(), kRows, kCols);
  const MatView<float> out(y.data(), kRows, kCols);
  for (auto _ : state) {
    switch (op) {
      case 0:
        LayerNorm(context, in, w, w, 1e-5f, out);
        break;
      case 1:
        GatedActivate(context, Activation::kSilu, MatView<const float>(x.data(), kRows, 2 * kCols),
                      out);
        break;
      default:
        std::memcpy(y.data(), x.data(), y.size() * sizeof(float));
        Activate(context, static_cast<Activation>(op - 2), out);
        break;
    }
    benchmark::DoNotOptimize(y.data());
  }
  state.SetItemsProcessed(state.iterations() * kRows * kCols);
}

void RegisterFor(Isa isa) {
  const std::string name(NameOf(isa));
  const auto add = [](const std::string& label, auto fn) {
    benchmark::RegisterBenchmark(label.c_str(), fn)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  if (isa != Isa::kScalar) {
    for (const int threads : {1, 2}) {
      for (const int64_t m : {1, 2, 4, 8, 16, 64, 512}) {
        const std::string sizes =
            "/" + std::to_string(m) + "x2048x5632/threads:" + std::to_string(threads);
        add("MatMulBf16/" + name + sizes,
            [=](benchmark::State& state) { MatMulBf16(state, isa, m, 2048, 5632, threads); });
        add("MatMulF32/" + name + sizes,
            [=](benchmark::State& state) { MatMulF32(state, isa, m, 2048, 5632, threads); });
      }
      // 128 MiB of weights, four times the last-level cache of a large desktop: the memory decides.
      add("MatMulBf16/" + name + "/1x2048x32768/threads:" + std::to_string(threads),
          [=](benchmark::State& state) { MatMulBf16(state, isa, 1, 2048, 32768, threads); });
      add("MatMulBf16/" + name + "/512x10240x2560/threads:" + std::to_string(threads),
          [=](benchmark::State& state) { MatMulBf16(state, isa, 512, 10240, 2560, threads); });
      add("Attention/" + name + "/decode 1x2048 32x80/threads:" + std::to_string(threads),
          [=](benchmark::State& state) { Attention(state, isa, 1, 2048, 32, 80, threads); });
      add("Attention/" + name + "/decode 1x64 32x80/threads:" + std::to_string(threads),
          [=](benchmark::State& state) { Attention(state, isa, 1, 64, 32, 80, threads); });
      add("Attention/" + name + "/prefill 512x1024 32x80/threads:" + std::to_string(threads),
          [=](benchmark::State& state) { Attention(state, isa, 512, 1024, 32, 80, threads); });
    }
  }
  const char* const ops[] = {"layer_norm", "silu gated", "silu",
                             "gelu tanh",  "gelu erf",   "quick gelu"};
  for (int op = 0; op < 6; ++op) {
    add("Elementwise/" + name + "/" + ops[op],
        [=](benchmark::State& state) { Elementwise(state, isa, op); });
  }
}

const bool kRegistered = [] {
  for (const int threads : {1, 2}) {
    benchmark::RegisterBenchmark(("ReadMemory/threads:" + std::to_string(threads)).c_str(),
                                 [=](benchmark::State& state) { ReadMemory(state, threads); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  for (const Isa isa : SupportedIsas()) {
    RegisterFor(isa);
  }
  return true;
}();

}  // namespace
}  // namespace conclave::kernels
