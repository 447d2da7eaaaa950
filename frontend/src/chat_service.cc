#include "conclave/frontend/chat_service.h"

#include <pthread.h>

#include <algorithm>
#include <deque>
#include <thread>
#include <unordered_map>
#include <utility>

#include "answer.h"
#include "chat_trace.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/text/prompt_template.h"
#include "image_encoder.h"
#include "image_memory.h"
#include "prompt.h"

namespace conclave::frontend {
namespace {

using std::chrono::steady_clock;

double Milliseconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

// One request from Submit to OnDone. Its sink is called from the preparing thread until the first
// sequence is submitted and from the engine's afterwards; with several choices both may speak at
// once, so calls take turns here.
class OpenRequest : public ChatSink {
 public:
  OpenRequest(ChatId chat_id, ChatRequest chat, const ImageNeed& need, const ModelCard& card,
              std::shared_ptr<ChatSink> chat_sink)
      : id(chat_id),
        trace(chat, card),
        request(std::move(chat)),
        image_need(need),
        remaining(request.num_choices),
        sink_(std::move(chat_sink)) {}

  void OnDelta(ChatDelta delta) override {
    MutexLock lock(sink_mu_);
    sink_->OnDelta(std::move(delta));
  }
  void OnChoiceEnd(ChoiceEnd end) override {
    if (end.reason == FinishReason::kError && !absl::IsInvalidArgument(end.status)) {
      // The client is told a fixed text: the true one may name workers, files or devices.
      observability::LogWarning("answer failed", {{"request", request.request_id},
                                                  {"choice", end.choice},
                                                  {"why", end.status.ToString()}});
    }
    trace.OnChoiceEnd(end.reason, end.status);
    MutexLock lock(sink_mu_);
    sink_->OnChoiceEnd(std::move(end));
  }
  void OnDone(const Usage& final_usage, const Timings& final_timings) override {
    trace.OnDone(final_usage, final_timings, steady_clock::now() - submitted);
    MutexLock lock(sink_mu_);
    sink_->OnDone(final_usage, final_timings);
  }

  const ChatId id;
  ChatTrace trace;
  // Once submitted, the preparing thread's: it lets go of each picture when it has its features.
  ChatRequest request;
  const ImageNeed image_need;
  const steady_clock::time_point submitted = steady_clock::now();

  Mutex mu;
  bool is_cancelled ABSL_GUARDED_BY(mu) = false;
  int32_t remaining ABSL_GUARDED_BY(mu);
  std::vector<SequenceId> sequences ABSL_GUARDED_BY(mu);
  Usage usage ABSL_GUARDED_BY(mu);
  Timings timings ABSL_GUARDED_BY(mu);
  FinishReason reason ABSL_GUARDED_BY(mu) = FinishReason::kStop;

 private:
  Mutex sink_mu_;
  const std::shared_ptr<ChatSink> sink_;
};

model::SamplerParams ToSampler(const SamplingParams& params, int32_t choice) {
  model::SamplerParams out;
  out.temperature = params.temperature;
  out.top_p = params.top_p;
  out.top_k = params.top_k;
  out.min_p = params.min_p;
  out.repetition_penalty = params.repetition_penalty;
  out.presence_penalty = params.presence_penalty;
  out.frequency_penalty = params.frequency_penalty;
  out.seed = params.seed + static_cast<uint64_t>(choice);
  out.logit_bias = params.logit_bias;
  out.num_top_logprobs = params.num_top_logprobs;
  return out;
}

bool HasImages(const ChatRequest& request) {
  return std::any_of(request.messages.begin(), request.messages.end(), [](const Message& message) {
    return std::any_of(message.parts.begin(), message.parts.end(), [](const ContentPart& part) {
      return part.kind == ContentPart::Kind::kImage;
    });
  });
}

}  // namespace

struct ChatService::State {
  State(ChatServiceOptions service_options, const checkpoint::ModelDesc& model_desc,
        const text::Tokenizer& text_tokenizer, model::VisionTower* vision, Engine& serving_engine,
        ChatObserver* chat_observer);

