// The vision encoder and the projector: a normalised picture becomes the feature rows that are
// spliced into the prompt (spec 3.3 to 3.5).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/kernels/context.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

// Sees intermediate results, for parity tests. Views die with the call.
class VisionObserver {
 public:
  virtual ~VisionObserver() = default;
  // State `index` of the tower: 0 is what enters the first layer, n the output of layer n - 1.
  // [positions, width]
  virtual void OnHidden(int32_t index, MatView<const float> hidden) = 0;
  // [features, width] after the selection of layer and rows.
  virtual void OnFeatures(MatView<const float> features) = 0;
};

// Encode() by one thread at a time; it may run beside Decoder::Step on another thread over the same
// pool.
class VisionTower {
 public:
  // Loads the layers that are run and the projector from the checkpoint, which holds its tower
  // (spec 2.6). `mode` is the decoder's numeric mode; the tower computes in RowDtypeOf(mode):
  // its pictures are encoded once per conversation, and int8 costs them more than it saves
  // (docs/decisions/0034-what-q8-quantizes.md).
  static absl::StatusOr<std::unique_ptr<VisionTower>> Load(
      const checkpoint::Checkpoint& checkpoint, DType mode, const kernels::Context& compute,
      const std::function<void(int64_t, int64_t)>& on_progress);
  ~VisionTower();

  // pixels [3, image_size, image_size] f32 → projected features [num_features, hidden_dim of the
  // decoder] in `out`, which is overwritten. `observer` may be null.
  void Encode(std::span<const float> pixels, std::vector<float>& out, VisionObserver* observer);

  // Rows that one picture becomes.
  int32_t num_features() const;
  size_t weight_bytes() const;

 private:
  struct State;
  explicit VisionTower(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::model
