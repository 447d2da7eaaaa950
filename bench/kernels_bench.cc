// Speed of the kernels beside the machine's bounds of the same run: GEMM against the arithmetic
// peak at large M and against the memory at M = 1, the experts of an MoE layer, attention, and the
// row operations.
//
//   kernels_bench --benchmark_filter=MatMul --benchmark_repetitions=5
//
// Names read op/isa:<its number in enum Isa>/<sizes>/threads:<n>; the label names the path. The
// bounds are measured first (BoundsBefore) and last (BoundsAfter). Weights, keys and values come
// from memory, as in a model: what is read in turn is a GiB. onednn_bench.cc adds a comparison with
// oneDNN where that is installed.
#include <cstring>
#include <span>

#include "bench_common.h"
#include "conclave/kernels/attention.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/quantize.h"
#include "conclave/model/ffn.h"
#include "conclave/service/machine.h"

namespace conclave::bench {
namespace {

using kernels::Isa;
using kernels::PeakOp;
using Definition = benchmark::internal::Benchmark;

// One, and as many as a server would take.
const std::vector<int64_t>& ThreadCounts() {
  static const int most = service::DefaultThreads(service::ReadMachine());
  static const std::vector<int64_t> counts =
      most > 1 ? std::vector<int64_t>{1, most} : std::vector<int64_t>{1};
  return counts;
}

// One bound per run: operations of the path's instructions (op:0 f32 FMA, 1 VDPBF16PS, 2 int8), the
// best within a fifth of a second.
void Peak(benchmark::State& state) {
  Setup setup(state, 2);
  const auto op = static_cast<PeakOp>(state.range(1));
  double best = 0;
  while (state.KeepRunning()) {
    best = kernels::MeasurePeak(setup.isa, op, setup.pool, std::chrono::milliseconds(200))
               .value_or(0.0);
  }
  state.counters["op/s"] = best;
}

void Read(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(2)));
  // Kept between benchmarks: touching it takes longer than reading it.
  static const kernels::ReadProbe probe(kernels::ReadProbe::BytesFor(INT64_MAX), pool);
  const kernels::ReadVariant variant{static_cast<int>(state.range(0)), state.range(1) != 0};
  double best = 0;
  while (state.KeepRunning()) {
    best = std::max(best, probe.Measure(variant, pool));
  }
  state.counters["B/s"] = best;
}

void MatMulBf16(benchmark::State& state) {
  Setup setup(state, 4);
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  ColdMatrices& weights = ColdMatrices::Of(k, n, DType::kBf16, setup.pool);
  const std::vector<Bf16> x = ToBf16s(RandomFloats(m * k, 1));
  std::vector<float> y(static_cast<size_t>(m * n));
  double bytes = 0;
  while (state.KeepRunning()) {
    const kernels::PackedMatrix& w = weights.Next();
    kernels::MatMul(setup.context, MatView<const Bf16>(x.data(), m, k), w, {},
                    MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
    bytes = static_cast<double>(w.size_bytes());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), bytes);
}

void MatMulF32(benchmark::State& state) {
  Setup setup(state, 4);
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  ColdMatrices& weights = ColdMatrices::Of(k, n, DType::kF32, setup.pool);
  const std::vector<float> x = RandomFloats(m * k, 1);
  std::vector<float> y(static_cast<size_t>(m * n));
  double bytes = 0;
  while (state.KeepRunning()) {
    const kernels::PackedMatrix& w = weights.Next();
    kernels::MatMul(setup.context, MatView<const float>(x.data(), m, k), w, {},
                    MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
    bytes = static_cast<double>(w.size_bytes());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), bytes);
}

// With the rows' quantization, which every product pays.
void MatMulQ8(benchmark::State& state) {
  Setup setup(state, 4);
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  ColdMatrices& weights = ColdMatrices::Of(k, n, DType::kQ8, setup.pool);
  const std::vector<float> x = RandomFloats(m * k, 1);
  kernels::Q8Scratch scratch(m, k);
  std::vector<float> y(static_cast<size_t>(m * n));
  double bytes = 0;
  while (state.KeepRunning()) {
    const kernels::PackedMatrix& w = weights.Next();
    kernels::MatMul(setup.context,
                    scratch.Quantize(setup.context, MatView<const float>(x.data(), m, k)), w, {},
                    MatView<float>(y.data(), m, n));
    benchmark::DoNotOptimize(y.data());
    bytes = static_cast<double>(w.size_bytes());
  }
  SetRates(state, 2.0 * static_cast<double>(m * n * k), bytes);
}

