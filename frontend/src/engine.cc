#include "conclave/frontend/engine.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <deque>
#include <thread>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "micro_batch_policy.h"
#include "sequence.h"
#include "sequence_trace.h"

namespace conclave::frontend {
namespace {

constexpr int32_t kBlockTokens = static_cast<int32_t>(kernels::kKvBlockTokens);

int32_t NumKvBlocks(const EngineOptions& options, const model::Decoder& decoder) {
  const size_t block_bytes =
      model::KvPool::BlockBytes(decoder.kv_layout(), decoder.desc().num_layers);
  const int64_t wanted = options.kv_bytes / static_cast<int64_t>(block_bytes);
  const int64_t least = (options.max_model_len + kBlockTokens - 1) / kBlockTokens;
  // Fewer blocks than one sequence may need would let it wait for itself for ever.
  return static_cast<int32_t>(std::max(wanted, least));
}

bool IsFinite(std::span<const float> values) {
  bool finite = true;
  for (const float value : values) {
    finite &= std::isfinite(value);
  }
  return finite;
}

}  // namespace

void EngineObserver::OnLogits(SequenceId /*sequence*/, int32_t /*position*/,
                              std::span<const float> /*logits*/) {}

int32_t MaxStepRows(const EngineOptions& options) {
  return options.max_num_seqs + std::max(options.prefill_chunk, options.prefill_chunk_mixed);
}

struct Engine::State : public model::StepObserver {
  State(const EngineOptions& engine_options, model::Decoder& model, model::MoeExecutor& moe,
        int32_t vocab, const Clock& time, EngineObserver* engine_observer);

  bool Step();
  // Adds the state of the queues to `step` and tells the observer.
  void Report(EngineObserver::Step step);
  void Loop();
  void TakeInbox();
  void Admit();
  void PlanDecode();
  void PlanPrefill();
  bool EnsureBlocks(Sequence& sequence, int32_t num_positions);
  void Preempt(Sequence& sequence);
  void AddRow(Sequence& sequence, int32_t position, bool is_prefill);
  // Embeddings and image features of the planned rows.
  void FillInput();
  // Whether it was divided into micro-batches.
  bool Run();
  void Advance();
  void PublishBlocks(Sequence& sequence);
  // Samples the next token of a sequence whose last position was computed; `logits` is its row.
  void Emit(Sequence& sequence, std::span<const float> logits);
  void ReleaseBlocks(Sequence& sequence);
  void End(Sequence& sequence, FinishReason reason, const absl::Status& status);
  void OnGate(int32_t layer, MatView<const float> logits, MatView<const float> probabilities,
              const model::GateChoice& choice) override;
  int32_t CountTouched();

  const EngineOptions options;
  model::Decoder& decoder;
  model::MoeExecutor& experts;
  const int32_t vocab_size;
  const Clock& clock;
  EngineObserver* const observer;
  model::KvPool kv;
  MicroBatchPolicy micro_batches;

  // The engine thread's own state. Running: in order of arrival; the youngest is preempted first.
  std::deque<std::unique_ptr<Sequence>> waiting;
  std::vector<std::unique_ptr<Sequence>> running;

  // The step being built. Parallel arrays over rows.
  std::vector<model::StepRow> rows;
  std::vector<Sequence*> row_sequence;
  std::vector<int32_t> logit_rows;
  bool wants_gates = false;
  uint64_t num_resent = 0;  // of the executor, behind the last step
  int32_t num_touched = 0;  // of the step
  bool is_reported_busy = false;
  std::vector<std::pair<float, int32_t>> sampler_scratch;

  Mutex mu;
  CondVar wake;
  std::deque<std::unique_ptr<Sequence>> inbox ABSL_GUARDED_BY(mu);
  std::vector<SequenceId> cancelled ABSL_GUARDED_BY(mu);
  uint64_t next_id ABSL_GUARDED_BY(mu) = 1;
  bool stop ABSL_GUARDED_BY(mu) = false;
  std::atomic<int32_t> num_open{0};

