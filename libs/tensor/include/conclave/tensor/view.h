// Non-owning views. A view never outlives the buffer it points into; who owns that is said where
// the view is made.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

namespace conclave {

// A row-major matrix [rows, cols]; `stride` elements lie between the starts of two rows.
template <typename T>
struct MatView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatView() = default;
  MatView(T* d, int64_t r, int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  MatView(T* d, int64_t r, int64_t c, int64_t s) : data(d), rows(r), cols(c), stride(s) {}

  // NOLINTNEXTLINE(google-explicit-constructor): a view of T reads as a view of const T.
  operator MatView<const T>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }

  T* Row(int64_t r) const { return data + r * stride; }
  std::span<T> RowSpan(int64_t r) const { return {Row(r), static_cast<size_t>(cols)}; }
  // Rows [first, first + count).
  MatView Rows(int64_t first, int64_t count) const { return {Row(first), count, cols, stride}; }
  // Columns [first, first + count) of all rows.
  MatView Cols(int64_t first, int64_t count) const { return {data + first, rows, count, stride}; }
};

}  // namespace conclave