// The four experts of one MoE layer of StableLM-1.6B x 4 over rows that are sorted by expert, each
// of `tokens` in two of them: gate and up, activation, down. dtype 1 is bf16, 2 is q8.
void GroupedExperts(benchmark::State& state) {
  Setup setup(state, 3);
  constexpr int64_t kWidth = 2048;
  constexpr int64_t kInner = 5632;
  constexpr int64_t kExperts = 4;
  constexpr int64_t kTopK = 2;
  const DType dtype = state.range(2) == 1 ? DType::kBf16 : DType::kQ8;
  const int64_t rows = state.range(1) * kTopK / kExperts;  // of an expert
  const checkpoint::FfnSpec spec{
      .is_gated = true, .activation = checkpoint::ActivationKind::kSilu, .inner_dim = kInner};
  const auto expert_bytes = static_cast<int64_t>(model::FfnBytes(spec, kWidth, dtype));
  std::vector<model::FfnWeights> experts;
  const std::vector<float> values = RandomFloats(2 * kInner * kWidth, 2);
  for (int64_t i = 0; i < kExperts * std::max<int64_t>(1, kColdBytes / (kExperts * expert_bytes));
       ++i) {
    model::FfnWeights& expert = experts.emplace_back();
    expert.spec = spec;
    expert.up = kernels::PackedMatrix(2 * kInner, kWidth, dtype);
    expert.down = kernels::PackedMatrix(kWidth, kInner, dtype);
    expert.up.PackRows(0, MatView<const float>(values.data(), 2 * kInner, kWidth), setup.pool);
    expert.down.PackRows(0, MatView<const float>(values.data(), kWidth, kInner), setup.pool);
  }
  const std::vector<Bf16> x = ToBf16s(RandomFloats(rows * kExperts * kWidth, 1));
  model::FfnScratch scratch(spec, kWidth, rows * kExperts, dtype);
  std::vector<float> y(x.size());
  std::vector<model::FfnCall<Bf16>> calls(kExperts);
  size_t next = 0;
  const auto run = [&] {
    for (int64_t e = 0; e < kExperts; ++e, next = (next + 1) % experts.size()) {
      const int64_t at = e * rows * kWidth;
      calls[static_cast<size_t>(e)] = {&experts[next],
                                       MatView<const Bf16>(x.data() + at, rows, kWidth),
                                       MatView<float>(y.data() + at, rows, kWidth)};
    }
    model::FfnForwardAll(setup.context, std::span<const model::FfnCall<Bf16>>(calls), scratch);
    benchmark::DoNotOptimize(y.data());
  };
  // A call is long enough to be the only one that is timed, and the first one touches the pages of
  // the scratch.
  run();
  while (state.KeepRunning()) {
    run();
  }
  SetRates(state, 2.0 * 3.0 * static_cast<double>(rows * kExperts * kWidth * kInner),
           static_cast<double>(kExperts * expert_bytes));
}

