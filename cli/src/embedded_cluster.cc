#include "embedded_cluster.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <ctime>
#include <utility>
#include <vector>

#include "assembly.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/frontend/chat_service.h"
#include "conclave/frontend/engine.h"
#include "conclave/frontend/gate_counter.h"
#include "conclave/frontend/step_trace.h"
#include "conclave/frontend/straggler_log.h"
#include "conclave/observability/engine_metrics.h"
#include "conclave/observability/log.h"
#include "dispatch_metrics.h"
#include "expert_tokens.h"
#include "live_counters.h"
#include "memory_budget.h"

namespace conclave::cli {
namespace {

using checkpoint::ModelDesc;
using expert_worker::WorkerCore;

double Seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}
double SecondsOfMs(double milliseconds) { return milliseconds / 1000.0; }

observability::Finished FinishedOf(frontend::FinishReason reason) {
  switch (reason) {
    case frontend::FinishReason::kStop:
      return observability::Finished::kStop;
    case frontend::FinishReason::kLength:
      return observability::Finished::kLength;
    case frontend::FinishReason::kCancelled:
      return observability::Finished::kAbort;
    case frontend::FinishReason::kError:
      return observability::Finished::kError;
  }
  return observability::Finished::kError;
}

// Sets the metrics of engine and chat service.
class MetricsBridge : public frontend::EngineObserver, public frontend::ChatObserver {
 public:
  MetricsBridge(const observability::EngineMetrics& metrics, LiveCounters& live)
      : metrics_(metrics), live_(live) {}

  // Any thread.
  uint64_t num_steps() const { return num_steps_.load(std::memory_order_relaxed); }

  void OnStep(const Step& step) override {
    live_.OnStep(step);
    num_steps_.fetch_add(1, std::memory_order_relaxed);
    metrics_.num_requests_running.Set(step.running);
    metrics_.num_requests_waiting.Set(step.waiting);
    metrics_.kv_cache_usage.Set(step.kv_used);
    if (const int32_t rows = step.decode_rows + step.prefill_rows; rows > 0) {
      metrics_.iteration_tokens.Observe(rows);
      metrics_.steps[step.is_divided ? 1 : 0].Add();
    }
  }
  void OnTokenGap(std::chrono::nanoseconds since_last_token) override {
    live_.OnTokenGap(since_last_token);
    metrics_.inter_token.Observe(Seconds(since_last_token));
  }
  void OnSequenceEnd(frontend::FinishReason /*reason*/,
                     const frontend::SequenceStats& stats) override {
    live_.OnSequenceEnd(stats);
    metrics_.prompt_tokens.Add(stats.prompt_rows);
    metrics_.prompt_tokens_cached.Add(stats.cached_rows);
    metrics_.prefix_cache_queries.Add(stats.prompt_rows);
    metrics_.prefix_cache_hits.Add(stats.cached_rows);
    metrics_.generation_tokens.Add(stats.generated);
    if (stats.generated > 1) {
      metrics_.time_per_output_token.Observe(Seconds(stats.total - stats.first_token) /
                                             static_cast<double>(stats.generated - 1));
    }
  }
  void OnPreemption() override {
    live_.OnPreemption();
    metrics_.num_preemptions.Add();
  }
  void OnImage(image::ImageFormat format, std::chrono::nanoseconds decode,
               std::chrono::nanoseconds encode, bool was_cached) override {
    live_.OnImage(was_cached);
    Count(format, was_cached ? ImageResult::kCached : ImageResult::kEncoded);
    metrics_.image_cache_queries.Add();
    metrics_.image_preprocess.Observe(Seconds(decode));
    if (was_cached) {
      metrics_.image_cache_hits.Add();
    } else {
      metrics_.vision_encode.Observe(Seconds(encode));
    }
  }
  void OnImageRefused(image::ImageFormat format) override { Count(format, ImageResult::kRefused); }
  void OnRequestEnd(frontend::FinishReason reason, const frontend::Usage& usage,
                    const frontend::Timings& timings) override {
    live_.OnRequestEnd(reason, usage, timings);
    metrics_.CountFinished(FinishedOf(reason));
    if (usage.completion_tokens == 0) {
      return;
    }
    metrics_.time_to_first_token.Observe(SecondsOfMs(timings.first_token_ms));
    metrics_.e2e_latency.Observe(SecondsOfMs(timings.first_token_ms + timings.decode_ms));
    metrics_.queue_time.Observe(SecondsOfMs(timings.queue_ms));
    metrics_.prefill_time.Observe(SecondsOfMs(timings.prefill_ms));
    metrics_.decode_time.Observe(SecondsOfMs(timings.decode_ms));
    metrics_.inference_time.Observe(SecondsOfMs(timings.prefill_ms + timings.decode_ms));
    metrics_.request_prompt_tokens.Observe(usage.prompt_tokens);
    metrics_.request_generation_tokens.Observe(usage.completion_tokens);
  }

