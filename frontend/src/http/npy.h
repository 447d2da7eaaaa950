// NumPy's file format, version 1.0 (numpy/lib/format.py), for the arrays that replies carry.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace conclave::frontend {

// Bytes of a .npy file of int16 [n, num_moe_layers, top_k]; flat when an axis is 0 or does not
// divide the values.
std::string NpyFile(std::span<const int16_t> values, int32_t num_moe_layers, int32_t top_k);

}  // namespace conclave::frontend
