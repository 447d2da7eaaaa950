// The experts of a worker: the snapshot that calls read and the room that packs and tries them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/held_expert.h"
#include "conclave/kernels/context.h"
#include "conclave/model/ffn.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::expert_worker {

struct LoadedExpert {
  HeldExpert about;
  model::FfnWeights weights;
};

// Immutable. Experts are shared between snapshots.
struct HeldSet {
  // By UnitTable::IndexOf; null: not held.
  std::vector<std::shared_ptr<const LoadedExpert>> expert_of;
};

// Numbers the experts of a model, dense layers included as ones without experts.
class UnitTable {
 public:
  explicit UnitTable(const checkpoint::ModelDesc& desc);

  size_t size() const { return is_unit_.size(); }
  int32_t num_experts_max() const { return num_experts_max_; }
  size_t IndexOf(int32_t layer, int32_t expert) const {
    return static_cast<size_t>(layer) * num_experts_max_ + static_cast<size_t>(expert);
  }
  placement::ExpertUnit UnitAt(size_t index) const {
    return {LayerId(static_cast<int32_t>(index) / num_experts_max_),
            ExpertId(static_cast<int32_t>(index) % num_experts_max_)};
  }
  bool IsMoe(int32_t layer) const { return is_moe_[static_cast<size_t>(layer)] != 0; }
  // Whether the model has it.
  bool Has(placement::ExpertUnit unit) const;

 private:
  int32_t num_experts_max_ = 0;
  std::vector<uint8_t> is_moe_;   // [num_layers]
  std::vector<uint8_t> is_unit_;  // [num_layers * num_experts_max]
};

// Computes canary rows on the calling thread. One thread at a time.
class Canary {
 public:
  Canary(const checkpoint::ModelDesc& desc, DType dtype, const kernels::KernelTable* table);

  // CRC-32C of the expert's answer, in the wire dtype, to a row that depends on the model's row
  // width and the wire dtype alone: in bf16 and q8 the row is the same, the answer is not.
  uint32_t Checksum(const model::FfnWeights& weights);

 private:
  const DType wire_;  // of the row and its answer
  const int64_t width_;
  ThreadPool pool_{1};
  kernels::Context compute_;
  model::FfnScratch scratch_;
  AlignedBuffer row_;     // [1, width] wire
  AlignedBuffer output_;  // [1, width] f32
  std::vector<Bf16> rounded_;
};

}  // namespace conclave::expert_worker
