// Weight files that torch.save writes since PyTorch 1.6: a zip archive of a pickle that describes
// tensors and one stored entry per storage. Read without executing anything (tensor_pickle.h).
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "file.h"
#include "safetensors.h"

namespace conclave::checkpoint {

// Reads and checks what `file` says of its tensors, and none of their bytes; sorted by name. Every
// tensor lies within its storage's entry; two tensors are apart or, as ties are saved, the very
// same bytes. Reasons: "pickle_refused" (also for the format of before 1.6, which is a bare
// pickle), "torch_zip", "tensor_shape", "tensor_offsets", "model_read_error".
absl::StatusOr<std::vector<StoredTensor>> ReadTorchZip(const OpenedFile& file);

}  // namespace conclave::checkpoint
