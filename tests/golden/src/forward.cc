#include "forward.h"

#include <algorithm>

#include "conclave/base/status.h"
#include "conclave/model/sampler.h"
#include "conclave/text/prompt_template.h"
#include "pictures.h"

namespace conclave::golden {
namespace {

// Rows of the longest prompt and its answer; the recordings' prompts have less than half.
constexpr int32_t kMaxRows = 512;

}  // namespace

absl::StatusOr<std::unique_ptr<Forward>> Forward::Load(const std::string& folder, DType dtype,
                                                       const kernels::Context& compute) {
  auto forward = std::make_unique<Forward>();
  CONCLAVE_ASSIGN_OR_RETURN(forward->model_, cli::Assembly::Open(folder));
  cli::AssemblyOptions load;
  load.dtype = dtype;
  load.compute = compute;
  load.max_rows = kMaxRows;
  load.max_logit_rows = kMaxRows;
  CONCLAVE_RETURN_IF_ERROR(forward->model_->Load(load, nullptr));
  constexpr int32_t kNumBlocks = kMaxRows / kernels::kKvBlockTokens;
  forward->kv_ = std::make_unique<model::KvPool>(forward->model_->decoder->kv_layout(),
                                                 forward->model_->desc().num_layers, kNumBlocks);
  for (int32_t block = 0; block < kNumBlocks; ++block) {
    forward->block_table_.push_back(*forward->kv_->Allocate());
  }
  return forward;
}

absl::StatusOr<PromptRows> Forward::Build(std::span<const int32_t> ids,
                                          std::span<const std::string> pictures) {
  const auto dim = static_cast<size_t>(model_->desc().hidden_dim);
  PromptRows prompt;
  prompt.has_images = !pictures.empty();
  size_t next_picture = 0;
  for (const int32_t id : ids) {
    if (id != text::kImageToken) {
      prompt.rows.resize(prompt.rows.size() + dim);
      model_->decoder->Embed(id, IsScaled(prompt.has_images, true),
                             std::span(prompt.rows).last(dim));
      prompt.is_image.push_back(false);
      continue;
    }
    if (next_picture == pictures.size()) {
      return InvalidArgument("recording", "expected a picture for every image token");
    }
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> pixels,
                              PixelsOf(pictures[next_picture++], model_->desc().vision));
    std::vector<float> features;
    model_->tower->Encode(pixels, features, nullptr);
    prompt.rows.insert(prompt.rows.end(), features.begin(), features.end());
    prompt.is_image.insert(prompt.is_image.end(), features.size() / dim, true);
  }
  return prompt;
}

absl::StatusOr<MatView<const float>> Forward::Step(const PromptRows& prompt,
                                                   std::span<const float> input, int32_t first,
                                                   int32_t count, int32_t num_logits,
                                                   model::StepObserver* observer) {
  if (first + count > kMaxRows) {
    return InvalidArgument(
        "recording", "expected at most " + std::to_string(kMaxRows) + " rows of prompt and answer");
  }
  std::copy(input.begin(), input.end(), model_->decoder->input().data);
  std::vector<model::StepRow> rows;
  std::vector<int32_t> logit_rows;
  const int32_t rope_table = model_->decoder->RopeTable(prompt.length());
  for (int32_t r = 0; r < count; ++r) {
    const auto at = static_cast<size_t>(first + r);
    rows.push_back({first + r, block_table_.data(),
                    at < prompt.is_image.size() && prompt.is_image[at], at < prompt.is_image.size(),
                    rope_table});
    if (r >= count - num_logits) {
      logit_rows.push_back(r);
    }
  }
  return model_->decoder->Step(rows, logit_rows, *kv_, *model_->dispatcher, observer);
}

absl::StatusOr<std::vector<std::vector<float>>> Forward::Logits(const PromptRows& prompt,
                                                                std::span<const int32_t> forced,
                                                                model::StepObserver* observer) {
  const auto dim = static_cast<size_t>(model_->desc().hidden_dim);
  std::vector<float> input = prompt.rows;
  for (const int32_t id : forced) {
    input.resize(input.size() + dim);
    model_->decoder->Embed(id, IsScaled(prompt.has_images, false), std::span(input).last(dim));
  }
  const auto num_forced = static_cast<int32_t>(forced.size());
  CONCLAVE_ASSIGN_OR_RETURN(
      const MatView<const float> logits,
      Step(prompt, input, 0, prompt.length() + num_forced, num_forced + 1, observer));
  std::vector<std::vector<float>> out;
  for (int64_t r = 0; r < logits.rows; ++r) {
    out.emplace_back(logits.Row(r), logits.Row(r) + model_->tokenizer->size());
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> Forward::Answer(const PromptRows& prompt, int32_t max_tokens) {
  std::vector<int32_t> ids;
  std::vector<std::pair<float, int32_t>> scratch;
  std::vector<float> row(static_cast<size_t>(model_->desc().hidden_dim));
  absl::StatusOr<MatView<const float>> logits =
      Step(prompt, prompt.rows, 0, prompt.length(), 1, nullptr);
  for (int32_t step = 0; step < max_tokens; ++step) {
    CONCLAVE_RETURN_IF_ERROR(logits.status());
    ids.push_back(model::Sample(logits->RowSpan(0), model_->tokenizer->size(), {}, {}, {},
                                static_cast<uint64_t>(step), scratch)
                      .token);
    if (ids.back() == model_->desc().eos_token) {
      break;
    }
    model_->decoder->Embed(ids.back(), IsScaled(prompt.has_images, false), row);
    logits = Step(prompt, row, prompt.length() + step, 1, 1, nullptr);
  }
  return ids;
}

}  // namespace conclave::golden
