#include "conclave/checkpoint/model_summary.h"

#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/tensor_list.h"
#include "weight_files.h"

namespace conclave::checkpoint {
namespace {

// `dtype_of` says the stored dtype of a tensor, and whether it is stored at all.
template <typename SizeFn>
ModelSummary Count(const ModelDesc& desc, int32_t num_workers, const SizeFn& bytes_of) {
  CONCLAVE_CHECK(num_workers >= 1);
  ModelSummary out;
  out.desc = desc;
  out.kv_bytes_per_token = KvBytesPerToken(desc, DType::kBf16);
  if (!desc.moe.layers.empty()) {
    for (int32_t w = 0; w < num_workers; ++w) {
      out.workers.push_back({.worker = w, .num_experts = 0, .bytes = 0});
    }
  }
  int64_t idle = 0;  // parameters of experts that a token does not use
  int32_t moe_index = -1;
  int32_t moe_layer = -1;
  int32_t counted_expert = -1;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    const int64_t bytes = bytes_of(tensor);
    if (bytes < 0) {
      continue;
    }
    const int64_t num = tensor.num_elements();
    ++out.num_tensors;
    out.parameters.total += num;
    out.bytes.total += bytes;
    switch (tensor.part) {
      case TensorPart::kTower:
        out.parameters.vision += num;
        out.bytes.vision += bytes;
        continue;
      case TensorPart::kProjector:
        out.parameters.projector += num;
        continue;
      case TensorPart::kEmbedding:
      case TensorPart::kHead:
        out.bytes.embeddings += bytes;
        break;
      case TensorPart::kAttention:
        out.bytes.attention += bytes;
        break;
      default:
        break;
    }
    out.parameters.language += num;
    if (tensor.part != TensorPart::kExpert) {
      continue;
    }
    if (tensor.layer != moe_layer) {
      moe_layer = tensor.layer;
      counted_expert = -1;
      ++moe_index;
    }
    WorkerShare& share =
        out.workers[static_cast<size_t>((tensor.expert + moe_index) % num_workers)];
    share.num_experts += tensor.expert != counted_expert ? 1 : 0;
    share.bytes += bytes;
    counted_expert = tensor.expert;
    out.bytes.experts += bytes;
    idle += tensor.expert >= desc.moe.top_k ? num : 0;
    out.parameters.per_expert += moe_index == 0 && tensor.expert == 0 ? num : 0;
  }
  out.parameters.activated = out.parameters.language - idle;
  out.frontend_bytes = out.bytes.total - out.bytes.experts;
  return out;
}

bool IsMatrix(const ExpectedTensor& tensor) {
  return tensor.shape.size() >= 2 && tensor.part != TensorPart::kGate;
}

// Of the matrices, those that q8 makes int8.
bool IsQuantized(const ExpectedTensor& tensor) {
  return tensor.part != TensorPart::kEmbedding && tensor.part != TensorPart::kTower &&
         tensor.part != TensorPart::kProjector;
}

int64_t MatrixBytes(const ExpectedTensor& tensor, DType dtype) {
  if (dtype != DType::kQ8) {
    return tensor.num_elements() * static_cast<int64_t>(SizeOf(dtype));
  }
  constexpr int64_t kBlock = 32;
  constexpr int64_t kBlockBytes = 34;  // its elements and a bf16 scale
  const int64_t k = tensor.shape.back();
  return tensor.num_elements() / k * ((k + kBlock - 1) / kBlock) * kBlockBytes;
}

}  // namespace

ModelSummary Summarize(const ModelDesc& desc, int32_t num_workers) {
  const auto element = static_cast<int64_t>(SizeOf(desc.stored_dtype));
  return Count(desc, num_workers,
               [element](const ExpectedTensor& t) { return t.num_elements() * element; });
}

ModelSummary Summarize(const Checkpoint& checkpoint, int32_t num_workers) {
  ModelSummary out =
      Count(checkpoint.desc(), num_workers, [&checkpoint](const ExpectedTensor& t) -> int64_t {
        const TensorView* stored = checkpoint.Find(t.name);
        return stored == nullptr ? -1
                                 : t.num_elements() * static_cast<int64_t>(SizeOf(stored->dtype));
      });
  out.has_weights = true;
  if (const PackedFile* packed = checkpoint.packed(); packed != nullptr) {
    out.packed_dtype = packed->index().dtype;
    out.packed_bytes = packed->file_bytes();
  }
  return out;
}

absl::StatusOr<ModelSummary> Inspect(const std::string& folder, int32_t num_workers,
                                     const OpenOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder opened, ModelFolder::Open(folder));
  // The config first: whatever a folder's weights are, a model that is not supported is the more
  // useful message.
  CONCLAVE_ASSIGN_OR_RETURN(const ModelDesc desc, ReadModelDesc(folder, options));
  CONCLAVE_ASSIGN_OR_RETURN(const WeightsKind kind, FindWeights(opened));
  if (kind == WeightsKind::kNone) {
    return Summarize(desc, num_workers);
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                            Checkpoint::Open(folder, options));
  return Summarize(*checkpoint, num_workers);
}

int64_t LoadedBytes(const ModelDesc& desc, DType mode, bool has_experts) {
  int64_t bytes = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    if (!tensor.is_needed || (tensor.part == TensorPart::kExpert && !has_experts)) {
      continue;
    }
    if (!IsMatrix(tensor)) {
      bytes += tensor.num_elements() * static_cast<int64_t>(sizeof(float));
    } else if (IsQuantized(tensor)) {
      bytes += MatrixBytes(tensor, mode);
    } else {
      bytes += MatrixBytes(tensor, RowDtypeOf(mode));
    }
    if (tensor.part == TensorPart::kEmbedding && desc.tie_embeddings) {
      bytes += MatrixBytes(tensor, mode);
    }
  }
  return bytes;
}

int64_t KvBytesPerToken(const ModelDesc& desc, DType dtype) {
  const auto num_cached = std::count(desc.mixers.begin(), desc.mixers.end(), MixerKind::kAttention);
  return num_cached * 2 * desc.attention.num_kv_heads * desc.attention.head_dim *
         static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace conclave::checkpoint
