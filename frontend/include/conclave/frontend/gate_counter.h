// Counts what the gates choose, on its way to the dispatcher: which expert of which layer gets how
// many rows, of which modality and phase, as first or second choice, and with how much weight; and
// how probable it was to the gate over all rows, chosen or not.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "conclave/checkpoint/model_desc.h"
#include "conclave/model/decoder.h"

namespace conclave::frontend {

// The executor between an engine and the one that does the work. A row counts when it is given to
// its experts, also in a step that fails afterwards; once, whatever the dispatcher has to do for
// it. Start, Poll and Finish by one thread, Loads by any.
class GateCounter : public model::MoeExecutor {
 public:
  // `next` outlives the counter. `layers`: every MoE layer of the model, ascending.
  GateCounter(model::MoeExecutor& next, std::span<const checkpoint::MoeLayerSpec> layers,
              int32_t top_k);

  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override;
  void Poll() override { next_.Poll(); }
  absl::Status Finish(int32_t micro_batch) override { return next_.Finish(micro_batch); }
  uint64_t num_resent() const override { return next_.num_resent(); }

  // Since the start. Of a step that is under way some rows may be in and others not.
  struct Load {
    int32_t layer = 0;
    int32_t expert = 0;
    bool is_image = false;
    bool is_prefill = false;
    int32_t rank = 0;  // 0: the row's first choice
    uint64_t rows = 0;
    double weights = 0;  // sum of the gate's weights over these rows
  };
  // Every combination, ordered by its fields as they stand there.
  std::vector<Load> Loads() const;

  // Sum over all rows of a layer of the gate's probability of each expert: layers ascending, within
  // a layer experts ascending. Rows whose gate's probabilities were not given are left out.
  std::vector<double> Probabilities() const;

 private:
  // Written by one thread, so a load and a store do where others would need an atomic addition.
  struct Cell {
    std::atomic<uint64_t> rows{0};
    std::atomic<double> weights{0};
  };
  // Of a layer: the first of its cells, [num_experts][modality][phase][rank].
  struct Cells {
    checkpoint::MoeLayerSpec layer;
    size_t begin = 0;
    size_t first_expert = 0;  // of its probabilities
  };

  model::MoeExecutor& next_;
  const int32_t top_k_;
  std::vector<Cells> layers_;
  std::vector<int32_t> index_of_;  // of layers_, by the layer's number; below 0: it has no experts
  size_t num_cells_ = 0;
  std::unique_ptr<Cell[]> cells_;
  size_t num_experts_ = 0;  // of all layers
  std::unique_ptr<std::atomic<double>[]> probabilities_;
};

}  // namespace conclave::frontend
