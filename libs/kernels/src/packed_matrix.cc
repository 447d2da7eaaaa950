// Packing of weights into panels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/kernels/matmul.h"
#include "parallel.h"
#include "q8_panel.h"

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

static_assert(kQ8BlockSize == kQ8Block && kQ8PanelColumns == kPanelColumns);

// The smallest bf16 that is not below `value`, which is positive, finite and normal.
Bf16 RoundedUp(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  return Bf16{static_cast<uint16_t>((bits + 0xffffu) >> 16)};
}

// The scale and the integers of one block, by the words of quantize.h.
Bf16 QuantizeBlock(const float (&w)[kQ8Block], int8_t (&q)[kQ8Block]) {
  float max = 0.0f;
  bool is_finite = true;
  for (const float value : w) {
    is_finite = is_finite && std::isfinite(value);
    max = std::max(max, std::abs(value));
  }
  if (!is_finite || max < kQ8Smallest) {
    std::fill(std::begin(q), std::end(q), int8_t{0});
    return is_finite ? Bf16{} : Bf16{0x7fc0};
  }
  const Bf16 scale = RoundedUp(max / kQ8Largest);
  const float d = ToFloat(scale);
  for (int64_t i = 0; i < kQ8Block; ++i) {
    q[i] = static_cast<int8_t>(std::lrint(w[i] / d));
  }
  return scale;
}

template <typename Source>
void PackQ8PanelRows(MatView<const typename Source::Element> rows, int64_t first_row, int64_t first,
                     int64_t last, std::byte* panel) {
  const int64_t k = rows.cols;
  for (int64_t begin = 0; begin < k; begin += kQ8Block, panel += kQ8PanelBlockBytes) {
    const int64_t count = std::min(kQ8Block, k - begin);
    for (int64_t row = first; row < last; ++row) {
      const auto* from = rows.Row(row - first_row) + begin;
      const int64_t col = row % kPanelColumns;
      float w[kQ8Block] = {};
      for (int64_t i = 0; i < count; ++i) {
        w[i] = Source::ToF32(from[i]);
      }
      int8_t q[kQ8Block];
      reinterpret_cast<Bf16*>(panel)[col] = QuantizeBlock(w, q);
      auto* to = reinterpret_cast<uint8_t*>(panel + kQ8PanelScaleBytes) + col * 4;
      for (int64_t i = 0; i < kQ8Block; ++i) {
        to[i / 4 * kQ8PanelStep + i % 4] = static_cast<uint8_t>(q[i] + kQ8Offset);
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
      std::byte* to = panels + panel * matrix.panel_bytes();
      if (matrix.dtype() == DType::kQ8) {
        PackQ8PanelRows<Source>(source, first_row, row, last, to);
      } else {
        PackPanelRows<Source>(source, first_row, row, last, matrix.dtype(), to);
      }
    }
  });
}

// Columns [first_col, 64) of a panel that no row is packed into hold zeros, as all padding.
void ClearQ8Columns(int64_t first_col, int64_t k, std::byte* panel) {
  for (int64_t b = 0; b < NumQ8Blocks(k); ++b, panel += kQ8PanelBlockBytes) {
    for (int64_t group = 0; group < kQ8Block / 4; ++group) {
      std::memset(panel + kQ8PanelScaleBytes + group * kQ8PanelStep + first_col * 4, kQ8Offset,
                  static_cast<size_t>(kPanelColumns - first_col) * 4);
    }
  }
}

int64_t PanelBytes(int64_t k, DType dtype) {
  if (dtype == DType::kQ8) {
    return NumQ8Blocks(k) * kQ8PanelBlockBytes;
  }
  const int64_t padded_k = (k + 1) / 2 * 2;
  return padded_k * kPanelColumns * static_cast<int64_t>(SizeOf(dtype));
}

}  // namespace

PackedMatrix::PackedMatrix(int64_t n, int64_t k, DType dtype) : n_(n), k_(k), dtype_(dtype) {
  CONCLAVE_CHECK(n >= 0 && k >= 0);
  CONCLAVE_CHECK(dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kQ8);
  buffer_ = AlignedBuffer(static_cast<size_t>(num_panels() * panel_bytes()));
  if (dtype == DType::kQ8 && n % kPanelColumns != 0) {
    ClearQ8Columns(n % kPanelColumns, k,
                   buffer_.As<std::byte>() + (num_panels() - 1) * panel_bytes());
  }
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
