// The metrics that the engine, the workers and the HTTP layer set, as structs of ready handles.
// Names, buckets and labels follow vLLM's with `conclave_` for `vllm:`, so that dashboards and
// autoscaler rules carry over by one replacement; the experts' are `moe_*`. docs/metrics.md
// describes each.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/observability/metrics.h"

namespace conclave::observability {

// Why a request ended: the label finished_reason.
enum class Finished : uint8_t { kStop, kLength, kAbort, kError };
inline constexpr int kNumFinished = 4;
std::string_view NameOf(Finished finished);

// What a picture's first bytes say it is: the label format, in the order of image::ImageFormat.
inline constexpr int kNumImageFormats = 6;
// What became of it: taken from the cache of encoded pictures, encoded, or refused: the label
// result.
enum class ImageResult : uint8_t { kCached, kEncoded, kRefused };
inline constexpr int kNumImageResults = 3;

// Of one engine. Default-made: every handle ignores what it is told.
struct EngineMetrics {
  EngineMetrics() = default;
  // `engine`: its number in the process, "0" for the first. `max_model_len`: tokens, sets the
  // token-count buckets.
  EngineMetrics(Metrics& metrics, const std::string& model_name, const std::string& engine,
                int64_t max_model_len);

  Gauge num_requests_running;
  Gauge num_requests_waiting;
  Gauge kv_cache_usage;   // 0..1
  Counter prompt_tokens;  // prefilled or taken from the prefix cache; image rows count
  Counter prompt_tokens_cached;
  Counter generation_tokens;
  Counter prefix_cache_queries, prefix_cache_hits;  // tokens
  Counter image_cache_queries, image_cache_hits;    // images
  Counter num_preemptions;
  Counter steps[2];                       // by the number of micro-batches, less one
  Counter request_success[kNumFinished];  // by Finished

  Histogram time_to_first_token;    // seconds, from submission
  Histogram inter_token;            // seconds between two tokens of a sequence
  Histogram time_per_output_token;  // seconds, mean of a request after its first token
  Histogram e2e_latency;            // seconds
  Histogram queue_time, prefill_time, decode_time, inference_time;  // seconds
  Histogram iteration_tokens;                                       // tokens in one step
  Histogram request_prompt_tokens, request_generation_tokens;

  Counter images[kNumImageFormats][kNumImageResults];
  Histogram image_preprocess;  // seconds: decode and resize of one image
  Histogram vision_encode;     // seconds: tower and projector of one image

  // One finished request.
  void CountFinished(Finished reason) const { request_success[static_cast<size_t>(reason)].Add(); }
};

// From now on the page has the metrics that vLLM has too under its names as well, `vllm:` for
// `conclave_`, so that dashboards, autoscaler rules and gateways made for it work unchanged. Exact
// names, labels and types; buckets are a superset. Call once per Metrics, at any time.
void AddVllmNames(Metrics& metrics);

enum class Modality : uint8_t { kText, kImage };
enum class Phase : uint8_t { kPrefill, kDecode };
// The place of the expert among a token's choices. Workers do not know it.
enum class Rank : uint8_t { kUnknown, kTop1, kTop2 };

// Token rows sent to (frontend) or computed by (worker) one expert since the start.
struct ExpertTokens {
  int32_t layer = 0;
  int32_t expert = 0;
  Modality modality = Modality::kText;
  Phase phase = Phase::kPrefill;
  Rank rank = Rank::kUnknown;  // kUnknown: no label `rank`
  int32_t worker = -1;         // below 0: no label `worker`
  uint64_t tokens = 0;
  double weights = 0;  // sum of the gate's weights over these rows; workers do not count it
};

// Most series that the per-expert matrix may take. A model with more keeps its most loaded experts
// in the page and all of them in the per-layer figures, so that a scrape stays small.
inline constexpr size_t kExpertSeriesMax = 2048;

// The samples of moe_expert_tokens_total out of what was counted: everything when it fits in
// `series_max`, otherwise the (layer, expert) pairs with the most tokens, whole pairs only, ties to
// the lower layer and expert. Pure.
std::vector<ExpertTokens> MostLoaded(std::vector<ExpertTokens> all, size_t series_max);

// Adds moe_expert_tokens_total{layer,expert,modality,phase[,rank][,worker]}, and per layer the most
// loaded expert's tokens and the mean: moe_layer_expert_tokens_max_total,
// moe_layer_expert_tokens_mean_total, and their quotient moe_layer_imbalance_ratio. `collect` is
// called once for each of them at a scrape. Call once per Metrics.
void AddExpertTokens(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect);

// Adds moe_expert_weight_sum_total{layer,expert,modality}: what the gates gave to an expert, which
// tells one that is chosen weakly from one that decides. Over phases and ranks; of the experts that
// AddExpertTokens shows. As that one otherwise.
void AddExpertWeights(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect);

// One expert as its gate sees it: `tokens` the rows whose first choice it was, `weights` the sum of
// its probability over all rows of the layer. One entry per (layer, expert), without ranks. Adds
// moe_gate_probability_sum_total{layer,expert}, as far as series fit, and moe_balance_loss{layer}:
// E times the sum over experts of F · G, F the share of first choices and G the mean probability;
// 1 is balanced. As AddExpertTokens otherwise.
void AddGateBalance(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect);

// Adds moe_worker_tokens_total{worker} for workers within this process.
void AddWorkerTokens(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect);

// Of the HTTP layer. Any thread.
class HttpMetrics {
 public:
  explicit HttpMetrics(Metrics& metrics);

  // One answered request. `route`: an entry of the server's route table, never the path that the
  // client sent.
  void Observe(const std::string& route, int status, double seconds);

  Counter image_mime_mismatch;  // pictures whose media type is not that of their bytes

 private:
  Metrics& metrics_;
};

// The API over gRPC. Thread-safe.
class GrpcMetrics {
 public:
  explicit GrpcMetrics(Metrics& metrics) : metrics_(metrics) {}

  // One call that ended. `method`: a method of the service; `code`: a name of gRPC's codes.
  void Observe(const char* method, const char* code, double seconds);

 private:
  Metrics& metrics_;
};

}  // namespace conclave::observability
