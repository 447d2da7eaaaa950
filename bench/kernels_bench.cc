// Speed of the kernels: GEMM against the arithmetic peak at large M and against the memory at
// M = 1, attention, and the row operations of one decoder layer.
//
//   kernels_bench --benchmark_filter=MatMul --benchmark_repetitions=5
//
// Names read op/isa:<its number in enum Isa>/<sizes>/threads:<n>; the label names the path. FLOP
// counters count a multiply-add as two operations; byte counters count each weight, key or value
// once.
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

// The arguments isa and threads of a benchmark, which are its first and its last.
struct Setup {
  Setup(benchmark::State& state, size_t last)
      : isa(static_cast<Isa>(state.range(0))),
        pool(static_cast<int>(state.range(last))),
        context(isa, pool) {
    state.SetLabel(std::string(NameOf(isa)));
  }

  Isa isa;
  ThreadPool pool;
  Context context;
};

void MatMulBf16(benchmark::State& state) {
  Setup setup(state, 4);
  ThreadPool& pool = setup.pool;
  const Context& context = setup.context;
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  const std::vector<Bf16> x = ToBf16s(RandomFloats(m * k, 1));
  const std::vector<float> row = RandomFloats(n * k, 2);
  PackedMatrix w(n, k, DType::kBf16);
  w.PackRows(0, MatView<const float>(row.data(), n, k), pool);
  std::vector<float> y(static_cast<size_t>(m * n));
  while (state.KeepRunning()) {
    MatMul(context, MatView<const Bf16>(x.data(), m, k), w, {}, MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), static_cast<double>(w.size_bytes()));
}

void MatMulF32(benchmark::State& state) {
  Setup setup(state, 4);
  ThreadPool& pool = setup.pool;
  const Context& context = setup.context;
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  const std::vector<float> x = RandomFloats(m * k, 1);
  const std::vector<float> row = RandomFloats(n * k, 2);
  PackedMatrix w(n, k, DType::kF32);
  w.PackRows(0, MatView<const float>(row.data(), n, k), pool);
  std::vector<float> y(static_cast<size_t>(m * n));
  while (state.KeepRunning()) {
    MatMul(context, MatView<const float>(x.data(), m, k), w, {}, MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), static_cast<double>(w.size_bytes()));
}

// The product alone; QuantizeRows is what its rows cost before.
void MatMulQ8(benchmark::State& state) {
  Setup setup(state, 4);
  const Context& context = setup.context;
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  const std::vector<float> x = RandomFloats(m * k, 1);
  const std::vector<float> row = RandomFloats(n * k, 2);
  PackedMatrix w(n, k, DType::kQ8);
  w.PackRows(0, MatView<const float>(row.data(), n, k), setup.pool);
  Q8Scratch scratch(m, k);
  const Q8Rows rows = scratch.Quantize(context, MatView<const float>(x.data(), m, k));
  std::vector<float> y(static_cast<size_t>(m * n));
  while (state.KeepRunning()) {
    MatMul(context, rows, w, {}, MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), static_cast<double>(w.size_bytes()));
}

// `m` rows over `experts` alike, as one call.
void MatMulQ8Experts(benchmark::State& state) {
  Setup setup(state, 5);
  const Context& context = setup.context;
  const int64_t experts = state.range(1);
  const int64_t m = state.range(2) / experts;
  const int64_t k = state.range(3);
  const int64_t n = state.range(4);
  const std::vector<float> x = RandomFloats(m * k, 1);
  const std::vector<float> row = RandomFloats(n * k, 2);
  std::vector<PackedMatrix> weights;
  std::vector<Q8Scratch> scratches;
  std::vector<Product<Q8Rows>> products;
  std::vector<float> y(static_cast<size_t>(experts * m * n));
  double bytes = 0.0;
  for (int64_t e = 0; e < experts; ++e) {
    weights.emplace_back(n, k, DType::kQ8);
    weights.back().PackRows(0, MatView<const float>(row.data(), n, k), setup.pool);
    bytes += static_cast<double>(weights.back().size_bytes());
    scratches.emplace_back(m, k);
  }
  for (int64_t e = 0; e < experts; ++e) {
    const auto i = static_cast<size_t>(e);
    products.push_back({.x = scratches[i].Quantize(context, MatView<const float>(x.data(), m, k)),
                        .w = &weights[i],
                        .bias = {},
                        .y = MatView<float>(y.data() + e * m * n, m, n)});
  }
  while (state.KeepRunning()) {
    MatMulAll(context, products);
    benchmark::DoNotOptimize(y.data());
  }
  SetRates(state, 2.0 * static_cast<double>(experts * m * n * k), bytes);
}

void QuantizeRows(benchmark::State& state) {
  const Setup setup(state, 3);
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const std::vector<float> x = RandomFloats(m * k, 1);
  Q8Scratch scratch(m, k);
  while (state.KeepRunning()) {
    const Q8Rows rows = scratch.Quantize(setup.context, MatView<const float>(x.data(), m, k));
    benchmark::DoNotOptimize(rows.values);
  }
  state.SetItemsProcessed(state.iterations() * m * k);
}

