#include "conclave/frontend/gate_counter.h"

#include <algorithm>

#include "conclave/base/check.h"

namespace conclave::frontend {

GateCounter::GateCounter(model::MoeExecutor& next, std::span<const checkpoint::MoeLayerSpec> layers,
                         int32_t top_k)
    : next_(next), top_k_(top_k) {
  CONCLAVE_CHECK(top_k > 0);
  for (const checkpoint::MoeLayerSpec& layer : layers) {
    CONCLAVE_CHECK(layer.layer >= static_cast<int32_t>(index_of_.size()) && layer.num_experts > 0);
    index_of_.resize(static_cast<size_t>(layer.layer), -1);
    index_of_.push_back(static_cast<int32_t>(layers_.size()));
    layers_.push_back({layer, num_cells_, num_experts_});
    num_experts_ += static_cast<size_t>(layer.num_experts);
    num_cells_ += static_cast<size_t>(layer.num_experts) * 4 * static_cast<size_t>(top_k);
  }
  cells_ = std::make_unique<Cell[]>(num_cells_);
  probabilities_ = std::make_unique<std::atomic<double>[]>(num_experts_);
}

void GateCounter::Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
                        std::span<const model::StepRow> rows, const model::GateChoice& choice,
                        MatView<float> out) {
  const int32_t index = index_of_.at(static_cast<size_t>(layer));
  CONCLAVE_CHECK(index >= 0 && choice.experts.cols == top_k_);
  CONCLAVE_CHECK(choice.probabilities.cols <=
                 layers_[static_cast<size_t>(index)].layer.num_experts);
  Cell* cells = cells_.get() + layers_[static_cast<size_t>(index)].begin;
  for (size_t r = 0; r < rows.size(); ++r) {
    const size_t kind = (rows[r].is_image ? 2u : 0u) + (rows[r].is_prefill ? 1u : 0u);
    const int32_t* experts = choice.experts.Row(static_cast<int64_t>(r));
    const float* weights = choice.weights.Row(static_cast<int64_t>(r));
    for (int32_t k = 0; k < top_k_; ++k) {
      const size_t place = static_cast<size_t>(experts[k]) * 4 + kind;
      Cell& cell = cells[place * static_cast<size_t>(top_k_) + static_cast<size_t>(k)];
      cell.rows.store(cell.rows.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      cell.weights.store(cell.weights.load(std::memory_order_relaxed) + double{weights[k]},
                         std::memory_order_relaxed);
    }
  }
  // One store per expert and step, whatever its rows.
  const MatView<const float>& probabilities = choice.probabilities;
  std::atomic<double>* sums = &probabilities_[layers_[static_cast<size_t>(index)].first_expert];
  for (int64_t e = 0; e < probabilities.cols; ++e) {
    double sum = sums[e].load(std::memory_order_relaxed);
    for (int64_t r = 0; r < probabilities.rows; ++r) {
      sum += double{probabilities.Row(r)[e]};
    }
    sums[e].store(sum, std::memory_order_relaxed);
  }
  next_.Start(micro_batch, layer, n, rows, choice, out);
}

std::vector<double> GateCounter::Probabilities() const {
  std::vector<double> sums(num_experts_);
  std::transform(
      probabilities_.get(), probabilities_.get() + num_experts_, sums.begin(),
      [](const std::atomic<double>& sum) { return sum.load(std::memory_order_relaxed); });
  return sums;
}

std::vector<GateCounter::Load> GateCounter::Loads() const {
  std::vector<Load> loads;
  loads.reserve(num_cells_);
  const Cell* cell = cells_.get();
  for (const Cells& layer : layers_) {
    for (int32_t expert = 0; expert < layer.layer.num_experts; ++expert) {
      for (const bool is_image : {false, true}) {
        for (const bool is_prefill : {false, true}) {
          for (int32_t rank = 0; rank < top_k_; ++rank, ++cell) {
            loads.push_back({layer.layer.layer, expert, is_image, is_prefill, rank,
                             cell->rows.load(std::memory_order_relaxed),
                             cell->weights.load(std::memory_order_relaxed)});
          }
        }
      }
    }
  }
  return loads;
}

}  // namespace conclave::frontend
