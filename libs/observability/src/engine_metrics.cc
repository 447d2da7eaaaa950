#include "conclave/observability/engine_metrics.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace conclave::observability {
namespace {

std::string_view NameOf(Modality modality) {
  return modality == Modality::kText ? "text" : "image";
}
std::string_view NameOf(Phase phase) { return phase == Phase::kPrefill ? "prefill" : "decode"; }

// Sums of one layer, over modality, phase, rank and worker.
struct LayerLoad {
  std::map<int32_t, uint64_t> tokens_by_expert;

  double Max() const {
    uint64_t max = 0;
    for (const auto& [expert, tokens] : tokens_by_expert) {
      max = std::max(max, tokens);
    }
    return static_cast<double>(max);
  }
  double Mean() const {
    double sum = 0;
    for (const auto& [expert, tokens] : tokens_by_expert) {
      sum += static_cast<double>(tokens);
    }
    return tokens_by_expert.empty() ? 0 : sum / static_cast<double>(tokens_by_expert.size());
  }
};

using LayerFigure = double (*)(const LayerLoad&);

std::vector<Metrics::Sample> PerLayer(const std::vector<ExpertTokens>& all, LayerFigure figure) {
  std::map<int32_t, LayerLoad> layers;
  for (const ExpertTokens& entry : all) {
    layers[entry.layer].tokens_by_expert[entry.expert] += entry.tokens;
  }
  std::vector<Metrics::Sample> samples;
  samples.reserve(layers.size());
  for (const auto& [layer, load] : layers) {
    samples.push_back({{{"layer", std::to_string(layer)}}, figure(load)});
  }
  return samples;
}

std::vector<Metrics::Sample> PerExpert(std::vector<ExpertTokens> all) {
  std::vector<Metrics::Sample> samples;
  for (const ExpertTokens& entry : MostLoaded(std::move(all), kExpertSeriesMax)) {
    Labels labels = {{"layer", std::to_string(entry.layer)},
                     {"expert", std::to_string(entry.expert)},
                     {"modality", std::string(NameOf(entry.modality))},
                     {"phase", std::string(NameOf(entry.phase))}};
    if (entry.rank != Rank::kUnknown) {
      labels["rank"] = entry.rank == Rank::kTop1 ? "top1" : "top2";
    }
    if (entry.worker >= 0) {
      labels["worker"] = std::to_string(entry.worker);
    }
    samples.push_back({std::move(labels), static_cast<double>(entry.tokens)});
  }
  return samples;
}

}  // namespace

std::string_view NameOf(Finished finished) {
  switch (finished) {
    case Finished::kStop:
      return "stop";
    case Finished::kLength:
      return "length";
    case Finished::kAbort:
      return "abort";
    case Finished::kError:
      break;
  }
  return "error";
}

