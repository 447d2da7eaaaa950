// model_bench DIR: one model in one process, beside the machine's bounds measured in the same run:
// load time, peak memory, image encode, prefill and decode rates.
//
//   model_bench DIR [--dtype f32|bf16] [--threads N] [--workers N] [--prompt TOKENS] [--generate
//   TOKENS]
#include <immintrin.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "assembly.h"
#include "bandwidth.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/engine.h"

namespace conclave {
namespace {

using Seconds = std::chrono::duration<double>;

struct Options {
  std::string folder;
  DType dtype = DType::kBf16;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int workers = 1;
  int prompt = 512;
  int generate = 32;
};

double PeakResidentGb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024.0 / 1e9;
}

// VDPBF16PS from registers only: what no GEMM can exceed. One instruction is 16 lanes of two
// multiply-adds; twelve sums hide its latency, and unrolled loops keep them in registers.
__attribute__((target("avx512f,avx512bf16"))) double Bf16LoopFlops(int64_t iterations) {
  __m512 sums[12];
#pragma GCC unroll 12
  for (__m512& sum : sums) {
    sum = _mm512_setzero_ps();
  }
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(0.5f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25f), _mm512_set1_ps(1.5f));
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, a, b);
    }
    // Keeps the compiler from folding the loop.
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      asm volatile("" : "+v"(sum));
    }
  }
  float total = 0;
#pragma GCC unroll 12
  for (const __m512& sum : sums) {
    total += _mm512_reduce_add_ps(sum);
  }
  asm volatile("" : : "x"(total));
  return static_cast<double>(iterations) * 12.0 * 64.0;
}

double Bf16PeakGflops(int threads) {
  if (!kernels::IsSupported(kernels::Isa::kAvx512Bf16)) {
    return 0;
  }
  ThreadPool pool(threads);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<double> flops(static_cast<size_t>(threads));
    pool.ParallelFor(threads,
                     [&](int64_t t) { flops[static_cast<size_t>(t)] = Bf16LoopFlops(5'000'000); });
    double total = 0;
    for (const double f : flops) {
      total += f;
    }
    best = std::max(best, total / Seconds(std::chrono::steady_clock::now() - start).count() / 1e9);
  }
  return best;
}

class Times : public frontend::SequenceSink {
 public:
  bool OnToken(const frontend::SequenceToken& /*token*/) override {
    at.push_back(std::chrono::steady_clock::now());
    return true;
  }
  void OnEnd(frontend::FinishReason /*reason*/, const absl::Status& end,
             const frontend::SequenceStats&) override {
    status = end;
  }

  std::vector<std::chrono::steady_clock::time_point> at;
  absl::Status status;
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (arg == "--dtype") {
      options.dtype = std::string(value) == "f32" ? DType::kF32 : DType::kBf16;
      ++i;
    } else if (arg == "--threads") {
      options.threads = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--workers") {
      options.workers = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--prompt") {
      options.prompt = std::max(1, std::atoi(argv[++i]));
    } else if (arg == "--generate") {
      options.generate = std::max(2, std::atoi(argv[++i]));
    } else {
      options.folder = arg;
    }
  }
  return options;
}

// Bytes of weights that one decoded token reads: everything but the embedding and the experts it is
// not sent to.
double DecodeBytes(const cli::Assembly& model, DType dtype) {
  const checkpoint::ModelDesc& desc = model.desc();
  const double width = static_cast<double>(SizeOf(dtype));
  const double embedding = static_cast<double>(desc.vocab_rows) * desc.hidden_dim * width;
  double expert_share = 0;
  for (const auto& worker : model.workers) {
    expert_share += static_cast<double>(worker->weight_bytes());
  }
  if (!desc.moe.layers.empty()) {
    expert_share *= static_cast<double>(desc.moe.top_k) / desc.moe.layers[0].num_experts;
  }
  return static_cast<double>(model.decoder->weight_bytes()) - embedding + expert_share;
}

void EncodeImages(const cli::Assembly& model) {
  std::vector<float> rows;
  const auto size = static_cast<size_t>(model.desc().vision.image_size);
  const std::vector<float> pixels(3 * size * size, 0.1f);
  for (int round = 0; round < 2; ++round) {
    const auto before = std::chrono::steady_clock::now();
    model.tower->Encode(pixels, rows, nullptr);
    std::printf("image encode %d: %.0f ms\n", round + 1,
                Seconds(std::chrono::steady_clock::now() - before).count() * 1e3);
  }
}

