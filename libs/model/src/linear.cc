#include "conclave/model/linear.h"

#include <atomic>
#include <cmath>
#include <numeric>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"

namespace conclave::model {
namespace {

constexpr int64_t kScanChunk = int64_t{1} << 20;

template <typename Word>
bool HasNonfinite(const Word* words, int64_t count, Word mask) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) {
    found |= (words[i] & mask) == mask;
  }
  return found;
}

// The packing kernels read aligned f32, bf16 and f16; f64, and what archives of torch.save leave
// unaligned, are converted first.
bool IsReadInPlace(const checkpoint::TensorView& tensor) {
  return tensor.dtype != DType::kF64 &&
         reinterpret_cast<uintptr_t>(tensor.bytes.data()) % SizeOf(tensor.dtype) == 0;
}

absl::Status CheckFinite(const checkpoint::TensorView& tensor, ThreadPool& pool) {
  const int64_t count = tensor.num_elements();
  std::atomic<bool> found{false};
  pool.ParallelFor((count + kScanChunk - 1) / kScanChunk, [&](int64_t task) {
    const int64_t first = task * kScanChunk;
    const int64_t n = std::min(kScanChunk, count - first);
    bool bad = false;
    if (tensor.dtype == DType::kF32) {
      bad = HasNonfinite(reinterpret_cast<const uint32_t*>(tensor.bytes.data()) + first, n,
                         0x7f800000u);
    } else {
      const uint16_t mask = tensor.dtype == DType::kBf16 ? 0x7f80 : 0x7c00;
      bad = HasNonfinite(reinterpret_cast<const uint16_t*>(tensor.bytes.data()) + first, n, mask);
    }
    if (bad) {
      found.store(true, std::memory_order_relaxed);
    }
  });
  if (found.load()) {
    return InvalidArgument("tensor_nonfinite",
                           std::string(tensor.file) + ": tensor " + std::string(tensor.name) +
                               ": holds NaN or infinity; expected finite weights");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PackTensor(const checkpoint::Checkpoint& checkpoint, const std::string& name,
                        std::span<const int64_t> shape, kernels::PackedMatrix& matrix,
                        int64_t first_row, ThreadPool& pool) {
  CONCLAVE_ASSIGN_OR_RETURN(const checkpoint::TensorView tensor, checkpoint.Require(name, shape));
  const int64_t rows = shape[0];
  const int64_t k = matrix.k();
  CONCLAVE_CHECK(rows * k == tensor.num_elements() && first_row + rows <= matrix.n());
  if (!IsReadInPlace(tensor)) {
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> values, checkpoint::ToFloats(tensor));
    matrix.PackRows(first_row, MatView<const float>(values.data(), rows, k, k), pool);
    checkpoint.Release(tensor);
    return absl::OkStatus();
  }
  CONCLAVE_RETURN_IF_ERROR(CheckFinite(tensor, pool));
  const std::byte* bytes = tensor.bytes.data();
  switch (tensor.dtype) {
    case DType::kF32:
      matrix.PackRows(
          first_row, MatView<const float>(reinterpret_cast<const float*>(bytes), rows, k, k), pool);
      break;
    case DType::kBf16:
      matrix.PackRows(first_row,
                      MatView<const Bf16>(reinterpret_cast<const Bf16*>(bytes), rows, k, k), pool);
      break;
    default:
      matrix.PackRowsF16(
          first_row, MatView<const uint16_t>(reinterpret_cast<const uint16_t*>(bytes), rows, k, k),
          pool);
      break;
  }
  checkpoint.Release(tensor);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> LoadFloats(const checkpoint::Checkpoint& checkpoint,
                                              const std::string& name,
                                              std::span<const int64_t> shape) {
  CONCLAVE_ASSIGN_OR_RETURN(const checkpoint::TensorView tensor, checkpoint.Require(name, shape));
  return checkpoint::ToFloats(tensor);
}

absl::StatusOr<Linear> LoadLinear(const checkpoint::Checkpoint& checkpoint,
                                  std::span<const LinearPart> parts, int64_t k, bool has_bias,
                                  DType dtype, ThreadPool& pool) {
  const int64_t n =
      std::accumulate(parts.begin(), parts.end(), int64_t{0},
                      [](int64_t sum, const LinearPart& part) { return sum + part.rows; });
  Linear linear;
  linear.weight = kernels::PackedMatrix(n, k, dtype);
  int64_t first_row = 0;
  for (const LinearPart& part : parts) {
    const int64_t weight_shape[] = {part.rows, k};
    CONCLAVE_RETURN_IF_ERROR(PackTensor(checkpoint, part.name + ".weight", weight_shape,
                                        linear.weight, first_row, pool));
    if (has_bias) {
      const int64_t bias_shape[] = {part.rows};
      CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> bias,
                                LoadFloats(checkpoint, part.name + ".bias", bias_shape));
      linear.bias.insert(linear.bias.end(), bias.begin(), bias.end());
    }
    first_row += part.rows;
  }
  return linear;
}

GemmScratch::GemmScratch(int64_t max_rows, int64_t max_k, DType dtype) {
  if (dtype == DType::kBf16) {
    max_elements_ = max_rows * max_k;
    rounded_ = AlignedBuffer(static_cast<size_t>(max_elements_) * sizeof(Bf16));
  } else if (dtype == DType::kQ8) {
    q8_ = kernels::Q8Scratch(max_rows, max_k);
  }
}

void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const float> x, GemmScratch& scratch,
              MatView<float> y) {
  if (w.dtype() == DType::kQ8) {
    kernels::MatMul(context, scratch.q8_.Quantize(context, x), w, bias, y);
  } else if (w.dtype() == DType::kBf16) {
    CONCLAVE_CHECK(x.rows * x.cols <= scratch.max_elements_);
    const MatView<Bf16> rounded(scratch.rounded_.As<Bf16>(), x.rows, x.cols, x.cols);
    kernels::RoundToBf16(context, x, rounded);
    kernels::MatMul(context, rounded, w, bias, y);
  } else {
    kernels::MatMul(context, x, w, bias, y);
  }
}

void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const Bf16> x, GemmScratch& scratch,
              MatView<float> y) {
  if (w.dtype() == DType::kQ8) {
    kernels::MatMul(context, scratch.q8_.Quantize(context, x), w, bias, y);
  } else {
    kernels::MatMul(context, x, w, bias, y);
  }
}

void ApplyLinear(const kernels::Context& context, const Linear& linear, MatView<const float> x,
                 GemmScratch& scratch, MatView<float> y) {
  Multiply(context, linear.weight, linear.bias, x, scratch, y);
}

}  // namespace conclave::model