// `rows` queries at the end of a context of `tokens`: 1 is decode, more a chunk of prefill, where a
// row sees what is before it (is_causal) or all (a vision tower). Keys and values are bf16, and of
// as many contexts as fill a GiB.
void Attention(benchmark::State& state) {
  const Setup setup(state, 6);
  const kernels::Context& context = setup.context;
  const int64_t rows = state.range(1);
  const int64_t tokens = state.range(2);
  const int64_t heads = state.range(3);
  const int64_t head_dim = state.range(4);
  const bool is_causal = state.range(5) != 0;
  const kernels::KvLayout layout{
      .num_kv_heads = heads, .head_dim = head_dim, .dtype = DType::kBf16};
  const int64_t blocks = (tokens + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const size_t bytes = static_cast<size_t>(blocks) * layout.block_bytes();
  const size_t contexts = std::max<size_t>(1, static_cast<size_t>(kColdBytes) / bytes);
  AlignedBuffer memory(contexts * bytes);
  std::vector<int32_t> table;
  for (int64_t block = 0; block < blocks; ++block) {
    table.push_back(static_cast<int32_t>(block));
  }
  const std::vector<float> values = RandomFloats(heads * head_dim, 3);
  for (int64_t t = 0; t < tokens; ++t) {
    kernels::StoreKv(context, layout, values, values, t % kernels::kKvBlockTokens,
                     memory.As<std::byte>() +
                         static_cast<size_t>(t / kernels::kKvBlockTokens) * layout.block_bytes());
  }
  for (size_t c = 1; c < contexts; ++c) {
    std::memcpy(memory.As<std::byte>() + c * bytes, memory.As<std::byte>(), bytes);
  }
  const std::vector<float> q = RandomFloats(rows * heads * head_dim, 4);
  std::vector<float> out(q.size());
  std::vector<kernels::KvRange> ranges(static_cast<size_t>(rows));
  const int64_t width = heads * head_dim;
  size_t next = 0;
  while (state.KeepRunning()) {
    for (int64_t r = 0; r < rows; ++r) {
      ranges[static_cast<size_t>(r)] = {memory.As<std::byte>() + next * bytes, layout.block_bytes(),
                                        table.data(), 0,
                                        is_causal ? tokens - rows + r + 1 : tokens};
    }
    kernels::Attend(context, layout, heads, 0.125f, MatView<const float>(q.data(), rows, width),
                    ranges, MatView<float>(out.data(), rows, width));
    benchmark::DoNotOptimize(out.data());
    next = (next + 1) % contexts;
  }
  const double seen =
      static_cast<double>(tokens) - (is_causal ? 0.5 * static_cast<double>(rows - 1) : 0.0);
  SetRates(state, 4.0 * seen * static_cast<double>(rows * width), static_cast<double>(bytes));
}

// Operations per element of its result, as the formula is written: every +, -, x, /, max and exp
// one. In the order of the argument `op`.
struct RowOp {
  const char* name;
  double operations;
  int64_t inputs;  // elements read per element written
};
constexpr RowOp kRowOps[] = {{"layernorm", 8, 1}, {"rmsnorm", 4, 1}, {"silu x up", 5, 2},
                             {"gelu tanh", 9, 1}, {"softmax", 5, 1}, {"round to bf16", 1, 1}};

// 64 rows of 5632 elements. is_cold 0: one set of rows, which stays in the caches as it does from
// one kernel of a layer to the next; 1: from memory.
void Elementwise(benchmark::State& state) {
  const Setup setup(state, 3);
  const kernels::Context& context = setup.context;
  const auto op = static_cast<size_t>(state.range(1));
  constexpr int64_t kRows = 64;
  constexpr int64_t kCols = 5632;
  constexpr int64_t kInputs = 2 * kRows * kCols;
  constexpr int64_t kOutputs = kRows * kCols;
  const std::vector<float> values = RandomFloats(kInputs, 5);
  const int64_t sets =
      state.range(2) == 0
          ? 1
          : kColdBytes / (static_cast<int64_t>(sizeof(float)) * (kInputs + kOutputs));
  AlignedBuffer inputs(static_cast<size_t>(sets * kInputs) * sizeof(float));
  AlignedBuffer outputs(static_cast<size_t>(sets * kOutputs) * sizeof(float));
  for (int64_t set = 0; set < sets; ++set) {
    std::copy(values.begin(), values.end(), inputs.As<float>() + set * kInputs);
    std::copy_n(values.begin(), kOutputs, outputs.As<float>() + set * kOutputs);
  }
  const std::vector<float> w = RandomFloats(kCols, 6);
  int64_t next = 0;
  while (state.KeepRunning()) {
    const float* x = inputs.As<float>() + next * kInputs;
    float* y = outputs.As<float>() + next * kOutputs;
    const MatView<const float> in(x, kRows, kCols);
    const MatView<float> out(y, kRows, kCols);
    switch (op) {
      case 0:
        kernels::LayerNorm(context, in, w, w, 1e-5f, out);
        break;
      case 1:
        kernels::RmsNorm(context, in, w, 1e-5f, out);
        break;
      case 2:
        kernels::GatedActivate(context, kernels::Activation::kSilu,
                               MatView<const float>(x, kRows, 2 * kCols), out);
        break;
      case 3:
        kernels::Activate(context, kernels::Activation::kGeluTanh, out);  // in place
        break;
      case 4:
        kernels::Softmax(context, out);  // in place
        break;
      default:
        kernels::RoundToBf16(context, in, MatView<Bf16>(reinterpret_cast<Bf16*>(y), kRows, kCols));
        break;
    }
    benchmark::DoNotOptimize(y);
    next = (next + 1) % sets;
  }
  const RowOp& row_op = kRowOps[op];
  state.SetLabel(std::string(kernels::NameOf(setup.isa)) + " " + row_op.name);
  const double written = op == 5 ? sizeof(Bf16) : sizeof(float);
  SetRates(state, row_op.operations * kOutputs,
           (static_cast<double>(row_op.inputs) * sizeof(float) + written) * kOutputs);
}

// Lists of sizes on every vector path and every number of threads. Sizes are outermost, as weights
// of a shape are made once.
void OnAllPaths(Definition* definition, const std::vector<std::vector<int64_t>>& sizes) {
  for (const std::vector<int64_t>& size : sizes) {
    for (const Isa isa : kernels::SupportedIsas()) {
      if (isa == Isa::kScalar) {
        continue;
      }
      for (const int64_t threads : ThreadCounts()) {
        std::vector<int64_t> args = size;
        args.insert(args.begin(), static_cast<int64_t>(isa));
        args.push_back(threads);
        definition->Args(args);
      }
    }
  }
  definition->UseRealTime()->Unit(benchmark::kMicrosecond)->MinTime(0.2);
}

void MatMulSizes(Definition* definition) {
  definition->ArgNames({"isa", "m", "k", "n", "threads"});
  std::vector<std::vector<int64_t>> sizes;
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 5632}, {5632, 2048}}) {
    for (const int64_t m : {1, 2, 4, 8, 16, 64, 256, 640}) {
      sizes.push_back({m, k, n});
    }
  }
  // The 577 positions of CLIP-L at 336 pixels.
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{1024, 1024}, {1024, 4096}, {4096, 1024}}) {
    sizes.push_back({577, k, n});
  }
  OnAllPaths(definition, sizes);
}

