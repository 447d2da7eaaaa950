#include "conclave/model/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "conclave/base/check.h"

namespace conclave::model {
namespace {

using Candidate = std::pair<float, int32_t>;  // logit (later probability), id

// Higher logit first, lower id on ties: greedy and top-k agree on what "best" is.
bool IsBetter(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

// log Σ exp(logits), in f64.
double LogSumExp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - top);
  }
  return top + std::log(sum);
}

void FillLogprobs(std::span<const float> logits, int32_t num_top, std::vector<Candidate>& scratch,
                  TokenChoice& choice) {
  const double log_sum = LogSumExp(logits);
  choice.logprob =
      static_cast<float>(static_cast<double>(logits[static_cast<size_t>(choice.token)]) - log_sum);
  scratch.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    scratch.emplace_back(logits[id], static_cast<int32_t>(id));
  }
  const auto count = std::min<size_t>(static_cast<size_t>(num_top), scratch.size());
  std::partial_sort(scratch.begin(), scratch.begin() + static_cast<ptrdiff_t>(count), scratch.end(),
                    IsBetter);
  for (size_t i = 0; i < count; ++i) {
    choice.top_logprobs.emplace_back(
        scratch[i].second, static_cast<float>(static_cast<double>(scratch[i].first) - log_sum));
  }
}

void ApplyPenalties(const SamplerParams& params, std::span<const int32_t> prompt,
                    std::span<const int32_t> generated, std::vector<Candidate>& candidates) {
  if (params.repetition_penalty != 1.0f) {
    std::vector<int32_t> seen(prompt.begin(), prompt.end());
    seen.insert(seen.end(), generated.begin(), generated.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const int32_t id : seen) {
      if (id >= 0 && static_cast<size_t>(id) < candidates.size()) {
        float& logit = candidates[static_cast<size_t>(id)].first;
        logit =
            logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      }
    }
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    std::vector<int32_t> sorted(generated.begin(), generated.end());
    std::sort(sorted.begin(), sorted.end());
    for (auto it = sorted.begin(); it != sorted.end();) {
      const auto next = std::upper_bound(it, sorted.end(), *it);
      if (*it >= 0 && static_cast<size_t>(*it) < candidates.size()) {
        candidates[static_cast<size_t>(*it)].first -=
            params.presence_penalty + params.frequency_penalty * static_cast<float>(next - it);
      }
      it = next;
    }
  }
  for (const auto& [id, bias] : params.logit_bias) {
    candidates[static_cast<size_t>(id)].first += bias;
  }
  for (const int32_t id : params.banned) {
    if (id >= 0 && static_cast<size_t>(id) < candidates.size()) {
      candidates[static_cast<size_t>(id)].first = -std::numeric_limits<float>::infinity();
    }
  }
}

// Keeps what top-k, top-p and min-p leave and draws from it. `candidates` is reordered.
int32_t Draw(const SamplerParams& params, double uniform, std::vector<Candidate>& candidates) {
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + params.top_k, candidates.end(),
                     IsBetter);
    candidates.resize(static_cast<size_t>(params.top_k));
  }
  std::sort(candidates.begin(), candidates.end(), IsBetter);
  const double top = candidates.front().first;
  double sum = 0.0;
  std::vector<double> probabilities(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    probabilities[i] = std::exp((static_cast<double>(candidates[i].first) - top) /
                                static_cast<double>(params.temperature));
    sum += probabilities[i];
  }
  // top-p keeps the shortest run of best tokens whose probability reaches p; at least one.
  size_t kept = 0;
  double mass = 0.0;
  while (kept < candidates.size()) {
    const double probability = probabilities[kept] / sum;
    if (kept > 0 && (mass >= static_cast<double>(params.top_p) ||
                     probability < static_cast<double>(params.min_p) * (probabilities[0] / sum))) {
      break;
    }
    mass += probability;
    ++kept;
  }
  double target = uniform * mass;
  for (size_t i = 0; i < kept; ++i) {
    target -= probabilities[i] / sum;
    if (target < 0.0) {
      return candidates[i].second;
    }
  }
  return candidates[kept - 1].second;
}

bool IsPlainGreedy(const SamplerParams& params) {
  return params.temperature == 0.0f && params.repetition_penalty == 1.0f &&
         params.presence_penalty == 0.0f && params.frequency_penalty == 0.0f &&
         params.logit_bias.empty() && params.banned.empty();
}

}  // namespace

double UniformOf(uint64_t seed, uint64_t step) {
  uint64_t x = seed + (step + 1) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1.0p-53;
}

TokenChoice Sample(std::span<const float> logits, int32_t vocab_size, const SamplerParams& params,
                   std::span<const int32_t> prompt, std::span<const int32_t> generated,
                   uint64_t step, std::vector<std::pair<float, int32_t>>& scratch) {
  CONCLAVE_CHECK(vocab_size > 0 && static_cast<size_t>(vocab_size) <= logits.size());
  const std::span<const float> usable = logits.first(static_cast<size_t>(vocab_size));
  TokenChoice choice;
  if (IsPlainGreedy(params)) {
    choice.token =
        static_cast<int32_t>(std::max_element(usable.begin(), usable.end()) - usable.begin());
  } else {
    scratch.clear();
    for (size_t id = 0; id < usable.size(); ++id) {
      scratch.emplace_back(usable[id], static_cast<int32_t>(id));
    }
    ApplyPenalties(params, prompt, generated, scratch);
    choice.token = params.temperature == 0.0f
                       ? std::min_element(scratch.begin(), scratch.end(), IsBetter)->second
                       : Draw(params, UniformOf(params.seed, step), scratch);
  }
  if (params.num_top_logprobs >= 0) {
    FillLogprobs(usable, params.num_top_logprobs, scratch, choice);
  }
  return choice;
}

}  // namespace conclave::model