// Whether the request was answered.
bool Generate(const Options& options, const cli::Assembly& model, double bandwidth, int round,
              frontend::Engine& engine) {
  frontend::SequenceRequest request;
  for (int i = 0; i < options.prompt; ++i) {
    // A different prompt each round, so that none is taken from kept blocks.
    request.tokens.push_back((i * 7 + round * 13 + 5) % model.tokenizer->size());
  }
  request.max_tokens = options.generate;
  const auto sink = std::make_shared<Times>();
  const auto before = std::chrono::steady_clock::now();
  (void)engine.Submit(std::move(request), sink);
  while (engine.Step()) {
  }
  if (!sink->status.ok() || sink->at.empty()) {
    std::fprintf(stderr, "error: %s\n", std::string(sink->status.message()).c_str());
    return false;
  }
  const double prefill = Seconds(sink->at.front() - before).count();
  const double per_token =
      Seconds(sink->at.back() - sink->at.front()).count() / (options.generate - 1);
  const double read = DecodeBytes(model, options.dtype) / per_token;
  std::printf(
      "round %d: prefill %d tokens %.1f t/s; decode %.2f t/s, %.1f GB/s = %.0f %% of read "
      "bandwidth\n",
      round + 1, options.prompt, options.prompt / prefill, 1.0 / per_token, read / 1e9,
      100.0 * read / bandwidth);
  return true;
}

double WeightBytes(const cli::Assembly& model) {
  auto weights = static_cast<double>(model.decoder->weight_bytes());
  for (const auto& worker : model.workers) {
    weights += static_cast<double>(worker->weight_bytes());
  }
  return weights + (model.tower == nullptr ? 0 : static_cast<double>(model.tower->weight_bytes()));
}

// Bytes per second.
double PrintMachine(int threads) {
  ThreadPool reading(threads);
  const double bandwidth =
      cli::MeasureReadBandwidth(reading, int64_t{1} << 30, std::chrono::milliseconds(1500));
  std::printf("machine, %d threads: read %.1f GB/s, bf16 peak %.0f GFLOP/s\n", threads,
              bandwidth / 1e9, Bf16PeakGflops(threads));
  return bandwidth;
}

int Run(const Options& options) {
  const double bandwidth = PrintMachine(options.threads);
  ThreadPool pool(options.threads);
  const auto start = std::chrono::steady_clock::now();
  auto model = cli::Assembly::Open(options.folder);
  if (!model.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(model.status().message()).c_str());
    return 4;
  }
  frontend::EngineOptions engine_options;
  engine_options.max_num_seqs = 1;
  engine_options.prefill_chunk = 512;
  engine_options.max_model_len = options.prompt + options.generate + 1;
  cli::AssemblyOptions load;
  load.dtype = options.dtype;
  load.compute = kernels::Context(kernels::SupportedIsas().back(), pool);
  load.num_workers = options.workers;
  load.max_rows = frontend::MaxStepRows(engine_options);
  load.max_logit_rows = 1;
  if (const absl::Status status = (*model)->Load(load, nullptr); !status.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
    return 4;
  }
  const double load_seconds = Seconds(std::chrono::steady_clock::now() - start).count();
  if ((*model)->tower != nullptr) {
    EncodeImages(**model);
  }

  frontend::Engine engine(engine_options, *(*model)->decoder, *(*model)->dispatcher,
                          (*model)->tokenizer->size(), Clock::Real(), nullptr);
  for (int round = 0; round < 2; ++round) {
    if (!Generate(options, **model, bandwidth, round, engine)) {
      return 70;
    }
  }
  const double weights = WeightBytes(**model);
  const auto kv = static_cast<double>(
      model::KvPool::BlockBytes((*model)->decoder->kv_layout(), (*model)->desc().num_layers) *
      static_cast<size_t>((engine_options.max_model_len + 31) / 32));
  std::printf(
      "load %.1f s; weights in use %.2f GB, KV %.2f GB, peak resident %.2f GB = %.2f x (weights + "
      "KV)\n",
      load_seconds, weights / 1e9, kv / 1e9, PeakResidentGb(),
      PeakResidentGb() * 1e9 / (weights + kv));
  return 0;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  const conclave::Options options = conclave::Parse(argc, argv);
  if (options.folder.empty()) {
    std::fprintf(
        stderr,
        "usage: model_bench DIR [--dtype f32|bf16] [--threads N] [--workers N] [--prompt N] "
        "[--generate N]\n");
    return 2;
  }
  return conclave::Run(options);
}
