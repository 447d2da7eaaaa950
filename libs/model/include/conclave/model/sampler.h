// From logits to the next token: a pure function of (logits, history, parameters, seed, step).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace conclave::model {

struct SamplerParams {
  float temperature = 0.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;  // <= 0: off
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // ids below vocab_size
  std::vector<int32_t> banned;                        // never chosen, such as EOS under ignore_eos
  int32_t num_top_logprobs = -1;                      // -1: none
};

struct TokenChoice {
  int32_t token = 0;
  float logprob = 0.0f;                                 // of the raw logits, when asked for
  std::vector<std::pair<int32_t, float>> top_logprobs;  // best first, ties by lower id
};

// Chooses from logits[0, vocab_size). Order as Hugging Face `generate`: penalties and bias, then
// greedy (ties to the lowest id) or temperature → top-k → top-p → min-p → multinomial.
//   prompt, generated   earlier ids of the sequence, for the penalties: repetition counts both
//   (image positions are no
//                       ids), presence and frequency the generated ones
//   step                number of tokens generated before this one; with the seed it is the whole
//   state of randomness
//   scratch             reused between calls to avoid allocation
TokenChoice Sample(std::span<const float> logits, int32_t vocab_size, const SamplerParams& params,
                   std::span<const int32_t> prompt, std::span<const int32_t> generated,
                   uint64_t step, std::vector<std::pair<float, int32_t>>& scratch);

// The uniform number in [0, 1) of (seed, step): 53 bits of SplitMix64.
double UniformOf(uint64_t seed, uint64_t step);

}  // namespace conclave::model