EngineMetrics::EngineMetrics(Metrics& metrics, const std::string& model_name,
                             const std::string& engine, int64_t max_model_len) {
  const Labels labels = {{"model_name", model_name}, {"engine", engine}};
  const auto gauge = [&](const char* name, const char* help) {
    return metrics.AddGauge(name, help, labels);
  };
  const auto counter = [&](const char* name, const char* help) {
    return metrics.AddCounter(name, help, labels);
  };
  const auto histogram = [&](const char* name, const char* help, std::span<const double> bounds) {
    return metrics.AddHistogram(name, help, labels, bounds);
  };

  num_requests_running = gauge("conclave_num_requests_running", "Requests in the running batch.");
  num_requests_waiting =
      gauge("conclave_num_requests_waiting", "Requests that wait to be scheduled.");
  kv_cache_usage = gauge("conclave_kv_cache_usage_perc", "Used share of the KV blocks, 0 to 1.");
  prompt_tokens = counter("conclave_prompt_tokens_total", "Prompt tokens, image rows included.");
  prompt_tokens_cached =
      counter("conclave_prompt_tokens_cached_total", "Prompt tokens that the prefix cache had.");
  generation_tokens = counter("conclave_generation_tokens_total", "Generated tokens.");
  prefix_cache_queries = counter("conclave_prefix_cache_queries_total", "Prompt tokens looked up.");
  prefix_cache_hits = counter("conclave_prefix_cache_hits_total", "Prompt tokens found.");
  image_cache_queries = counter("conclave_mm_cache_queries_total", "Images looked up by digest.");
  image_cache_hits = counter("conclave_mm_cache_hits_total", "Images found by digest.");
  num_preemptions = counter("conclave_num_preemptions_total", "Sequences set back to waiting.");
  for (int i = 0; i < 2; ++i) {
    Labels divided = labels;
    divided["micro_batches"] = std::to_string(i + 1);
    steps[i] = metrics.AddCounter("conclave_steps_total", "Engine steps.", divided);
  }
  for (int i = 0; i < kNumFinished; ++i) {
    Labels finished = labels;
    finished["finished_reason"] = std::string(NameOf(static_cast<Finished>(i)));
    request_success[i] =
        metrics.AddCounter("conclave_request_success_total", "Finished requests.", finished);
  }

  time_to_first_token = histogram("conclave_time_to_first_token_seconds",
                                  "From submission to the first token.", TimeToFirstTokenBounds());
  inter_token = histogram("conclave_inter_token_latency_seconds",
                          "Between two tokens of a sequence.", InterTokenBounds());
  time_per_output_token =
      histogram("conclave_request_time_per_output_token_seconds",
                "Mean time per token of a request after the first.", InterTokenBounds());
  e2e_latency = histogram("conclave_e2e_request_latency_seconds",
                          "From submission to the last token.", RequestTimeBounds());
  queue_time = histogram("conclave_request_queue_time_seconds", "Waiting to be scheduled.",
                         RequestTimeBounds());
  prefill_time = histogram("conclave_request_prefill_time_seconds",
                           "From scheduling to the first token.", RequestTimeBounds());
  decode_time = histogram("conclave_request_decode_time_seconds",
                          "From the first to the last token.", RequestTimeBounds());
  inference_time = histogram("conclave_request_inference_time_seconds",
                             "From scheduling to the last token.", RequestTimeBounds());
  iteration_tokens =
      histogram("conclave_iteration_tokens_total", "Tokens in one step.", IterationTokenBounds());
  const std::vector<double> counts = TokenCountBounds(max_model_len);
  request_prompt_tokens =
      histogram("conclave_request_prompt_tokens", "Prompt tokens of a request.", counts);
  request_generation_tokens =
      histogram("conclave_request_generation_tokens", "Generated tokens of a request.", counts);
  const char* const formats[kNumImageFormats] = {"unknown", "jpeg", "png", "webp", "gif", "bmp"};
  const char* const results[kNumImageResults] = {"cached", "encoded", "refused"};
  for (int f = 0; f < kNumImageFormats; ++f) {
    for (int r = 0; r < kNumImageResults; ++r) {
      Labels image = labels;
      image["format"] = formats[f];
      image["result"] = results[r];
      images[f][r] =
          metrics.AddCounter("moe_images_total", "Pictures that came to be decoded.", image);
    }
  }
  image_preprocess = histogram("moe_image_preprocess_seconds", "Decoding and resizing one image.",
                               ImageTimeBounds());
  vision_encode = histogram("moe_vision_encode_seconds", "Vision tower and projector on one image.",
                            ImageTimeBounds());
}

void AddVllmNames(Metrics& metrics) {
  for (const char* name : {"num_requests_running",
                           "num_requests_waiting",
                           "kv_cache_usage_perc",
                           "prompt_tokens_total",
                           "prompt_tokens_cached_total",
                           "generation_tokens_total",
                           "prefix_cache_queries_total",
                           "prefix_cache_hits_total",
                           "mm_cache_queries_total",
                           "mm_cache_hits_total",
                           "num_preemptions_total",
                           "request_success_total",
                           "time_to_first_token_seconds",
                           "inter_token_latency_seconds",
                           "request_time_per_output_token_seconds",
                           "e2e_request_latency_seconds",
                           "request_queue_time_seconds",
                           "request_prefill_time_seconds",
                           "request_decode_time_seconds",
                           "request_inference_time_seconds",
                           "iteration_tokens_total",
                           "request_prompt_tokens",
                           "request_generation_tokens"}) {
    metrics.AddAlias(std::string("conclave_") + name, std::string("vllm:") + name);
  }
}

std::vector<ExpertTokens> MostLoaded(std::vector<ExpertTokens> all, size_t series_max) {
  if (all.size() <= series_max) {
    return all;
  }
  using Key = std::pair<int32_t, int32_t>;
  struct Load {
    uint64_t tokens = 0;
    size_t num_series = 0;
  };
  std::map<Key, Load> by_expert;
  for (const ExpertTokens& entry : all) {
    Load& load = by_expert[{entry.layer, entry.expert}];
    load.tokens += entry.tokens;
    ++load.num_series;
  }
  std::vector<std::pair<Key, Load>> ordered(by_expert.begin(), by_expert.end());
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.second.tokens > b.second.tokens; });
  std::map<Key, bool> is_kept;
  size_t left = series_max;
  for (const auto& [key, load] : ordered) {
    if (load.num_series > left) {
      break;
    }
    is_kept[key] = true;
    left -= load.num_series;
  }
  std::erase_if(all, [&](const ExpertTokens& entry) {
    return !is_kept.contains({entry.layer, entry.expert});
  });
  return all;
}

