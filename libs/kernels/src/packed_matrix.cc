// Packing of weights into panels.
#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/kernels/matmul.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Elements of a source row that are packed before the next row: the touched part of the panel stays
// in L1.
constexpr int64_t kPackBlock = 32;

float FromHalf(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 0x1fu;
  if (exponent == 0 || exponent == 31) {
    return HalfToFloat(half);
  }
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  return __builtin_bit_cast(float,
                            sign | ((exponent + 112u) << 23) | ((uint32_t{half} & 0x3ffu) << 13));
}

struct FloatSource {
  using Element = float;
  static float ToF32(float value) { return value; }
  static uint16_t ToBf16Bits(float value) { return ToBf16(value).bits; }
};
struct Bf16Source {
  using Element = Bf16;
  static float ToF32(Bf16 value) { return ToFloat(value); }
  static uint16_t ToBf16Bits(Bf16 value) { return value.bits; }
};
struct HalfSource {
  using Element = uint16_t;
  static float ToF32(uint16_t value) { return FromHalf(value); }
  static uint16_t ToBf16Bits(uint16_t value) { return ToBf16(FromHalf(value)).bits; }
};

// Rows [first, last) of the matrix, all of one panel; `rows` starts at row first_row of the matrix.
template <typename Source>
void PackPanelRows(MatView<const typename Source::Element> rows, int64_t first_row, int64_t first,
                   int64_t last, DType dtype, std::byte* panel) {
  const int64_t k = rows.cols;
  for (int64_t begin = 0; begin < k; begin += kPackBlock) {
    const int64_t end = std::min(begin + kPackBlock, k);
    for (int64_t row = first; row < last; ++row) {
      const auto* from = rows.Row(row - first_row);
      const int64_t col = row % kPanelColumns;
      if (dtype == DType::kF32) {
        float* to = reinterpret_cast<float*>(panel);
        for (int64_t i = begin; i < end; ++i) {
          to[i * kPanelColumns + col] = Source::ToF32(from[i]);
        }
      } else {
        uint16_t* to = reinterpret_cast<uint16_t*>(panel);
        for (int64_t i = begin; i < end; ++i) {
          to[(i / 2 * kPanelColumns + col) * 2 + i % 2] = Source::ToBf16Bits(from[i]);
        }
      }
    }
  }
}

template <typename Source>
void PackRowsOf(const PackedMatrix& matrix, int64_t first_row,
                MatView<const typename Source::Element> source, std::byte* panels,
                ThreadPool& pool) {
  CONCLAVE_CHECK(panels != nullptr || matrix.size_bytes() == 0);  // not a borrowed one
  CONCLAVE_CHECK(source.cols == matrix.k());
  CONCLAVE_CHECK(first_row >= 0 && source.rows >= 0);
  CONCLAVE_CHECK(first_row + source.rows <= matrix.n());
  if (source.rows == 0) {
    return;
  }
  const int64_t end_row = first_row + source.rows;
  const int64_t first_panel = first_row / kPanelColumns;
  const int64_t num_panels = (end_row + kPanelColumns - 1) / kPanelColumns - first_panel;
  ParallelRuns(pool, num_panels, matrix.k() * kPanelColumns, [&](int64_t first, int64_t count) {
    for (int64_t panel = first_panel + first; panel < first_panel + first + count; ++panel) {
      const int64_t row = std::max(first_row, panel * kPanelColumns);
      const int64_t last = std::min(end_row, (panel + 1) * kPanelColumns);
      PackPanelRows<Source>(source, first_row, row, last, matrix.dtype(),
                            panels + panel * matrix.panel_bytes());
    }
  });
}

int64_t PanelBytes(int64_t k, DType dtype) {
  const int64_t padded_k = (k + 1) / 2 * 2;
  return padded_k * kPanelColumns * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace

PackedMatrix::PackedMatrix(int64_t n, int64_t k, DType dtype) : n_(n), k_(k), dtype_(dtype) {
  CONCLAVE_CHECK(n >= 0 && k >= 0);
  CONCLAVE_CHECK(dtype == DType::kF32 || dtype == DType::kBf16);
  buffer_ = AlignedBuffer(static_cast<size_t>(num_panels() * panel_bytes()));
}

PackedMatrix PackedMatrix::Borrow(int64_t n, int64_t k, DType dtype, SharedBytes panels) {
  CONCLAVE_CHECK(panels.size_bytes() == BytesOf(n, k, dtype));
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(panels.As<std::byte>()) % 64 == 0);
  PackedMatrix matrix;
  matrix.n_ = n;
  matrix.k_ = k;
  matrix.dtype_ = dtype;
  matrix.borrowed_ = std::move(panels);
  return matrix;
}

int64_t PackedMatrix::panel_bytes() const { return PanelBytes(k_, dtype_); }

size_t PackedMatrix::BytesOf(int64_t n, int64_t k, DType dtype) {
  return static_cast<size_t>((n + kPanelColumns - 1) / kPanelColumns * PanelBytes(k, dtype));
}

void PackedMatrix::PackRows(int64_t first_row, MatView<const float> source, ThreadPool& pool) {
  PackRowsOf<FloatSource>(*this, first_row, source, buffer_.As<std::byte>(), pool);
}

void PackedMatrix::PackRows(int64_t first_row, MatView<const Bf16> source, ThreadPool& pool) {
  PackRowsOf<Bf16Source>(*this, first_row, source, buffer_.As<std::byte>(), pool);
}

void PackedMatrix::PackRowsF16(int64_t first_row, MatView<const uint16_t> source,
                               ThreadPool& pool) {
  PackRowsOf<HalfSource>(*this, first_row, source, buffer_.As<std::byte>(), pool);
}

}  // namespace conclave::kernels