// What the memory gives: sums of a buffer far larger than the caches, in as many streams as there
// are threads.
void ReadMemory(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  constexpr int64_t kTaskWords = int64_t{1} << 17;
  constexpr int64_t kTasks = 512;
  AlignedBuffer buffer(static_cast<size_t>(kTaskWords * kTasks) * sizeof(uint64_t));
  std::memset(buffer.As<char>(), 1, buffer.size_bytes());
  const uint64_t* words = buffer.As<uint64_t>();
  while (state.KeepRunning()) {
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
void Attention(benchmark::State& state) {
  const Setup setup(state, 5);
  const Context& context = setup.context;
  const int64_t rows = state.range(1);
  const int64_t tokens = state.range(2);
  const int64_t heads = state.range(3);
  const int64_t head_dim = state.range(4);
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
  while (state.KeepRunning()) {
    Attend(context, layout, heads, 0.125f, MatView<const float>(q.data(), rows, width), ranges,
           MatView<float>(out.data(), rows, width));
    benchmark::DoNotOptimize(out.data());
  }
  const double seen = static_cast<double>(tokens) - 0.5 * static_cast<double>(rows - 1);
  SetRates(state, 4.0 * seen * static_cast<double>(rows * width),
           static_cast<double>(memory.size_bytes()));
}

// op 0 is LayerNorm, 1 the gated silu, 2 and on the activations in the order of their enum.
void Elementwise(benchmark::State& state) {
  const Setup setup(state, 2);
  const Context& context = setup.context;
  const int64_t op = state.range(1);
  constexpr int64_t kRows = 16;
  constexpr int64_t kCols = 2560;
  const std::vector<float> x = RandomFloats(2 * kRows * kCols, 5);
  const std::vector<float> w = RandomFloats(kCols, 6);
  std::vector<float> y(static_cast<size_t>(kRows * kCols));
  const MatView<const float> in(x.data(), kRows, kCols);
  const MatView<float> out(y.data(), kRows, kCols);
  while (state.KeepRunning()) {
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

using Definition = benchmark::internal::Benchmark;

// Runs every list of sizes on every vector path with one and with two threads.
void OnAllPaths(Definition* definition, const std::vector<std::vector<int64_t>>& sizes) {
  for (const Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar) {
      continue;
    }
    for (const int64_t threads : {1, 2}) {
      for (std::vector<int64_t> args : sizes) {
        args.insert(args.begin(), static_cast<int64_t>(isa));
        args.push_back(threads);
        definition->Args(args);
      }
    }
  }
  definition->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void MatMulSizes(Definition* definition) {
  definition->ArgNames({"isa", "m", "k", "n", "threads"});
  // The last of one row is 128 MiB of bf16, more than a last-level cache: the memory decides.
  OnAllPaths(definition, {{1, 2048, 5632},
                          {2, 2048, 5632},
                          {4, 2048, 5632},
                          {8, 2048, 5632},
                          {16, 2048, 5632},
                          {64, 2048, 5632},
                          {512, 2048, 5632},
                          {512, 10240, 2560},
                          {577, 1024, 4096},
                          {577, 4096, 1024},
                          {577, 1024, 1024},
                          {1, 2048, 32768}});
}

// The decoder of StableLM-1.6B×4 at a step of 640 routed rows, and few rows per expert.
void ExpertSizes(Definition* definition) {
  definition->ArgNames({"isa", "experts", "m", "k", "n", "threads"});
  OnAllPaths(definition, {{4, 640, 2048, 5632}, {4, 16, 2048, 5632}});
}

void QuantizeSizes(Definition* definition) {
  definition->ArgNames({"isa", "m", "k", "threads"});
  OnAllPaths(definition, {{1, 2048}, {512, 2048}});
}

void AttentionSizes(Definition* definition) {
  definition->ArgNames({"isa", "rows", "tokens", "heads", "head_dim", "threads"});
  OnAllPaths(definition, {{1, 2048, 32, 80}, {1, 64, 32, 80}, {512, 1024, 32, 80}});
}

void ElementwiseSizes(Definition* definition) {
  definition->ArgNames({"isa", "op", "threads"});
  for (const Isa isa : SupportedIsas()) {
    for (int64_t op = 0; op < 6; ++op) {
      definition->Args({static_cast<int64_t>(isa), op, 1});
    }
  }
  definition->Unit(benchmark::kMicrosecond);
}

BENCHMARK(ReadMemory)
    ->ArgName("threads")
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(MatMulBf16)->Apply(MatMulSizes);
BENCHMARK(MatMulF32)->Apply(MatMulSizes);
BENCHMARK(MatMulQ8)->Apply(MatMulSizes);
BENCHMARK(MatMulQ8Experts)->Apply(ExpertSizes);
BENCHMARK(QuantizeRows)->Apply(QuantizeSizes);
BENCHMARK(Attention)->Apply(AttentionSizes);
BENCHMARK(Elementwise)->Apply(ElementwiseSizes);

}  // namespace
}  // namespace conclave::kernels
