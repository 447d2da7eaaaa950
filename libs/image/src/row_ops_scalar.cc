#include <algorithm>
#include <array>

#include "row_ops.h"

namespace conclave::image {
namespace {

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

uint8_t Clamp(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

int32_t WeightAt(const SplitWeights& weights, int32_t tap) {
  return weights.high[tap] * 4096 + weights.low[tap];
}

void Shrink(const uint8_t* const* lines, const Tap* taps, int32_t from, int32_t to,
            uint8_t* const* out) {
  for (int32_t i = from; i < to; ++i) {
    const SplitWeights& weights = taps[i].weights;
    for (int32_t l = 0; l < kLines; ++l) {
      const uint8_t* pixel = lines[l] + int64_t{3} * taps[i].first;
      int32_t red = kHalf;
      int32_t green = kHalf;
      int32_t blue = kHalf;
      for (int32_t t = 0; t < taps[i].count; ++t, pixel += 3) {
        const int32_t weight = WeightAt(weights, t);
        red += weight * pixel[0];
        green += weight * pixel[1];
        blue += weight * pixel[2];
      }
      uint8_t* rgb = out[l] + int64_t{3} * i;
      rgb[0] = Clamp(red);
      rgb[1] = Clamp(green);
      rgb[2] = Clamp(blue);
    }
  }
}

void Columns(const uint8_t* in, int64_t row_bytes, const SplitWeights& weights, int32_t num_taps,
             uint8_t* out) {
  // A block of sums stays in L1, and each row is read in one go.
  constexpr int64_t kBlock = 512;
  std::array<int32_t, kBlock> sums;
  for (int64_t first = 0; first < row_bytes; first += kBlock) {
    const int64_t count = std::min(kBlock, row_bytes - first);
    std::fill_n(sums.begin(), count, kHalf);
    for (int32_t t = 0; t < num_taps; ++t) {
      const uint8_t* row = in + t * row_bytes + first;
      const int32_t weight = WeightAt(weights, t);
      for (int64_t j = 0; j < count; ++j) {
        sums[static_cast<size_t>(j)] += weight * row[j];
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      out[first + j] = Clamp(sums[static_cast<size_t>(j)]);
    }
  }
}

void Normalize(const uint8_t* rgb, int64_t num_pixels, const float mean[3], const float std[3],
               float* const plane[3]) {
  for (int c = 0; c < 3; ++c) {
    // A pixel has 256 values, so the arithmetic is done once for each.
    std::array<float, 256> value_of{};
    for (int v = 0; v < 256; ++v) {
      const auto unit = static_cast<float>(v * (1.0 / 255.0));
      value_of[static_cast<size_t>(v)] = (unit - mean[c]) / std[c];
    }
    for (int64_t i = 0; i < num_pixels; ++i) {
      plane[c][i] = value_of[rgb[3 * i + c]];
    }
  }
}

}  // namespace

const RowOps& ScalarRowOps() {
  static constexpr RowOps kOps = {Shrink, Columns, Normalize};
  return kOps;
}

}  // namespace conclave::image