  std::thread thread;  // Last: it uses all of the above.
};

Engine::State::State(const EngineOptions& engine_options, model::Decoder& model,
                     model::MoeExecutor& moe, int32_t vocab, const Clock& time,
                     EngineObserver* engine_observer)
    : options(engine_options),
      decoder(model),
      experts(moe),
      vocab_size(vocab),
      clock(time),
      observer(engine_observer),
      kv(decoder.kv_layout(), decoder.desc().num_layers, NumKvBlocks(options, decoder)),
      micro_batches(decoder.desc().moe.layers.empty() ? MicroBatching::kOne : options.micro_batches,
                    MostExperts(decoder.desc().moe), decoder.desc().moe.top_k) {
  CONCLAVE_CHECK(options.max_num_seqs >= 1 && options.prefill_chunk >= 1 &&
                 options.prefill_chunk_mixed >= 1);
  CONCLAVE_CHECK(options.max_model_len >= 1 &&
                 options.max_model_len <= decoder.desc().max_positions);
  const auto max_rows = static_cast<size_t>(MaxStepRows(options));
  rows.reserve(max_rows);
  row_sequence.reserve(max_rows);
  logit_rows.reserve(max_rows);
  sampler_scratch.reserve(static_cast<size_t>(vocab_size));
}

void Engine::State::TakeInbox() {
  std::vector<SequenceId> to_cancel;
  {
    MutexLock lock(mu);
    for (std::unique_ptr<Sequence>& sequence : inbox) {
      waiting.push_back(std::move(sequence));
    }
    inbox.clear();
    to_cancel.swap(cancelled);
  }
  for (const SequenceId id : to_cancel) {
    const auto has_id = [id](const std::unique_ptr<Sequence>& sequence) {
      return sequence->id == id;
    };
    if (const auto it = std::find_if(running.begin(), running.end(), has_id); it != running.end()) {
      End(**it, FinishReason::kCancelled, absl::OkStatus());
      running.erase(it);
    } else if (const auto at = std::find_if(waiting.begin(), waiting.end(), has_id);
               at != waiting.end()) {
      End(**at, FinishReason::kCancelled, absl::OkStatus());
      waiting.erase(at);
    }
  }
}

void Engine::State::Admit() {
  while (!waiting.empty() && static_cast<int32_t>(running.size()) < options.max_num_seqs) {
    Sequence& sequence = *waiting.front();
    // The last position is always computed: its logits are wanted.
    const size_t reusable = (sequence.keys.size() - 1) / kBlockTokens * kBlockTokens;
    sequence.blocks = kv.AcquirePrefix(std::span(sequence.keys).first(reusable));
    sequence.num_published = static_cast<int32_t>(sequence.blocks.size());
    sequence.num_computed = sequence.num_published * kBlockTokens;
    const int32_t needed =
        (static_cast<int32_t>(sequence.keys.size()) + kBlockTokens) / kBlockTokens -
        sequence.num_published;
    if (!running.empty() && kv.num_free() < needed) {
      // Admitting it now would only preempt somebody.
      ReleaseBlocks(sequence);
      return;
    }
    if (sequence.generated.empty()) {
      sequence.stats.cached_rows = sequence.num_computed;
      sequence.stats.queue = clock.Now() - sequence.submitted;
    }
    if (sequence.trace != nullptr) {
      sequence.trace->OnAdmitted(clock.Now());
    }
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
  }
}

bool Engine::State::EnsureBlocks(Sequence& sequence, int32_t num_positions) {
  while (static_cast<int32_t>(sequence.blocks.size()) * kBlockTokens < num_positions) {
    std::optional<int32_t> block = kv.Allocate();
    while (!block.has_value()) {
      Sequence& youngest = *running.back();
      if (&youngest == &sequence) {
        return false;
      }
      Preempt(youngest);
      block = kv.Allocate();
    }
    sequence.blocks.push_back(*block);
  }
  return true;
}

void Engine::State::Preempt(Sequence& sequence) {
  // Its rows of this step go with it. It starts over later; exactness makes that invisible.
  for (size_t r = rows.size(); r-- > 0;) {
    if (row_sequence[r] == &sequence) {
      rows.erase(rows.begin() + static_cast<ptrdiff_t>(r));
      row_sequence.erase(row_sequence.begin() + static_cast<ptrdiff_t>(r));
    }
  }
  ReleaseBlocks(sequence);
  if (sequence.trace != nullptr) {
    sequence.trace->OnPreempted(clock.Now());
  }
  const auto it = std::find_if(running.begin(), running.end(),
                               [&](const auto& s) { return s.get() == &sequence; });
  waiting.push_front(std::move(*it));
  running.erase(it);
  if (observer != nullptr) {
    observer->OnPreemption();
  }
}

void Engine::State::AddRow(Sequence& sequence, int32_t position, bool is_prefill) {
  rows.push_back({position, nullptr, sequence.is_image(position), is_prefill, sequence.rope_table});
  row_sequence.push_back(&sequence);
}

void Engine::State::FillInput() {
  const MatView<float> input = decoder.input();
  for (size_t r = 0; r < rows.size(); ++r) {
    const Sequence& sequence = *row_sequence[r];
    const auto position = static_cast<size_t>(rows[r].position);
    const model::PositionKey& key = sequence.keys[position];
    const std::span<float> out = input.RowSpan(static_cast<int64_t>(r));
    if (rows[r].is_image) {
      const ImageFeatures& features =
          *sequence.request.images[static_cast<size_t>(sequence.image_index[position])];
      std::copy_n(features.rows.begin() + static_cast<ptrdiff_t>(key.row) * input.cols, input.cols,
                  out.begin());
    } else {
      decoder.Embed(static_cast<int32_t>(key.content), sequence.is_scaled(rows[r].position), out);
    }
  }
}

void Engine::State::PlanDecode() {
  // By index: preemption removes sequences from the back.
  for (size_t i = 0; i < running.size(); ++i) {
    Sequence& sequence = *running[i];
    if (sequence.is_decoding() &&
        !EnsureBlocks(sequence, static_cast<int32_t>(sequence.keys.size()))) {
      Preempt(sequence);
    }
  }
  for (const std::unique_ptr<Sequence>& sequence : running) {
    if (sequence->is_decoding()) {
      AddRow(*sequence, static_cast<int32_t>(sequence->keys.size()) - 1, false);
    }
  }
}

void Engine::State::PlanPrefill() {
  int32_t budget = rows.empty() ? options.prefill_chunk : options.prefill_chunk_mixed;
  for (size_t i = 0; i < running.size() && budget > 0; ++i) {
    Sequence& sequence = *running[i];
    if (sequence.is_decoding()) {
      continue;
    }
    const int32_t count = std::min(budget, sequence.num_pending());
    // A prompt takes memory only from those that came after it: without a block it waits for the
    // next step.
    if (!EnsureBlocks(sequence, sequence.num_computed + count)) {
      return;
    }
    for (int32_t j = 0; j < count; ++j) {
      AddRow(sequence, sequence.num_computed + j, true);
    }
    budget -= count;
  }
}

void Engine::State::OnGate(int32_t layer, MatView<const float> /*logits*/,
                           MatView<const float> probabilities, const model::GateChoice& choice) {
  const std::vector<checkpoint::MoeLayerSpec>& layers = decoder.desc().moe.layers;
  const auto index =
      static_cast<size_t>(std::find_if(layers.begin(), layers.end(),
                                       [layer](const auto& spec) { return spec.layer == layer; }) -
                          layers.begin());
  const auto top_k = static_cast<size_t>(choice.experts.cols);
  const size_t stride = layers.size() * top_k;
  for (size_t r = 0; r < rows.size(); ++r) {
    if (row_sequence[r]->request.wants_gate_probabilities) {
      KeepProbabilities(decoder.desc().moe, *row_sequence[r], rows[r].position, index,
                        probabilities.RowSpan(static_cast<int64_t>(r)));
    }
    if (!row_sequence[r]->request.wants_routed_experts) {
      continue;
    }
    std::vector<int16_t>& routed = row_sequence[r]->stats.routed_experts;
    const auto position = static_cast<size_t>(rows[r].position);
    if (routed.size() < (position + 1) * stride) {
      routed.resize((position + 1) * stride, -1);
    }
    const int32_t* chosen = choice.experts.Row(static_cast<int64_t>(r));
    for (size_t k = 0; k < top_k; ++k) {
      routed[position * stride + index * top_k + k] = static_cast<int16_t>(chosen[k]);
    }
  }
}

// Marks the sequences of a step in which a call was sent again; how many had not been marked.
int32_t Engine::State::CountTouched() {
  const uint64_t resent = experts.num_resent();
  if (std::exchange(num_resent, resent) == resent) {
    return 0;
  }
  int32_t count = 0;
  for (Sequence* sequence : row_sequence) {
    count += std::exchange(sequence->is_touched, true) ? 0 : 1;
  }
  return count;
}

bool Engine::State::Run() {
  logit_rows.clear();
  wants_gates = false;
  for (size_t r = 0; r < rows.size(); ++r) {
    // Only now: the tables may have grown while rows were added.
    rows[r].block_table = row_sequence[r]->blocks.data();
    const SequenceRequest& request = row_sequence[r]->request;
    wants_gates |= request.wants_routed_experts || request.wants_gate_probabilities;
    if (rows[r].position + 1 == static_cast<int32_t>(row_sequence[r]->keys.size())) {
      logit_rows.push_back(static_cast<int32_t>(r));
    }
  }
  FillInput();
  // A request that wants to see the gates sees whole steps.
  const int32_t num_first =
      wants_gates ? 0 : micro_batches.Choose(static_cast<int32_t>(rows.size()));
  const bool is_traced = BeginTracedStep(row_sequence, options.step_trace);
  const MonotonicTime start = clock.Now();
  const absl::StatusOr<MatView<const float>> logits =
      decoder.Step(rows, logit_rows, kv, experts, wants_gates ? this : nullptr, num_first);
  if (is_traced) {
    EndTracedStep({start, clock.Now(), num_first > 0, logits.status()}, row_sequence, rows,
                  options.step_trace);
  }
  num_touched = CountTouched();
  if (!logits.ok()) {
    // Nothing of the step may be used. Sequences outside it go on.
    for (Sequence* sequence : row_sequence) {
      const auto it = std::find_if(running.begin(), running.end(),
                                   [&](const auto& s) { return s.get() == sequence; });
      if (it != running.end()) {
        End(*sequence, FinishReason::kError, logits.status());
        running.erase(it);
      }
    }
    return num_first > 0;
  }
  if (!wants_gates) {
    micro_batches.Observe(static_cast<int32_t>(rows.size()), num_first > 0, clock.Now() - start);
  }
  Advance();
  for (size_t i = 0; i < logit_rows.size(); ++i) {
    Emit(*row_sequence[static_cast<size_t>(logit_rows[i])],
         logits->RowSpan(static_cast<int64_t>(i)));
  }
  std::erase_if(
      running, [](const std::unique_ptr<Sequence>& sequence) { return sequence->sink == nullptr; });
  return num_first > 0;
}

void Engine::State::Advance() {
  for (size_t r = 0; r < rows.size(); ++r) {
    ++row_sequence[r]->num_computed;
  }
  for (const std::unique_ptr<Sequence>& sequence : running) {
    PublishBlocks(*sequence);
  }
}

void Engine::State::PublishBlocks(Sequence& sequence) {
  while ((sequence.num_published + 1) * kBlockTokens <= sequence.num_computed) {
    const auto index = static_cast<size_t>(sequence.num_published);
    kv.Publish(sequence.blocks[index], index == 0 ? -1 : sequence.blocks[index - 1],
               std::span(sequence.keys).subspan(index * kBlockTokens, kBlockTokens));
    ++sequence.num_published;
  }
}

void Engine::State::Emit(Sequence& sequence, std::span<const float> logits) {
  if (observer != nullptr) {
    observer->OnLogits(sequence.id, static_cast<int32_t>(sequence.keys.size()) - 1, logits);
  }
  if (!IsFinite(logits.first(static_cast<size_t>(vocab_size)))) {
    End(sequence, FinishReason::kError,
        Error(absl::StatusCode::kInternal, "numeric_error",
              "the model produced a value that is not finite"));
    return;
  }
  SequenceToken token;
  token.choice =
      model::Sample(logits, vocab_size, sequence.request.sampling, sequence.prompt_tokens,
                    sequence.generated, sequence.generated.size(), sampler_scratch);
  token.token = token.choice.token;
  const MonotonicTime now = clock.Now();
  if (sequence.generated.empty()) {
    sequence.stats.first_token = now - sequence.submitted;
  } else if (observer != nullptr) {
    observer->OnTokenGap(now - sequence.last_token);
  }
  sequence.last_token = now;
  if (sequence.trace != nullptr) {
    sequence.trace->OnToken(now);
  }
  sequence.generated.push_back(token.token);
  sequence.keys.push_back(sequence.KeyOf(token.token, static_cast<int32_t>(sequence.keys.size())));
  ++sequence.stats.generated;
  const std::vector<int32_t>& stops = sequence.request.stop_tokens;
  token.is_stop = std::find(stops.begin(), stops.end(), token.token) != stops.end();
  const bool goes_on = sequence.sink->OnToken(token);
  // The step is the number of tokens so far: the client can have seen the last one by now.
  (void)CONCLAVE_FAILPOINT("f.sampled", {.step = sequence.stats.generated});
  if (token.is_stop || !goes_on) {
    End(sequence, FinishReason::kStop, absl::OkStatus());
  } else if (sequence.stats.generated >= sequence.request.max_tokens) {
    End(sequence, FinishReason::kLength, absl::OkStatus());
  }
}

void Engine::State::ReleaseBlocks(Sequence& sequence) {
  // Last block first: a chain is dropped from its end.
  for (auto it = sequence.blocks.rbegin(); it != sequence.blocks.rend(); ++it) {
    kv.Release(*it);
  }
  sequence.blocks.clear();
  sequence.num_computed = 0;
  sequence.num_published = 0;
}

void Engine::State::End(Sequence& sequence, FinishReason reason, const absl::Status& status) {
  ReleaseBlocks(sequence);
  const MonotonicTime now = clock.Now();
  sequence.stats.total = now - sequence.submitted;
  if (sequence.trace != nullptr) {
    sequence.trace->OnEnd(reason, status, sequence.stats, sequence.submitted, now);
  }
  if (observer != nullptr) {
    observer->OnSequenceEnd(reason, sequence.stats);
  }
  // Null marks the sequence as ended for Run().
  const std::shared_ptr<SequenceSink> sink = std::move(sequence.sink);
  sequence.sink = nullptr;
  num_open.fetch_sub(1);
  sink->OnEnd(reason, status, sequence.stats);
}

bool Engine::State::Step() {
  TakeInbox();
  Admit();
  rows.clear();
  row_sequence.clear();
  if (running.empty()) {
    // Once, so that nobody reads the figures of the last step as those of an idle engine.
    if (std::exchange(is_reported_busy, false)) {
      Report({});
    }
    return false;
  }
  is_reported_busy = true;
  const MonotonicTime start = clock.Now();
  PlanDecode();
  PlanPrefill();
  EngineObserver::Step step;
  step.decode_rows = static_cast<int32_t>(std::count_if(
      rows.begin(), rows.end(), [](const model::StepRow& row) { return !row.is_prefill; }));
  step.prefill_rows = static_cast<int32_t>(rows.size()) - step.decode_rows;
  if (!rows.empty()) {
    step.is_divided = Run();
    step.touched = num_touched;
  }
  step.duration = clock.Now() - start;
  Report(step);
  return true;
}

void Engine::State::Report(EngineObserver::Step step) {
  if (observer != nullptr) {
    step.running = static_cast<int32_t>(running.size());
    step.waiting = static_cast<int32_t>(waiting.size());
    step.kv_used = 1.0 - static_cast<double>(kv.num_free()) / static_cast<double>(kv.num_blocks());
    observer->OnStep(step);
  }
}

void Engine::State::Loop() {
  pthread_setname_np(pthread_self(), "engine");
  while (true) {
    const bool worked = Step();
    MutexLock lock(mu);
    while (!worked && !stop && inbox.empty() && cancelled.empty()) {
      wake.Wait(mu);
    }
    if (stop) {
      return;
    }
  }
}

Engine::Engine(const EngineOptions& options, model::Decoder& decoder, model::MoeExecutor& experts,
               int32_t vocab_size, const Clock& clock, EngineObserver* observer)
    : state_(std::make_unique<State>(options, decoder, experts, vocab_size, clock, observer)) {}

Engine::~Engine() {
  {
    MutexLock lock(state_->mu);
    state_->stop = true;
  }
  state_->wake.NotifyAll();
  if (state_->thread.joinable()) {
    state_->thread.join();
  }
  state_->TakeInbox();
  for (const std::unique_ptr<Sequence>& sequence : state_->running) {
    state_->End(*sequence, FinishReason::kCancelled, absl::OkStatus());
  }
  for (const std::unique_ptr<Sequence>& sequence : state_->waiting) {
    state_->End(*sequence, FinishReason::kCancelled, absl::OkStatus());
  }
}

void Engine::Start() {
  state_->thread = std::thread([state = state_.get()] { state->Loop(); });
}

absl::StatusOr<SequenceId> Engine::Submit(SequenceRequest request,
                                          std::shared_ptr<SequenceSink> sink) {
  if (state_->num_open.fetch_add(1) >= state_->options.max_num_seqs + state_->options.max_queued) {
    state_->num_open.fetch_sub(1);
    return Error(absl::StatusCode::kUnavailable, "overloaded",
                 "the queue is full: " + std::to_string(state_->options.max_queued) +
                     " sequences wait already");
  }
  SequenceId id;
  {
    MutexLock lock(state_->mu);
    id = SequenceId(state_->next_id++);
  }
  std::unique_ptr<Sequence> sequence =
      MakeSequence(state_->options, state_->decoder, id, std::move(request), std::move(sink),
                   state_->clock.Now());
  {
    MutexLock lock(state_->mu);
    state_->inbox.push_back(std::move(sequence));
  }
  state_->wake.NotifyOne();
  return id;
}

void Engine::Cancel(SequenceId id) {
  {
    MutexLock lock(state_->mu);
    state_->cancelled.push_back(id);
  }
  state_->wake.NotifyOne();
}

bool Engine::Step() { return state_->Step(); }
int32_t Engine::num_open() const { return state_->num_open.load(); }
const EngineOptions& Engine::options() const { return state_->options; }

}  // namespace conclave::frontend