void AttentionSizes(Definition* definition) {
  definition->ArgNames({"isa", "rows", "tokens", "heads", "head_dim", "causal", "threads"});
  // Decode and prefill of StableLM-1.6B and Phi-2, and the 577 positions of CLIP-L at 336 pixels.
  OnAllPaths(definition, {{1, 64, 32, 64, 1},
                          {1, 512, 32, 64, 1},
                          {1, 2048, 32, 64, 1},
                          {512, 512, 32, 64, 1},
                          {1, 2048, 32, 80, 1},
                          {512, 1024, 32, 80, 1},
                          {577, 577, 16, 64, 0}});
}

void ExpertSizes(Definition* definition) {
  definition->ArgNames({"isa", "tokens", "dtype", "threads"});
  OnAllPaths(definition, {{640, 1}, {64, 1}, {640, 2}, {64, 2}});
}

void ElementwiseSizes(Definition* definition) {
  definition->ArgNames({"isa", "op", "is_cold", "threads"});
  std::vector<std::vector<int64_t>> sizes;
  for (int64_t op = 0; op < static_cast<int64_t>(std::size(kRowOps)); ++op) {
    sizes.push_back({op, 0});
    sizes.push_back({op, 1});
  }
  OnAllPaths(definition, sizes);
}

// The bounds stand before and after all others, as a machine may change between.
void RegisterBounds(const std::string& name) {
  for (const int64_t threads : ThreadCounts()) {
    for (const kernels::ReadVariant& variant : kernels::ReadVariants()) {
      benchmark::RegisterBenchmark((name + "Read").c_str(), &Read)
          ->ArgNames({"streams", "prefetch", "threads"})
          ->Args({variant.num_streams, variant.has_prefetch ? 1 : 0, threads})
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond)
          ->Iterations(3);
    }
    for (const Isa isa : kernels::SupportedIsas()) {
      for (int64_t op = 0; op < 3; ++op) {
        const bool has_dot = isa == Isa::kAvx512Bf16;
        if (isa == Isa::kScalar || (op == 1 && !has_dot)) {
          continue;
        }
        benchmark::RegisterBenchmark((name + "Peak").c_str(), &Peak)
            ->ArgNames({"isa", "op", "threads"})
            ->Args({static_cast<int64_t>(isa), op, threads})
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond)
            ->Iterations(1);
      }
    }
  }
}

}  // namespace

#ifdef CONCLAVE_HAS_ONEDNN
void RegisterOneDnn(int64_t threads);  // onednn_bench.cc
#endif

void RegisterAll() {
  RegisterBounds("BoundsBefore");
  benchmark::RegisterBenchmark("MatMulBf16", &MatMulBf16)->Apply(MatMulSizes);
  benchmark::RegisterBenchmark("MatMulF32", &MatMulF32)->Apply(MatMulSizes);
  benchmark::RegisterBenchmark("MatMulQ8", &MatMulQ8)->Apply(MatMulSizes);
  benchmark::RegisterBenchmark("GroupedExperts", &GroupedExperts)->Apply(ExpertSizes);
  benchmark::RegisterBenchmark("Attention", &Attention)->Apply(AttentionSizes);
  benchmark::RegisterBenchmark("Elementwise", &Elementwise)->Apply(ElementwiseSizes);
#ifdef CONCLAVE_HAS_ONEDNN
  RegisterOneDnn(ThreadCounts().back());
#endif
  RegisterBounds("BoundsAfter");
}

}  // namespace conclave::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
    return 2;
  }
  conclave::bench::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
