// The layout of a q8 weight panel, for packing and for all kernels. Constants alone: this header is
// included by files of different instruction sets (kernel_table.h says why that matters).
//
// A panel is one block after another along K, each
//   bf16  scales[64]           d[n, b] of the panel's outputs
//   u8    weights[8][64][4]    q + 128; four consecutive inputs of an output side by side
#pragma once

#include <cstdint>

namespace conclave::kernels {

inline constexpr int64_t kQ8BlockSize = 32;                   // kQ8Block of quantize.h
inline constexpr int64_t kQ8PanelColumns = 64;                // kPanelColumns of matmul.h
inline constexpr int64_t kQ8PanelStep = 4 * kQ8PanelColumns;  // bytes of four inputs of all outputs
inline constexpr int64_t kQ8PanelScaleBytes = 2 * kQ8PanelColumns;
inline constexpr int64_t kQ8PanelBlockBytes = kQ8PanelScaleBytes + kQ8BlockSize * kQ8PanelColumns;
// What a weight byte has added to it: VPDPBUSD wants one unsigned side.
inline constexpr int32_t kQ8Offset = 128;
// Blocks whose largest magnitude is below this become zero.
inline constexpr float kQ8Smallest = 0x1p-100f;
inline constexpr float kQ8Largest = 127.0f;

}  // namespace conclave::kernels
