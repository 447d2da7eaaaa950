// Our GEMM against oneDNN's matmul: the same values, in one process, in turns.
//
// Each turn calls one side some times on weights that lie cold in memory: after a pause, in which
// the threads of the other side, which spin for a while, go to sleep, and after one call that does
// not count, which wakes its own. Counters: median milliseconds of a call of each; `speedup` =
// oneDNN's time over ours (above 1 we are faster), with its least and most over the rounds.
#include <omp.h>

#include <chrono>
#include <cmath>
#include <dnnl.hpp>
#include <thread>

#include "bench_common.h"
#include "conclave/kernels/quantize.h"

namespace conclave::bench {
namespace {

using dnnl::memory;
using SteadyClock = std::chrono::steady_clock;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <typename Fn>
std::vector<double> TimeCalls(int count, const Fn& call) {
  // Longer than OpenMP's threads spin after a loop.
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  call();
  std::vector<double> seconds;
  for (int i = 0; i < count; ++i) {
    const SteadyClock::time_point start = SteadyClock::now();
    call();
    seconds.push_back(std::chrono::duration<double>(SteadyClock::now() - start).count());
  }
  return seconds;
}

// y [m, n] f32 = x [m, k] · Wᵀ by oneDNN, with weights in the layout that it chooses for this m.
class OneDnnMatMul {
 public:
  // `rows` are the weights [n, k]; x is bf16 and so are the weights, or u8 and they are s8.
  OneDnnMatMul(int64_t m, int64_t k, int64_t n, bool is_int8, const std::vector<float>& rows,
               const std::vector<Bf16>& x)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using Type = memory::data_type;
    const Type x_type = is_int8 ? Type::u8 : Type::bf16;
    const Type w_type = is_int8 ? Type::s8 : Type::bf16;
    const memory::desc x_desc({m, k}, x_type, memory::format_tag::ab);
    const memory::desc any({k, n}, w_type, memory::format_tag::any);
    const memory::desc y_desc({m, n}, Type::f32, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc chosen(dnnl::matmul::desc(x_desc, any, y_desc), engine_);
    implementation_ = chosen.impl_info_str();
    matmul_ = dnnl::matmul(chosen);
    x_ = memory(x_desc, engine_);
    y_ = memory(y_desc, engine_);
    memory plain(memory::desc({k, n}, w_type, memory::format_tag::ba), engine_);
    if (is_int8) {
      auto* to = static_cast<int8_t*>(plain.get_data_handle());
      for (size_t i = 0; i < rows.size(); ++i) {
        to[i] = static_cast<int8_t>(std::lround(rows[i] * 127.0f));
      }
      std::fill_n(static_cast<uint8_t*>(x_.get_data_handle()), m * k, uint8_t{77});
    } else {
      auto* to = static_cast<Bf16*>(plain.get_data_handle());
      std::transform(rows.begin(), rows.end(), to, [](float value) { return ToBf16(value); });
      std::copy(x.begin(), x.end(), static_cast<Bf16*>(x_.get_data_handle()));
    }
    const auto bytes = static_cast<int64_t>(chosen.weights_desc().get_size());
    for (int64_t i = 0; i < (kColdBytes + bytes - 1) / bytes; ++i) {
      memory& w = weights_.emplace_back(chosen.weights_desc(), engine_);
      dnnl::reorder(plain, w).execute(stream_, plain, w);
    }
    stream_.wait();
  }