 private:
  using ImageResult = observability::ImageResult;
  static_assert(static_cast<int>(image::ImageFormat::kBmp) + 1 == observability::kNumImageFormats);

  void Count(image::ImageFormat format, ImageResult result) {
    metrics_.images[static_cast<size_t>(format)][static_cast<size_t>(result)].Add();
  }

  const observability::EngineMetrics metrics_;
  LiveCounters& live_;
  std::atomic<uint64_t> num_steps_{0};
};

// The gates and the workers as a scrape sees them. Metrics outlive the cluster, so the links are
// cut when the cluster ends.
struct LoadSource {
  Mutex mu;
  const frontend::GateCounter* gates ABSL_GUARDED_BY(mu) = nullptr;
  const std::vector<std::unique_ptr<WorkerCore>>* workers ABSL_GUARDED_BY(mu) = nullptr;
  const frontend::Dispatcher* dispatcher ABSL_GUARDED_BY(mu) = nullptr;

  // What the gates chose, with ranks and weights.
  std::vector<observability::ExpertTokens> OfGates() {
    std::vector<observability::ExpertTokens> out;
    MutexLock lock(mu);
    if (gates == nullptr) {
      return out;
    }
    for (const frontend::GateCounter::Load& load : gates->Loads()) {
      observability::ExpertTokens sample;
      sample.layer = load.layer;
      sample.expert = load.expert;
      sample.modality =
          load.is_image ? observability::Modality::kImage : observability::Modality::kText;
      sample.phase =
          load.is_prefill ? observability::Phase::kPrefill : observability::Phase::kDecode;
      sample.rank = load.rank == 0 ? observability::Rank::kTop1 : observability::Rank::kTop2;
      sample.tokens = load.rows;
      sample.weights = load.weights;
      out.push_back(sample);
    }
    return out;
  }

  // Each expert's first choices and probability.
  std::vector<observability::ExpertTokens> OfProbabilities() {
    std::vector<observability::ExpertTokens> out;
    MutexLock lock(mu);
    if (gates == nullptr) {
      return out;
    }
    // Both go by layer and expert, the loads of one expert one after the other.
    const std::vector<double> probabilities = gates->Probabilities();
    out.reserve(probabilities.size());
    for (const frontend::GateCounter::Load& load : gates->Loads()) {
      if (out.empty() || out.back().layer != load.layer || out.back().expert != load.expert) {
        observability::ExpertTokens& sample = out.emplace_back();
        sample.layer = load.layer;
        sample.expert = load.expert;
        sample.weights = probabilities[out.size() - 1];
      }
      out.back().tokens += load.rank == 0 ? load.rows : 0;
    }
    return out;
  }

  // What the dispatcher has counted.
  DispatchReading OfDispatcher() {
    MutexLock lock(mu);
    return dispatcher == nullptr ? DispatchReading()
                                 : DispatchReading{dispatcher->Stats(), dispatcher->Workers(),
                                                   dispatcher->Recovery()};
  }

