// Counts the sequences of first choices that rows take through the MoE layers ("pathways"): exact,
// in a table of bounded size.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/node_hash_map.h"
#include "conclave/base/mutex.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/live/figures.h"
#include "conclave/model/decoder.h"

namespace conclave::frontend {

// An executor in front of another one. Start, Poll and Finish by one thread, Counts by any.
class PathCounter : public model::MoeExecutor {
 public:
  // Paths of one modality that are counted one by one; rows on others are counted together.
  static constexpr size_t kPathsMax = 8192;

  // `next` outlives the counter. `layers`: every MoE layer of the model, ascending. `max_rows`: of
  // a step.
  PathCounter(model::MoeExecutor& next, std::span<const checkpoint::MoeLayerSpec> layers,
              int32_t max_rows);

  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override;
  void Poll() override { next_.Poll(); }
  absl::Status Finish(int32_t micro_batch) override { return next_.Finish(micro_batch); }
  uint64_t num_resent() const override { return next_.num_resent(); }

  // Since the start, by modality: text, image.
  std::array<live::PathCounts, live::kModalities> Counts() const;

 private:
  struct Table {
    // By the path's experts, two bytes each, high byte first: in the order of the experts. Nothing
    // is ever erased and nodes stay where they are, so that a reader needs the lock for a glance.
    absl::node_hash_map<std::string, uint64_t> paths;
    uint64_t rows = 0;
    uint64_t other = 0;
  };
  void Count(std::span<const model::StepRow> rows, const std::string& path_bytes)
      ABSL_LOCKS_EXCLUDED(mu_);

  model::MoeExecutor& next_;
  const size_t num_layers_;
  std::vector<int32_t> index_of_;  // among the MoE layers, by the layer's number
  // Of the step under way: [row][layer] two bytes each.
  std::array<std::string, model::kMicroBatches> open_;
  // Taken once per step by the engine, and by whoever reads.
  mutable Mutex mu_;
  std::array<Table, live::kModalities> tables_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::frontend