void AddExpertTokens(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect) {
  metrics.AddCollector("moe_expert_tokens_total", "Token rows per expert.", Metrics::Kind::kCounter,
                       [collect] { return PerExpert(collect()); });
  const auto per_layer = [&](const char* name, const char* help, Metrics::Kind kind,
                             LayerFigure figure) {
    metrics.AddCollector(name, help, kind,
                         [collect, figure] { return PerLayer(collect(), figure); });
  };
  per_layer("moe_layer_expert_tokens_max_total", "Token rows of the layer's most loaded expert.",
            Metrics::Kind::kCounter, [](const LayerLoad& load) { return load.Max(); });
  per_layer("moe_layer_expert_tokens_mean_total", "Token rows per expert of the layer, mean.",
            Metrics::Kind::kCounter, [](const LayerLoad& load) { return load.Mean(); });
  per_layer("moe_layer_imbalance_ratio", "Max over mean of the layer's expert loads, since start.",
            Metrics::Kind::kGauge, [](const LayerLoad& load) {
              const double mean = load.Mean();
              return mean > 0 ? load.Max() / mean : 1.0;
            });
}

void AddExpertWeights(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect) {
  metrics.AddCollector("moe_expert_weight_sum_total", "Sum of the gates' weights per expert.",
                       Metrics::Kind::kCounter, [collect] {
                         std::map<std::tuple<int32_t, int32_t, Modality>, double> sums;
                         for (const ExpertTokens& entry : MostLoaded(collect(), kExpertSeriesMax)) {
                           sums[{entry.layer, entry.expert, entry.modality}] += entry.weights;
                         }
                         std::vector<Metrics::Sample> samples;
                         for (const auto& [key, sum] : sums) {
                           const auto& [layer, expert, modality] = key;
                           samples.push_back({{{"layer", std::to_string(layer)},
                                               {"expert", std::to_string(expert)},
                                               {"modality", std::string(NameOf(modality))}},
                                              sum});
                         }
                         return samples;
                       });
}

void AddGateBalance(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect) {
  metrics.AddCollector("moe_gate_probability_sum_total",
                       "Sum of the gate's probability of an expert over all rows of its layer.",
                       Metrics::Kind::kCounter, [collect] {
                         std::vector<Metrics::Sample> samples;
                         for (const ExpertTokens& entry : MostLoaded(collect(), kExpertSeriesMax)) {
                           samples.push_back({{{"layer", std::to_string(entry.layer)},
                                               {"expert", std::to_string(entry.expert)}},
                                              entry.weights});
                         }
                         return samples;
                       });
  metrics.AddCollector(
      "moe_balance_loss",
      "Experts times the sum of share of first choices times mean probability, since the start.",
      Metrics::Kind::kGauge, [collect] {
        struct Layer {
          double rows = 0, products = 0, experts = 0;
        };
        std::map<int32_t, Layer> layers;
        for (const ExpertTokens& entry : collect()) {
          Layer& layer = layers[entry.layer];
          layer.rows += static_cast<double>(entry.tokens);
          layer.products += static_cast<double>(entry.tokens) * entry.weights;
          ++layer.experts;
        }
        std::vector<Metrics::Sample> samples;
        for (const auto& [number, layer] : layers) {
          const double loss =
              layer.rows > 0 ? layer.experts * layer.products / (layer.rows * layer.rows) : 1;
          samples.push_back({{{"layer", std::to_string(number)}}, loss});
        }
        return samples;
      });
}

void AddWorkerTokens(Metrics& metrics, const std::function<std::vector<ExpertTokens>()>& collect) {
  metrics.AddCollector(
      "moe_worker_tokens_total", "Token rows per worker of this process.", Metrics::Kind::kCounter,
      [collect] {
        std::map<int32_t, uint64_t> sums;
        for (const ExpertTokens& entry : collect()) {
          sums[entry.worker] += entry.tokens;
        }
        std::vector<Metrics::Sample> samples;
        samples.reserve(sums.size());
        for (const auto& [worker, sum] : sums) {
          samples.push_back({{{"worker", std::to_string(worker)}}, static_cast<double>(sum)});
        }
        return samples;
      });
}

HttpMetrics::HttpMetrics(Metrics& metrics)
    : image_mime_mismatch(
          metrics.AddCounter("conclave_image_mime_mismatch_total",
                             "Images whose media type is not that of their bytes.")),
      metrics_(metrics) {}

void HttpMetrics::Observe(const std::string& route, int status, double seconds) {
  metrics_
      .AddCounter("conclave_http_requests_total", "Answered HTTP requests.",
                  {{"handler", route}, {"status", std::to_string(status)}})
      .Add();
  metrics_
      .AddHistogram("conclave_http_request_duration_seconds",
                    "From the last byte of the request to the last of the answer.",
                    {{"handler", route}}, RequestTimeBounds())
      .Observe(seconds);
}

void GrpcMetrics::Observe(const char* method, const char* code, double seconds) {
  metrics_
      .AddCounter("conclave_grpc_requests_total", "Calls of the gRPC API that ended.",
                  {{"method", method}, {"code", code}})
      .Add();
  metrics_
      .AddHistogram("conclave_grpc_request_duration_seconds",
                    "From the last byte of the request to the end of the call.",
                    {{"method", method}}, RequestTimeBounds())
      .Observe(seconds);
}

}  // namespace conclave::observability