  // What the workers of this process computed.
  std::vector<observability::ExpertTokens> OfWorkers() {
    std::vector<observability::ExpertTokens> out;
    MutexLock lock(mu);
    for (size_t w = 0; workers != nullptr && w < workers->size(); ++w) {
      AppendExpertTokens((*workers)[w]->Loads(), static_cast<int32_t>(w), &out);
    }
    return out;
  }
};

void AddStragglers(observability::Metrics& metrics,
                   const std::shared_ptr<const frontend::StragglerLog>& log) {
  using Waits = frontend::StragglerLog::Waits;
  const auto add = [&](const char* name, const char* help, double (*value)(const Waits&)) {
    metrics.AddCollector(name, help, observability::Metrics::Kind::kCounter, [log, value] {
      std::vector<observability::Metrics::Sample> samples;
      for (const Waits& waits : log->Workers()) {
        samples.push_back({{{"worker", std::to_string(waits.worker.value())}}, value(waits)});
      }
      return samples;
    });
  };
  add("moe_straggler_seconds_total", "Time that layers waited for this worker's answer alone.",
      [](const Waits& waits) { return Seconds(waits.waited); });
  add("moe_straggler_calls_total", "Layers that waited for this worker's answer alone.",
      [](const Waits& waits) { return static_cast<double>(waits.calls); });
}

}  // namespace

struct EmbeddedCluster::State {
  explicit State(const EmbeddedOptions& embedded)
      : options(embedded),
        pool(embedded.num_threads, embedded.cores),
        compute(embedded.isa, pool) {}
  ~State() {
    MutexLock lock(loads->mu);
    loads->workers = nullptr;
    loads->gates = nullptr;
    loads->dispatcher = nullptr;
  }

  // Settles the engine's limits; refuses a model that does not fit.
  absl::Status Plan();
  void StartEngine();
  frontend::ModelCard Card() const;
  live::ModelCard LiveCard() const;

  const EmbeddedOptions options;
  ThreadPool pool;
  const kernels::Context compute;
  frontend::EngineOptions engine_options;
  std::shared_ptr<LoadSource> loads = std::make_shared<LoadSource>();
  // Shared with the metrics, which outlive the cluster.
  std::shared_ptr<frontend::StragglerLog> stragglers = std::make_shared<frontend::StragglerLog>();
  frontend::StepTrace step_trace{stragglers.get()};
  std::unique_ptr<Assembly> assembly;
  LiveCounters live;
  std::unique_ptr<MetricsBridge> bridge;
  std::unique_ptr<frontend::GateCounter> gates;
  std::unique_ptr<frontend::PathCounter> paths;
  std::unique_ptr<frontend::Engine> engine;
  std::unique_ptr<frontend::ChatService> chat;
};

absl::Status EmbeddedCluster::State::Plan() {
  const ModelDesc& desc = assembly->desc();
  for (const std::string& warning : desc.warnings) {
    observability::LogWarning("model", {{"warning", warning}});
  }
  engine_options.max_num_seqs = options.max_num_seqs;
  engine_options.prefill_chunk = options.prefill_chunk;
  engine_options.prefill_chunk_mixed = std::max(1, options.prefill_chunk / 4);
  engine_options.embedding_scaling = options.embedding_scaling;
  engine_options.step_trace = &step_trace;
  engine_options.micro_batches =
      options.links == nullptr && options.micro_batches == frontend::MicroBatching::kAuto
          ? frontend::MicroBatching::kOne
          : options.micro_batches;
  engine_options.max_model_len =
      options.max_model_len > 0 ? options.max_model_len : desc.max_positions;
  if (engine_options.max_model_len > desc.max_positions) {
    return InvalidArgument("config_range",
                           "--max-model-len: the model has fewer positions; expected at most " +
                               std::to_string(desc.max_positions) + ", found " +
                               std::to_string(engine_options.max_model_len));
  }
  CONCLAVE_ASSIGN_OR_RETURN(
      engine_options.kv_bytes,
      PlanMemory(*assembly->checkpoint, {options.dtype, options.kv_bytes, options.max_num_seqs,
                                         engine_options.max_model_len, options.links == nullptr}));
  return absl::OkStatus();
}

