#include "expert_tokens.h"

namespace conclave::cli {

void AppendExpertTokens(std::span<const expert_worker::ExpertLoad> loads, int32_t worker,
                        std::vector<observability::ExpertTokens>* out) {
  for (const expert_worker::ExpertLoad& load : loads) {
    for (const int phase : {0, 1}) {
      for (const int modality : {0, 1}) {
        observability::ExpertTokens sample;
        sample.layer = load.unit.layer.value();
        sample.expert = load.unit.expert.value();
        sample.phase = phase == 0 ? observability::Phase::kDecode : observability::Phase::kPrefill;
        sample.modality =
            modality == 0 ? observability::Modality::kText : observability::Modality::kImage;
        sample.worker = worker;
        sample.tokens = load.rows[phase][modality];
        out->push_back(sample);
      }
    }
  }
}

}  // namespace conclave::cli