  using Request = std::shared_ptr<OpenRequest>;
  struct Lane {
    std::deque<Request> queue;
    CondVar wake;
  };

  void PrepareLoop(Lane State::*which, const char* name);
  void Prepare(const Request& request);
  absl::StatusOr<SequenceRequest> BuildSequence(OpenRequest& request);
  absl::Status EncodeImages(OpenRequest& request, SequenceRequest& sequence);
  absl::Status FitContext(const ChatRequest& request, SequenceRequest& sequence) const;
  void SubmitChoices(const Request& request, const SequenceRequest& sequence);
  void Fail(const Request& request, FinishReason reason, const absl::Status& status);
  void EndChoice(const Request& request, FinishReason reason, const SequenceStats& stats);
  void Finish(const Request& request);

  const ChatServiceOptions options;
  const checkpoint::ModelDesc& desc;
  const text::Tokenizer& tokenizer;
  const text::PromptTemplate& prompt_template;
  Engine& engine;
  ChatObserver* const observer;
  std::unique_ptr<ImageEncoder> encoder;  // the image lane's thread only
  std::vector<int32_t> stop_tokens;
  std::vector<std::string> stop_texts;  // of a template whose stop string is no single token

  mutable Mutex mu;
  CondVar all_done;
  bool is_draining ABSL_GUARDED_BY(mu) = false;
  bool is_stopping ABSL_GUARDED_BY(mu) = false;
  ChatId next_id ABSL_GUARDED_BY(mu) = 1;
  std::unordered_map<ChatId, Request> open ABSL_GUARDED_BY(mu);
  Lane text_lane ABSL_GUARDED_BY(mu);
  Lane image_lane ABSL_GUARDED_BY(mu);
  // Of the requests in the image lane and of the one that its thread prepares.
  ImageMemory image_memory ABSL_GUARDED_BY(mu);