frontend::ModelCard EmbeddedCluster::State::Card() const {
  frontend::ModelCard card;
  card.id =
      options.served_model_name.empty() ? assembly->desc().served_name : options.served_model_name;
  card.max_model_len = engine_options.max_model_len;
  card.vocab_size = assembly->tokenizer->size();
  card.has_vision = assembly->tower != nullptr;
  card.num_moe_layers = static_cast<int32_t>(assembly->desc().moe.layers.size());
  card.moe_top_k = assembly->desc().moe.top_k;
  for (const checkpoint::MoeLayerSpec& layer : assembly->desc().moe.layers) {
    card.experts_max = std::max(card.experts_max, layer.num_experts);
  }
  card.created = static_cast<int64_t>(std::time(nullptr));
  card.numeric_mode = std::string(NameOf(options.dtype));
  card.fingerprint = checkpoint::ManifestHash(*assembly->checkpoint).substr(0, 12) + "-" +
                     card.numeric_mode + "-" + std::string(kernels::NameOf(options.isa));
  return card;
}

live::ModelCard EmbeddedCluster::State::LiveCard() const {
  const ModelDesc& desc = assembly->desc();
  live::ModelCard card;
  card.name = options.served_model_name.empty() ? desc.served_name : options.served_model_name;
  card.dtype = std::string(NameOf(options.dtype));
  card.top_k = desc.moe.top_k;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    card.layers.push_back({layer.layer, layer.num_experts});
  }
  // The rows of a picture are its patches, row by row.
  const int32_t side =
      assembly->tower == nullptr
          ? 0
          : static_cast<int32_t>(std::lround(std::sqrt(desc.splice.tokens_per_image)));
  if (side * side == desc.splice.tokens_per_image) {
    card.image_rows = card.image_columns = side;
  }
  return card;
}

void EmbeddedCluster::State::StartEngine() {
  frontend::ChatServiceOptions chat_options;
  chat_options.model = Card();
  chat_options.readiness = options.cluster_readiness;
  chat_options.image_limits.cpu_time_max = options.image_cpu_time_max;
  chat_options.image_memory_bytes = options.image_memory_bytes;
  observability::EngineMetrics metrics;
  model::MoeExecutor* experts = assembly->dispatcher.get();
  if (options.metrics != nullptr) {
    metrics = observability::EngineMetrics(*options.metrics, chat_options.model.id, "0",
                                           engine_options.max_model_len);
    if (const auto& moe = assembly->desc().moe; !moe.layers.empty()) {
      gates = std::make_unique<frontend::GateCounter>(*experts, moe.layers, moe.top_k);
      paths = std::make_unique<frontend::PathCounter>(*gates, moe.layers,
                                                      frontend::MaxStepRows(engine_options));
      experts = paths.get();
    }
    {
      MutexLock lock(loads->mu);
      loads->workers = &assembly->workers;
      loads->gates = gates.get();
      loads->dispatcher = assembly->dispatcher.get();
    }
    const auto of_gates = [source = loads] { return source->OfGates(); };
    observability::AddExpertTokens(*options.metrics, of_gates);
    observability::AddExpertWeights(*options.metrics, of_gates);
    observability::AddGateBalance(*options.metrics,
                                  [source = loads] { return source->OfProbabilities(); });
    if (options.links != nullptr) {
      AddStragglers(*options.metrics, stragglers);
    }
    AddDispatchMetrics(*options.metrics, options.name,
                       [source = loads] { return source->OfDispatcher(); });
    if (!assembly->workers.empty()) {
      observability::AddWorkerTokens(*options.metrics,
                                     [source = loads] { return source->OfWorkers(); });
      AddWorkerInfo(*options.metrics, [count = assembly->workers.size()] {
        std::vector<frontend::MemberLink> links;
        for (size_t w = 0; w < count; ++w) {
          links.push_back({WorkerId(static_cast<int32_t>(w)), std::to_string(w), "", "inproc"});
        }
        return links;
      });
    }
  }
  bridge = std::make_unique<MetricsBridge>(metrics, live);
  engine =
      std::make_unique<frontend::Engine>(engine_options, *assembly->decoder, *experts,
                                         assembly->tokenizer->size(), Clock::Real(), bridge.get());
  engine->Start();
  chat = std::make_unique<frontend::ChatService>(std::move(chat_options), assembly->desc(),
                                                 *assembly->tokenizer, assembly->tower.get(),
                                                 *engine, bridge.get());
}

