// The q8 GEMM in plain C++: the reference of the vector versions.
#pragma once

namespace conclave::kernels {
namespace {

[[maybe_unused]] void MatMulQ8Scalar(const Q8PanelJob& job) {
  for (int64_t r = 0; r < job.rows; ++r) {
    for (int64_t col = 0; col < job.cols; ++col) {
      const int8_t* x = job.x + r * job.num_blocks * 32;
      const uint8_t* block = static_cast<const uint8_t*>(job.panel);
      float acc = 0.0f;
      for (int64_t b = 0; b < job.num_blocks; ++b, block += kQ8PanelBlockBytes, x += 32) {
        const uint32_t scale = reinterpret_cast<const uint16_t*>(block)[col];
        const uint8_t* w = block + kQ8PanelScaleBytes + col * 4;
        int32_t sum = -kQ8Offset * job.sums[r * job.num_blocks + b];
        for (int64_t i = 0; i < 32; ++i) {
          sum += int32_t{x[i]} * int32_t{w[i / 4 * 256 + i % 4]};
        }
        const float factor =
            job.scales[r * job.num_blocks + b] * __builtin_bit_cast(float, scale << 16);
        acc = __builtin_fmaf(static_cast<float>(sum), factor, acc);
      }
      job.y[r * job.y_stride + col] = job.bias == nullptr ? acc : acc + job.bias[col];
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