  void Call() {
    next_ = (next_ + 1) % weights_.size();
    matmul_.execute(stream_,
                    {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weights_[next_]}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

  const float* result() const { return static_cast<const float*>(y_.get_data_handle()); }
  const std::string& implementation() const { return implementation_; }

 private:
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul matmul_;
  memory x_;
  memory y_;
  std::vector<memory> weights_;
  std::string implementation_;
  size_t next_ = 0;
};

// Whether both computed the same product. Each sums k terms of at most 1 in f32, in an order of its
// own: they differ by less than k roundings of a sum that is below k.
bool IsSame(const float* a, const float* b, int64_t count, int64_t k) {
  const double limit = static_cast<double>(k) * static_cast<double>(k) * 0x1p-24;
  for (int64_t i = 0; i < count; ++i) {
    if (!(std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])) <= limit)) {
      return false;
    }
  }
  return true;
}

// dtype 1: bf16. 2: our q8, quantization of the rows included, against u8 · s8 of rows that were
// quantized before.
void VsOneDnn(benchmark::State& state) {
  Setup setup(state, 5);
  const int64_t m = state.range(1);
  const int64_t k = state.range(2);
  const int64_t n = state.range(3);
  const bool is_int8 = state.range(4) == 2;
  omp_set_num_threads(setup.pool.num_threads());
  ColdMatrices& weights = ColdMatrices::Of(k, n, is_int8 ? DType::kQ8 : DType::kBf16, setup.pool);
  const std::vector<float> x = RandomFloats(m * k, 1);
  const std::vector<Bf16> x16 = ToBf16s(x);
  kernels::Q8Scratch scratch(m, k);
  std::vector<float> y(static_cast<size_t>(m * n));
  const auto ours = [&] {
    const MatView<float> out(y.data(), m, n);
    if (is_int8) {
      const MatView<const float> in(x.data(), m, k);
      kernels::MatMul(setup.context, scratch.Quantize(setup.context, in), weights.Next(), {}, out);
    } else {
      const MatView<const Bf16> in(x16.data(), m, k);
      kernels::MatMul(setup.context, in, weights.Next(), {}, out);
    }
  };
  OneDnnMatMul theirs(m, k, n, is_int8, weights.rows(), x16);
  const auto call_theirs = [&] { theirs.Call(); };
  constexpr int kRounds = 5;
  const int calls = m <= 16 ? 12 : 3;
  std::vector<double> of_ours;
  std::vector<double> of_theirs;
  std::vector<double> speedups;
  while (state.KeepRunning()) {
    for (int round = 0; round < kRounds; ++round) {
      std::vector<double> a;
      std::vector<double> b;
      // Who is first changes, so that a load that comes and goes meets both alike.
      if (round % 2 == 0) {
        a = TimeCalls(calls, ours);
        b = TimeCalls(calls, call_theirs);
      } else {
        b = TimeCalls(calls, call_theirs);
        a = TimeCalls(calls, ours);
      }
      speedups.push_back(Median(b) / Median(a));
      of_ours.insert(of_ours.end(), a.begin(), a.end());
      of_theirs.insert(of_theirs.end(), b.begin(), b.end());
    }
  }
  if (!is_int8 && !IsSame(y.data(), theirs.result(), m * n, k)) {
    state.SkipWithError("the two results differ");
    return;
  }
  const double operations = 2.0 * static_cast<double>(m * n * k);
  state.SetLabel(std::string(kernels::NameOf(setup.isa)) + " against " + theirs.implementation());
  state.counters["ours_ms"] = Median(of_ours) * 1e3;
  state.counters["onednn_ms"] = Median(of_theirs) * 1e3;
  state.counters["ours_op/s"] = operations / Median(of_ours);
  state.counters["onednn_op/s"] = operations / Median(of_theirs);
  state.counters["speedup"] = Median(speedups);
  state.counters["speedup_min"] = *std::min_element(speedups.begin(), speedups.end());
  state.counters["speedup_max"] = *std::max_element(speedups.begin(), speedups.end());
}

}  // namespace

// `threads`: as many as a server would take.
void RegisterOneDnn(int64_t threads) {
  auto* definition = benchmark::RegisterBenchmark("VsOneDnn", &VsOneDnn);
  definition->ArgNames({"isa", "m", "k", "n", "dtype", "threads"});
  const auto isa = static_cast<int64_t>(kernels::SupportedIsas().back());
  for (const int64_t dtype : {1, 2}) {
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 5632}, {5632, 2048}}) {
      for (const int64_t m : {1, 2, 4, 8, 16, 64, 256, 640}) {
        definition->Args({isa, m, k, n, dtype, threads});
      }
    }
  }
  definition->UseRealTime()->Unit(benchmark::kMillisecond)->Iterations(1);
}

}  // namespace conclave::bench
