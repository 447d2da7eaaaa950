#include "conclave/model/weight_source.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/tensor/view.h"

namespace conclave::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::PackedEntry;
using checkpoint::PackedFile;
using checkpoint::PackedKind;
using checkpoint::TensorView;
using kernels::PackedMatrix;

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
bool IsReadInPlace(const TensorView& tensor) {
  return tensor.dtype != DType::kF64 &&
         reinterpret_cast<uintptr_t>(tensor.bytes.data()) % SizeOf(tensor.dtype) == 0;
}

absl::Status CheckFinite(const TensorView& tensor, ThreadPool& pool) {
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

absl::Status PackTensor(const Checkpoint& checkpoint, const MatrixPart& part, PackedMatrix& matrix,
                        int64_t first_row, ThreadPool& pool) {
  CONCLAVE_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Require(part.name, part.shape));
  const int64_t rows = part.shape[0];
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

absl::StatusOr<AlignedBuffer> ConvertRows(const Checkpoint& checkpoint, const std::string& name,
                                          std::span<const int64_t> shape, DType dtype,
                                          ThreadPool& pool) {
  CONCLAVE_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Require(name, shape));
  AlignedBuffer out(static_cast<size_t>(tensor.num_elements()) * SizeOf(dtype));
  if (tensor.dtype == dtype) {
    std::memcpy(out.As<std::byte>(), tensor.bytes.data(), tensor.bytes.size());
  } else {
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> values, checkpoint::ToFloats(tensor));
    const int64_t cols = shape[1];
    pool.ParallelFor(shape[0], [&](int64_t row) {
      const auto first = values.begin() + row * cols;
      if (dtype == DType::kBf16) {
        std::transform(first, first + cols, out.As<Bf16>() + row * cols,
                       [](float value) { return ToBf16(value); });
      } else {
        std::copy_n(first, cols, out.As<float>() + row * cols);
      }
    });
  }
  checkpoint.Release(tensor);
  return out;
}

// The entry of that kind and name, with the shape and dtype that its user needs.
absl::StatusOr<const PackedEntry*> FindEntry(const PackedFile& file, PackedKind kind,
                                             const std::string& name, DType dtype, int64_t n,
                                             int64_t k) {
  const std::string where = std::string(checkpoint::kPackedFile) + ": ";
  if (kind == PackedKind::kMatrix && file.panel_revision() != kernels::kPanelRevision) {
    return InvalidArgument("packed_version", where +
                                                 "written by another conclave; expected panels "
                                                 "of revision " +
                                                 std::to_string(kernels::kPanelRevision) +
                                                 ", found " +
                                                 std::to_string(file.panel_revision()) +
                                                 "; pack the checkpoint again");
  }
  const PackedEntry* entry = file.Find(kind, name);
  if (entry == nullptr) {
    return NotFound("packed_entry", where + "no entry " + name + "; pack the checkpoint again");
  }
  if (entry->dtype != dtype) {
    return InvalidArgument("packed_dtype", where + "entry " + name + ": expected " +
                                               std::string(NameOf(dtype)) + ", found " +
                                               std::string(NameOf(entry->dtype)));
  }
  const bool has_size = kind != PackedKind::kMatrix || static_cast<size_t>(entry->size_bytes) ==
                                                           PackedMatrix::BytesOf(n, k, dtype);
  if (entry->n != n || entry->k != k || !has_size) {
    return InvalidArgument("packed_entry", where + "entry " + name + ": expected [" +
                                               std::to_string(n) + ", " + std::to_string(k) +
                                               "], found [" + std::to_string(entry->n) + ", " +
                                               std::to_string(entry->k) + "] in " +
                                               std::to_string(entry->size_bytes) + " bytes");
  }
  return entry;
}

// How a matrix of these parts is called in a packed file.
std::string EntryName(std::span<const MatrixPart> parts) {
  std::string name;
  for (const MatrixPart& part : parts) {
    name += (name.empty() ? "" : "|") + part.name;
  }
  return name;
}

int64_t Product(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    count *= size;
  }
  return count;
}

}  // namespace

absl::StatusOr<PackedMatrix> WeightSource::Matrix(std::span<const MatrixPart> parts, int64_t k,
                                                  DType dtype, ThreadPool& pool) const {
  int64_t n = 0;
  for (const MatrixPart& part : parts) {
    n += part.shape[0];
  }
  if (const PackedFile* file = checkpoint_->packed(); file != nullptr) {
    CONCLAVE_ASSIGN_OR_RETURN(const PackedEntry* entry,
                              FindEntry(*file, PackedKind::kMatrix, EntryName(parts), dtype, n, k));
    CONCLAVE_ASSIGN_OR_RETURN(SharedBytes panels, file->Take(*entry, pool));
    return PackedMatrix::Borrow(n, k, dtype, std::move(panels));
  }
  PackedMatrix matrix(n, k, dtype);
  int64_t first_row = 0;
  for (const MatrixPart& part : parts) {
    CONCLAVE_RETURN_IF_ERROR(PackTensor(*checkpoint_, part, matrix, first_row, pool));
    first_row += part.shape[0];
  }
  if (writer_ == nullptr) {
    return matrix;
  }
  CONCLAVE_RETURN_IF_ERROR(
      writer_->Add(PackedKind::kMatrix, EntryName(parts), dtype, n, k, matrix.bytes()));
  return PackedMatrix();
}

absl::StatusOr<SharedBytes> WeightSource::Rows(const std::string& name, int64_t rows, int64_t cols,
                                               DType dtype, ThreadPool& pool) const {
  if (const PackedFile* file = checkpoint_->packed(); file != nullptr) {
    CONCLAVE_ASSIGN_OR_RETURN(const PackedEntry* entry,
                              FindEntry(*file, PackedKind::kRows, name, dtype, rows, cols));
    return file->Take(*entry, pool);
  }
  const int64_t shape[] = {rows, cols};
  CONCLAVE_ASSIGN_OR_RETURN(AlignedBuffer buffer,
                            ConvertRows(*checkpoint_, name, shape, dtype, pool));
  if (writer_ == nullptr) {
    return SharedBytes(std::move(buffer));
  }
  CONCLAVE_RETURN_IF_ERROR(writer_->Add(PackedKind::kRows, name, dtype, rows, cols,
                                        {buffer.As<std::byte>(), buffer.size_bytes()}));
  return SharedBytes();
}

absl::StatusOr<std::vector<float>> WeightSource::Floats(const std::string& name,
                                                        std::span<const int64_t> shape) const {
  if (const PackedFile* file = checkpoint_->packed(); file != nullptr) {
    CONCLAVE_ASSIGN_OR_RETURN(const PackedEntry* entry, FindEntry(*file, PackedKind::kFloats, name,
                                                                  DType::kF32, Product(shape), 1));
    return file->Floats(*entry);
  }
  CONCLAVE_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint_->Require(name, shape));
  CONCLAVE_ASSIGN_OR_RETURN(std::vector<float> values, checkpoint::ToFloats(tensor));
  if (writer_ != nullptr) {
    CONCLAVE_RETURN_IF_ERROR(writer_->Add(PackedKind::kFloats, name, DType::kF32,
                                          static_cast<int64_t>(values.size()), 1,
                                          std::as_bytes(std::span(values))));
  }
  return values;
}

}  // namespace conclave::model
