// Activation rows as bytes on the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "conclave/tensor/dtype.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

// Type of the rows that a numeric mode sends. Several modes may have the same: those that may be
// paired are told apart at the handshake (PairTerms::mode), not by their frames.
constexpr WireDtype WireDtypeOf(DType mode) {
  return RowDtypeOf(mode) == DType::kF32 ? WireDtype::kF32 : WireDtype::kBf16;
}

// Bytes of one element.
constexpr size_t SizeOf(WireDtype dtype) { return dtype == WireDtype::kF32 ? 4 : 2; }

// Bytes of `num_rows` rows of `row_width` elements; 64-bit, so that no product of header fields
// overflows.
constexpr uint64_t RowBytes(uint64_t num_rows, uint64_t row_width, WireDtype dtype) {
  return num_rows * row_width * SizeOf(dtype);
}

// Whether no element is NaN or infinite. `rows` holds whole elements and is aligned to them.
bool AllFinite(std::span<const std::byte> rows, WireDtype dtype);

}  // namespace conclave::transport