  std::thread text_thread, image_thread;  // Last.
};

ChatService::State::State(ChatServiceOptions service_options,
                          const checkpoint::ModelDesc& model_desc,
                          const text::Tokenizer& text_tokenizer, model::VisionTower* vision,
                          Engine& serving_engine, ChatObserver* chat_observer)
    : options(std::move(service_options)),
      desc(model_desc),
      tokenizer(text_tokenizer),
      prompt_template(*text::FindTemplate(desc.prompt_template)),
      engine(serving_engine),
      observer(chat_observer),
      image_memory(options.image_memory_bytes) {
  if (vision != nullptr) {
    encoder = std::make_unique<ImageEncoder>(*vision, desc.vision, options.image_limits,
                                             options.image_cache_bytes);
  }
  const std::string_view stop = text::StopString(prompt_template);
  if (const int32_t id = tokenizer.SpecialId(stop); id >= 0) {
    stop_tokens.push_back(id);
  } else if (!stop.empty()) {
    stop_texts.emplace_back(stop);
  }
  if (tokenizer.eos() >= 0 &&
      std::find(stop_tokens.begin(), stop_tokens.end(), tokenizer.eos()) == stop_tokens.end()) {
    stop_tokens.push_back(tokenizer.eos());
  }
}

void ChatService::State::PrepareLoop(Lane State::*which, const char* name) {
  pthread_setname_np(pthread_self(), name);
  while (true) {
    Request request;
    {
      MutexLock lock(mu);
      Lane& lane = this->*which;
      while (lane.queue.empty() && !is_stopping) {
        lane.wake.Wait(mu);
      }
      if (is_stopping) {
        return;
      }
      request = std::move(lane.queue.front());
      lane.queue.pop_front();
    }
    Prepare(request);
    if (which == &State::image_lane) {
      MutexLock lock(mu);
      image_memory.Give(request->image_need);
    }
  }
}

void ChatService::State::Prepare(const Request& request) {
  bool is_cancelled = false;
  {
    MutexLock lock(request->mu);
    is_cancelled = request->is_cancelled;
  }
  if (is_cancelled) {
    Fail(request, FinishReason::kCancelled, absl::OkStatus());
    return;
  }
  const auto begun = steady_clock::now();
  absl::StatusOr<SequenceRequest> sequence = BuildSequence(*request);
  request->trace.OnPrepared(request->submitted, begun, steady_clock::now(), sequence.status());
  if (!sequence.ok()) {
    Fail(request, FinishReason::kError, sequence.status());
    return;
  }
  SubmitChoices(request, *sequence);
}

absl::StatusOr<SequenceRequest> ChatService::State::BuildSequence(OpenRequest& request) {
  SequenceRequest sequence;
  CONCLAVE_ASSIGN_OR_RETURN(sequence.tokens, BuildPrompt(request.request.messages, prompt_template,
                                                         desc.splice, tokenizer));
  // Lengths are known before any picture is encoded: refuse before the dear work.
  CONCLAVE_RETURN_IF_ERROR(FitContext(request.request, sequence));
  CONCLAVE_RETURN_IF_ERROR(EncodeImages(request, sequence));
  if (!request.request.ignore_eos) {
    sequence.stop_tokens = stop_tokens;
  }
  sequence.wants_routed_experts = request.request.return_routed_experts;
  sequence.wants_gate_probabilities = request.request.return_gate_probabilities;
  sequence.trace = request.trace.request();
  return sequence;
}

absl::Status ChatService::State::EncodeImages(OpenRequest& request, SequenceRequest& sequence) {
  std::chrono::nanoseconds spent{0};
  for (Message& message : request.request.messages) {
    for (ContentPart& part : message.parts) {
      if (part.kind != ContentPart::Kind::kImage) {
        continue;
      }
      const auto start = steady_clock::now();
      const std::span<const std::byte> encoded = std::as_bytes(std::span(part.bytes));
      absl::StatusOr<ImageEncoder::Result> result =
          encoder->Encode(encoded, request.request.image_mode);
      const image::ImageFormat format = image::DetectFormat(encoded);
      if (!result.ok()) {
        if (observer != nullptr) {
          observer->OnImageRefused(format);
        }
        return WithParam(result.status(), part.param);
      }
      if (observer != nullptr) {
        observer->OnImage(format, result->decode, result->encode, result->was_cached);
      }
      request.trace.OnImage(
          start, {result->decode, result->encode, result->features->num_rows, result->was_cached});
      spent += result->decode + result->encode;
      sequence.images.push_back(std::move(result->features));
      // It would stay for the whole answer otherwise.
      std::string().swap(part.bytes);
    }
  }
  MutexLock lock(request.mu);
  request.timings.image_ms = Milliseconds(spent);
  return absl::OkStatus();
}

absl::Status ChatService::State::FitContext(const ChatRequest& request,
                                            SequenceRequest& sequence) const {
  const auto num_images = static_cast<int32_t>(
      std::count(sequence.tokens.begin(), sequence.tokens.end(), text::kImageToken));
  if (num_images > 0 && encoder == nullptr) {
    return WithParam(
        InvalidArgument("image_not_allowed", "this model takes no images; send text only"),
        "messages");
  }
  const int64_t image_rows =
      num_images > 0 ? int64_t{num_images} * desc.splice.tokens_per_image : 0;
  const int64_t prompt_rows =
      static_cast<int64_t>(sequence.tokens.size()) - num_images + image_rows;
  const int64_t length_max = engine.options().max_model_len;
  const int64_t wanted = std::max<int64_t>(request.max_tokens, 1);
  if (prompt_rows + wanted > length_max) {
    return WithParam(
        InvalidArgument("context_length_exceeded",
                        "the context holds " + std::to_string(length_max) + " tokens; found " +
                            std::to_string(prompt_rows) + " in the prompt (" +
                            std::to_string(image_rows) + " of images) and " +
                            std::to_string(wanted) + " to generate"),
        "messages");
  }
  sequence.max_tokens =
      static_cast<int32_t>(request.max_tokens > 0 ? wanted : length_max - prompt_rows);
  return absl::OkStatus();
}

void ChatService::State::SubmitChoices(const Request& request, const SequenceRequest& sequence) {
  std::vector<std::string> stops = request->request.stops;
  stops.insert(stops.end(), stop_texts.begin(), stop_texts.end());
  for (int32_t choice = 0; choice < request->request.num_choices; ++choice) {
    SequenceRequest copy = sequence;
    copy.sampling = ToSampler(request->request.sampling, choice);
    auto answer =
        std::make_shared<Answer>(choice, request->request, tokenizer, stops, request,
                                 [this, request](const ChoiceEnd& end, const SequenceStats& stats) {
                                   EndChoice(request, end.reason, stats);
                                 });
    const absl::StatusOr<SequenceId> id = engine.Submit(std::move(copy), answer);
    if (!id.ok()) {
      request->OnChoiceEnd({choice, FinishReason::kError, id.status(), {}, {}, {}});
      EndChoice(request, FinishReason::kError, {});
      continue;
    }
    bool is_cancelled = false;
    {
      MutexLock lock(request->mu);
      request->sequences.push_back(*id);
      is_cancelled = request->is_cancelled;
    }
    if (is_cancelled) {
      // Cancel() came before the id was known.
      engine.Cancel(*id);
    }
  }
}

void ChatService::State::Fail(const Request& request, FinishReason reason,
                              const absl::Status& status) {
  request->OnChoiceEnd({0, reason, status, {}, {}, {}});
  {
    MutexLock lock(request->mu);
    request->remaining = 0;
    request->reason = reason;
  }
  Finish(request);
}

void ChatService::State::EndChoice(const Request& request, FinishReason reason,
                                   const SequenceStats& stats) {
  {
    MutexLock lock(request->mu);
    Usage& usage = request->usage;
    usage.prompt_tokens = std::max(usage.prompt_tokens, stats.prompt_rows);
    usage.image_tokens = std::max(usage.image_tokens, stats.image_rows);
    usage.cached_tokens = std::max(usage.cached_tokens, stats.cached_rows);
    usage.completion_tokens += stats.generated;
    Timings& timings = request->timings;
    timings.queue_ms = Milliseconds(stats.queue);
    timings.prefill_ms = std::max(0.0, Milliseconds(stats.first_token - stats.queue));
    timings.decode_ms = std::max(0.0, Milliseconds(stats.total - stats.first_token));
    // From the request's own start, pictures included.
    timings.first_token_ms = Milliseconds(steady_clock::now() - request->submitted) -
                             Milliseconds(stats.total - stats.first_token);
    if (reason != FinishReason::kStop) {
      request->reason = reason;
    }
    if (--request->remaining > 0) {
      return;
    }
  }
  Finish(request);
}

void ChatService::State::Finish(const Request& request) {
  Usage usage;
  Timings timings;
  FinishReason reason = FinishReason::kStop;
  {
    MutexLock lock(request->mu);
    usage = request->usage;
    timings = request->timings;
    reason = request->reason;
  }
  request->OnDone(usage, timings);
  if (observer != nullptr) {
    observer->OnRequestEnd(reason, usage, timings);
  }
  MutexLock lock(mu);
  open.erase(request->id);
  if (open.empty()) {
    all_done.NotifyAll();
  }
}

ChatService::ChatService(ChatServiceOptions options, const checkpoint::ModelDesc& desc,
                         const text::Tokenizer& tokenizer, model::VisionTower* tower,
                         Engine& engine, ChatObserver* observer)
    : state_(
          std::make_unique<State>(std::move(options), desc, tokenizer, tower, engine, observer)) {
  State* state = state_.get();
  state->text_thread =
      std::thread([state] { state->PrepareLoop(&State::text_lane, "prepare-text"); });
  state->image_thread =
      std::thread([state] { state->PrepareLoop(&State::image_lane, "prepare-image"); });
}

ChatService::~ChatService() {
  {
    MutexLock lock(state_->mu);
    state_->is_stopping = true;
    state_->text_lane.wake.NotifyAll();
    state_->image_lane.wake.NotifyAll();
  }
  state_->text_thread.join();
  state_->image_thread.join();
  // Requests that were never prepared still get their end; sequences in the engine are its own to
  // end.
  std::vector<State::Request> unprepared;
  {
    MutexLock lock(state_->mu);
    for (State::Lane* lane : {&state_->text_lane, &state_->image_lane}) {
      unprepared.insert(unprepared.end(), lane->queue.begin(), lane->queue.end());
      lane->queue.clear();
    }
  }
  for (const State::Request& request : unprepared) {
    state_->Fail(request, FinishReason::kCancelled, absl::OkStatus());
  }
  // The engine's sinks call back into this object: leave only when the last has ended.
  std::vector<ChatId> running;
  {
    MutexLock lock(state_->mu);
    for (const auto& [id, request] : state_->open) {
      running.push_back(id);
    }
  }
  for (const ChatId id : running) {
    ChatService::Cancel(id);
  }
  MutexLock lock(state_->mu);
  while (!state_->open.empty()) {
    state_->all_done.Wait(state_->mu);
  }
}

absl::StatusOr<ChatId> ChatService::Submit(ChatRequest request, std::shared_ptr<ChatSink> sink) {
  State& s = *state_;
  const bool has_images = HasImages(request);
  const ImageNeed need = ImageNeedOf(request, s.options.image_limits);
  MutexLock lock(s.mu);
  if (s.is_draining || s.is_stopping) {
    return Error(absl::StatusCode::kUnavailable, "draining",
                 "the server is shutting down and takes no new requests");
  }
  State::Lane& lane = has_images ? s.image_lane : s.text_lane;
  if (static_cast<int32_t>(lane.queue.size()) >= s.options.max_preparing) {
    return Error(
        absl::StatusCode::kUnavailable, "overloaded",
        "the queue is full: " + std::to_string(s.options.max_preparing) + " requests wait already");
  }
  if (has_images && !s.image_memory.Take(need)) {
    return Error(absl::StatusCode::kUnavailable, "image_memory_busy",
                 "the pictures of other requests fill the memory that is set aside for them: " +
                     std::to_string(s.options.image_memory_bytes) + " bytes");
  }
  const ChatId id = s.next_id++;
  const auto open =
      std::make_shared<OpenRequest>(id, std::move(request), need, s.options.model, std::move(sink));
  s.open.emplace(id, open);
  lane.queue.push_back(open);
  lane.wake.NotifyOne();
  return id;
}

void ChatService::Cancel(ChatId id) {
  State::Request request;
  {
    MutexLock lock(state_->mu);
    const auto it = state_->open.find(id);
    if (it == state_->open.end()) {
      return;
    }
    request = it->second;
  }
  std::vector<SequenceId> sequences;
  {
    MutexLock lock(request->mu);
    request->is_cancelled = true;
    sequences = request->sequences;
  }
  for (const SequenceId sequence : sequences) {
    state_->engine.Cancel(sequence);
  }
}

const ModelCard& ChatService::model() const { return state_->options.model; }

absl::Status ChatService::Readiness() const {
  MutexLock lock(state_->mu);
  if (state_->is_draining) {
    return Error(absl::StatusCode::kUnavailable, "draining", "the server is shutting down");
  }
  return state_->options.readiness == nullptr ? absl::OkStatus() : state_->options.readiness();
}

std::vector<int32_t> ChatService::Tokenize(const std::string& text) const {
  return state_->tokenizer.Encode(text);
}

std::string ChatService::Detokenize(const std::vector<int32_t>& tokens) const {
  return state_->tokenizer.Decode(tokens, /*keep_special=*/true);
}

bool ChatService::Drain(std::chrono::milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  MutexLock lock(state_->mu);
  state_->is_draining = true;
  while (!state_->open.empty()) {
    const auto left = deadline - steady_clock::now();
    if (left <= std::chrono::nanoseconds(0)) {
      return false;
    }
    state_->all_done.WaitFor(state_->mu, left);
  }
  return true;
}

}  // namespace conclave::frontend
