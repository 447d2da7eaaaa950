// What a step, or a picture, costs in bytes and operations: the figures that a measured time is
// compared with. Counted from the model's shapes alone, exactly as the weights lie in memory.
//
// Bytes count every weight that is used once, in its packed form (padding included), biases, norms
// and gates, and the keys and values that are attended, once per sequence. Operations count a
// multiply-add as two, of products and attention; norms, activations and softmax are not counted.
// Pure.
#pragma once

#include <cstdint>

#include "conclave/checkpoint/model_desc.h"
#include "conclave/tensor/dtype.h"

namespace conclave::cli {

// What one step did.
struct StepWork {
  int64_t num_rows = 0;
  int64_t num_logit_rows = 0;
  // Positions that rows attend, summed over rows; of one layer. A row at position p sees p + 1, or
  // what the model's sliding window leaves of them: SeenBy.
  int64_t positions_attended = 0;
  // Positions whose keys and values are read, summed over sequences: rows of one sequence share
  // what they see.
  int64_t positions_read = 0;
  // Experts that at least one row went to, summed over the MoE layers.
  int64_t experts_used = 0;
};

struct StepCost {
  double bytes = 0;
  double operations = 0;
};

class CostModel {
 public:
  // `dtype` is the numeric mode.
  CostModel(const checkpoint::ModelDesc& desc, DType dtype);

  StepCost Of(const StepWork& work) const;

  // Positions that a row at `position` attends in every layer.
  int64_t SeenBy(int64_t position) const;

  // Of the weights that every step reads whatever its rows are, without the head.
  double shared_bytes() const { return shared_bytes_; }
  double head_bytes() const { return head_bytes_; }
  double expert_bytes() const { return expert_bytes_; }
  double kv_bytes_per_position() const { return kv_bytes_; }
  // Of one row in all layers: without attention over positions, and without the head.
  double operations_per_row() const { return row_operations_; }

 private:
  int64_t window_ = 0;
  double shared_bytes_ = 0;
  double head_bytes_ = 0;
  double expert_bytes_ = 0;
  double embedding_bytes_ = 0;  // of a row
  double kv_bytes_ = 0;         // of a position, all layers
  double row_operations_ = 0;
  double head_operations_ = 0;       // of a logit row
  double attention_operations_ = 0;  // of a row and a position, all layers
};

// Operations of encoding one picture: the layers of the tower that are run, and the projector. 0
// for a model without a tower.
double ImageOperations(const checkpoint::ModelDesc& desc);

}  // namespace conclave::cli
