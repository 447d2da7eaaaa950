// The inner loops of resizing and normalising, in one version for each instruction set. All give
// the same bits: sums of integers do not depend on their order, and the float operations are the
// same ones, element by element. So the choice is this room's own affair, made by the CPU, and no
// part of --isa.
#pragma once

#include <cstdint>
#include <vector>

namespace conclave::image {

inline constexpr int kWeightBits = 22;

// Weights of one output position, as fixed point numbers of kWeightBits fractional bits, in two
// parts of 16 bits: weight = 4096 · high + low with low in [−2048, 2047]. Both parts are 0 from the
// last tap to the next multiple of kTapsUnit.
inline constexpr int32_t kTapsUnit = 8;
struct SplitWeights {
  const int16_t* high = nullptr;
  const int16_t* low = nullptr;
};

// What an output position is made of: the inputs [first, first + count). A horizontal pass may read
// on to the next multiple of kTapsUnit of them, of which the rest counts nothing.
struct Tap {
  int32_t first = 0;
  int32_t count = 0;
  SplitWeights weights;
};

// Bytes behind the last pixel of a line that a horizontal pass may read: taps up to the next
// multiple of kTapsUnit, and the rest of a register. Their values do not matter.
inline constexpr int64_t kLineSlack = 3 * kTapsUnit + 32;

// Lines that a horizontal pass takes at once; they share the loads of weights.
inline constexpr int32_t kLines = 4;

struct RowOps {
  // out[l][3·i + c] = Clamp(Σ_t weight(i, t) · line[l][3·(first(i) + t) + c]) for the positions i
  // of [from, to) and kLines lines, RGB. Outputs do not overlap the lines.
  void (*shrink)(const uint8_t* const* lines, const Tap* taps, int32_t from, int32_t to,
                 uint8_t* const* out);
  // out[j] = Clamp(Σ_t weight(t) · in[t · row_bytes + j]) for the columns j of [0, row_bytes) and
  // `num_taps` rows. `out` does not overlap `in`.
  void (*columns)(const uint8_t* in, int64_t row_bytes, const SplitWeights& weights,
                  int32_t num_taps, uint8_t* out);
  // plane[c][i] = (f32(f64(rgb[3·i + c]) · (1/255)) − mean[c]) / std[c].
  void (*normalize)(const uint8_t* rgb, int64_t num_pixels, const float mean[3], const float std[3],
                    float* const plane[3]);
};

enum class RowPath { kScalar, kAvx2, kAvx512 };

// All that this CPU runs, slowest first.
std::vector<RowPath> SupportedRowPaths();
// Of a supported path.
const RowOps& RowOpsOf(RowPath path);

// The fastest supported, or the one that tests ask for. The setting holds for the process, and
// pictures that are being resized meanwhile may take either.
const RowOps& CurrentRowOps();
void UseRowPath(RowPath path);

// One for each file.
const RowOps& ScalarRowOps();
const RowOps& Avx2RowOps();
const RowOps& Avx512RowOps();

}  // namespace conclave::image
