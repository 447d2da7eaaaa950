// NumPy's file format, version 1.0 (numpy/lib/format.py), for the arrays that replies carry.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace conclave::frontend {

// Bytes of a .npy file of int16 or float32 [n, rows, columns]; flat when an axis is 0 or does not
// divide the values.
std::string NpyFile(std::span<const int16_t> values, int32_t rows, int32_t columns);
std::string NpyFile(std::span<const float> values, int32_t rows, int32_t columns);

}  // namespace conclave::frontend
