// Packs a whole model, once, for one numeric mode.
#pragma once

#include "absl/status/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/packed_writer.h"
#include "conclave/tensor/dtype.h"

namespace conclave::model {

// Adds everything that Decoder, VisionTower and LoadFfn load from `checkpoint` in the mode `dtype`
// (kF32, kBf16 or kQ8) to `writer`, whose source is `checkpoint`, and the hashes of all experts.
// Takes the memory of one matrix and its stored form. Errors of the loaders and of the writer.
absl::Status PackModel(const checkpoint::Checkpoint& checkpoint, DType dtype, ThreadPool& pool,
                       checkpoint::PackedWriter& writer);

}  // namespace conclave::model
