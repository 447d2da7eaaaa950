// One model, prompt by prompt, without an engine: what its logits are after given tokens, and what
// it answers.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "assembly.h"
#include "conclave/kernels/context.h"

namespace conclave::golden {

// A prompt with its pictures in place of their ids.
struct PromptRows {
  std::vector<float> rows;  // [length, hidden_dim]
  std::vector<bool> is_image;
  bool has_images = false;

  int32_t length() const { return static_cast<int32_t>(is_image.size()); }
};

// One thread at a time.
class Forward {
 public:
  // Loads the checkpoint in the numeric mode `dtype`. The pool of `compute` outlives this.
  static absl::StatusOr<std::unique_ptr<Forward>> Load(const std::string& folder, DType dtype,
                                                       const kernels::Context& compute);

  // `ids` has text::kImageToken for every one of `pictures`, which are files.
  absl::StatusOr<PromptRows> Build(std::span<const int32_t> ids,
                                   std::span<const std::string> pictures);

  // Logits over the tokenizer's ids after the prompt and after each of `forced`:
  // [1 + forced.size()][ids]. `observer` sees all of them as rows of one step; it may be null.
  absl::StatusOr<std::vector<std::vector<float>>> Logits(const PromptRows& prompt,
                                                         std::span<const int32_t> forced,
                                                         model::StepObserver* observer);

  // The most likely token, again and again, until the end of the sequence, which is the last one
  // then, or `max_tokens`.
  absl::StatusOr<std::vector<int32_t>> Answer(const PromptRows& prompt, int32_t max_tokens);

  const cli::Assembly& model() const { return *model_; }

 private:
  // As the engine has it with EmbeddingScaling::kReference: tokens of an answer always, those of a
  // prompt unless it has pictures.
  static bool IsScaled(bool has_images, bool is_prefill) { return !has_images || !is_prefill; }
  absl::StatusOr<MatView<const float>> Step(const PromptRows& prompt, std::span<const float> input,
                                            int32_t first, int32_t count, int32_t num_logits,
                                            model::StepObserver* observer);

  std::unique_ptr<cli::Assembly> model_;
  std::unique_ptr<model::KvPool> kv_;
  std::vector<int32_t> block_table_;  // all of kv_, for one sequence after another
};

}  // namespace conclave::golden