EmbeddedCluster::EmbeddedCluster(std::unique_ptr<State> state) : state_(std::move(state)) {}
EmbeddedCluster::~EmbeddedCluster() = default;

absl::StatusOr<std::unique_ptr<EmbeddedCluster>> EmbeddedCluster::Start(
    const EmbeddedOptions& options, const Progress& on_progress) {
  auto state = std::make_unique<State>(options);
  CONCLAVE_ASSIGN_OR_RETURN(state->assembly, Assembly::Open(options.model_dir, options.open));
  CONCLAVE_RETURN_IF_ERROR(state->Plan());
  AssemblyOptions load;
  load.dtype = options.dtype;
  load.compute = state->compute;
  load.num_workers = options.num_workers;
  load.use_frames = options.use_frames;
  load.links = options.links;
  load.rescue_bytes = options.rescue_bytes;
  load.is_timing_calls = options.metrics != nullptr;
  load.dispatch_observer = &state->step_trace;
  load.max_rows = frontend::MaxStepRows(state->engine_options);
  // Every sequence may end its prompt in one step.
  load.max_logit_rows = state->engine_options.max_num_seqs;
  CONCLAVE_RETURN_IF_ERROR(state->assembly->Load(load, on_progress));
  state->StartEngine();
  on_progress(1.0, "ready");
  return std::unique_ptr<EmbeddedCluster>(new EmbeddedCluster(std::move(state)));
}

frontend::ChatBackend& EmbeddedCluster::backend() { return *state_->chat; }

const frontend::Dispatcher& EmbeddedCluster::dispatcher() const {
  return *state_->assembly->dispatcher;
}

live::FrontendFigures EmbeddedCluster::Figures() const {
  const State& s = *state_;
  live::FrontendFigures figures;
  figures.model = s.LiveCard();
  s.live.Put(figures);
  if (s.gates != nullptr) {
    PutGates(*s.gates, figures);
    figures.pathways = s.paths->Counts();
  }
  PutDispatcher(*s.assembly->dispatcher, figures);
  return figures;
}

live::ClusterPicture EmbeddedCluster::Picture() const {
  const Assembly& assembly = *state_->assembly;
  live::ClusterPicture picture;
  picture.state = "serving";
  picture.layers = state_->LiveCard().layers;
  picture.replicas_wanted = picture.replicas_lowest = 1;
  for (size_t w = 0; w < assembly.workers.size(); ++w) {
    live::WorkerPicture& worker = picture.workers.emplace_back();
    worker.id = static_cast<int32_t>(w);
    worker.name = std::to_string(w);
    worker.experts = static_cast<int32_t>(assembly.workers[w]->Loads().size());
  }
  if (assembly.placement != nullptr) {
    picture.epoch = assembly.placement->epoch().value() & UINT32_MAX;
    picture.term = static_cast<uint32_t>(assembly.placement->epoch().value() >> 32);
    for (const placement::ExpertUnit unit : assembly.placement->units()) {
      std::vector<int32_t>& holders = picture.placement.emplace_back();
      for (const WorkerId worker : assembly.placement->WorkersOf(unit)) {
        holders.push_back(worker.value());
      }
    }
  }
  return picture;
}

std::string EmbeddedCluster::stragglers() const { return state_->stragglers->Json(); }

service::Pulse EmbeddedCluster::engine_pulse() const {
  const frontend::DispatchStats calls = dispatcher().Stats();
  const uint64_t beats = state_->bridge->num_steps() + calls.calls + calls.retries + calls.hedges +
                         calls.timeouts + calls.waits + calls.rescues;
  return {beats, state_->engine->num_open() == 0};
}

void EmbeddedCluster::Drain(std::chrono::milliseconds timeout) { state_->chat->Drain(timeout); }

}  // namespace conclave::cli
