#include "sequence.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/text/prompt_template.h"

namespace conclave::frontend {
namespace {

// How many leading positions keep the embedding as it is stored.
int32_t NumUnscaled(const EngineOptions& options, const checkpoint::ModelDesc& desc,
                    const SequenceRequest& request, int32_t prompt_rows) {
  const bool is_multimodal = desc.vision.kind != checkpoint::TowerKind::kNone;
  if (desc.embedding_scale == 1.0f ||
      (is_multimodal && options.embedding_scaling == EmbeddingScaling::kConsistent)) {
    return std::numeric_limits<int32_t>::max();
  }
  return request.images.empty() ? 0 : prompt_rows;
}

}  // namespace

std::unique_ptr<Sequence> MakeSequence(const EngineOptions& options, const model::Decoder& decoder,
                                       SequenceId id, SequenceRequest request,
                                       std::shared_ptr<SequenceSink> sink, MonotonicTime now) {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = id;
  sequence->sink = std::move(sink);
  sequence->submitted = now;
  int32_t prompt_rows = static_cast<int32_t>(request.tokens.size() - request.images.size());
  for (const std::shared_ptr<const ImageFeatures>& features : request.images) {
    prompt_rows += features->num_rows;
  }
  sequence->rope_table = decoder.RopeTable(prompt_rows);
  sequence->num_unscaled = NumUnscaled(options, decoder.desc(), request, prompt_rows);
  size_t image = 0;
  for (const int32_t token : request.tokens) {
    if (token != text::kImageToken) {
      sequence->keys.push_back(sequence->KeyOf(token, static_cast<int32_t>(sequence->keys.size())));
      sequence->image_index.push_back(-1);
      sequence->prompt_tokens.push_back(token);
      continue;
    }
    CONCLAVE_CHECK(image < request.images.size());
    const ImageFeatures& features = *request.images[image];
    for (int32_t row = 0; row < features.num_rows; ++row) {
      sequence->keys.push_back({features.digest, row, sequence->rope_table * 2});
      sequence->image_index.push_back(static_cast<int16_t>(image));
    }
    sequence->stats.image_spans.emplace_back(
        static_cast<int32_t>(sequence->keys.size()) - features.num_rows, features.num_rows);
    sequence->stats.image_rows += features.num_rows;
    ++image;
  }
  CONCLAVE_CHECK(image == request.images.size() && !sequence->keys.empty());
  sequence->stats.prompt_rows = static_cast<int32_t>(sequence->keys.size());
  CONCLAVE_CHECK(request.max_tokens >= 1 &&
                 sequence->stats.prompt_rows + request.max_tokens <= options.max_model_len);
  sequence->generated.reserve(static_cast<size_t>(request.max_tokens));
  sequence->keys.reserve(sequence->keys.size() + static_cast<size_t>(request.max_tokens));
  if (request.trace != nullptr) {
    sequence->trace = std::make_unique<SequenceTrace>(request.trace);
  }
  sequence->request = std::move(request);
  return sequence;
}

int32_t MostExperts(const checkpoint::MoeSpec& moe) {
  int32_t most = 1;
  for (const checkpoint::MoeLayerSpec& layer : moe.layers) {
    most = std::max(most, layer.num_experts);
  }
  return most;
}

void KeepProbabilities(const checkpoint::MoeSpec& moe, Sequence& sequence, int32_t position,
                       size_t moe_layer, std::span<const float> probabilities) {
  const auto width = static_cast<size_t>(MostExperts(moe));
  const size_t stride = moe.layers.size() * width;
  const size_t end = (static_cast<size_t>(position) + 1) * stride;
  if (end > kGateValuesMax) {
    return;
  }
  std::vector<float>& kept = sequence.stats.gate_probabilities;
  if (kept.size() < end) {
    kept.resize(end, std::numeric_limits<float>::quiet_NaN());
  }
  std::copy(probabilities.begin(), probabilities.end(),
            kept.begin() + static_cast<std::ptrdiff_t>(end - stride + moe_layer * width));
}

}  // namespace conclave::frontend
