// Row-wise and element-wise operations in f32. Sums over a row go through 16 virtual lanes: lane l
// adds the elements with index ≡ l (mod 16) in ascending order, then lanes are added l += l + 8, l
// + 4, l + 2, l + 1, on every ISA path. exp, the logistic function σ and the normal distribution
// function Φ are the room's own (error bounds in docs/decisions/0003-same-bits.md). A shape that
// does not fit is a broken invariant and aborts. Views may have any stride; rows of an output must
// not overlap. A NaN stays in its row.
#pragma once

#include <cstdint>
#include <span>

#include "conclave/kernels/context.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::kernels {

// y[r, :] = (x[r, :] - mean) * rsqrt(var + eps) * w + b, biased variance, from centred values in a
// second pass. An empty `bias` counts as zeros. y may alias x.
void LayerNorm(const Context& context, MatView<const float> x, std::span<const float> weight,
               std::span<const float> bias, float eps, MatView<float> y);

// y[r, :] = w * (x[r, :] * rsqrt(mean(x²) + eps)). y may alias x.
void RmsNorm(const Context& context, MatView<const float> x, std::span<const float> weight,
             float eps, MatView<float> y);

// y = bf16(x), round to nearest even, exactly as ToBf16.
void RoundToBf16(const Context& context, MatView<const float> x, MatView<Bf16> y);
// y = f32(x), exact.
void WidenBf16(const Context& context, MatView<const Bf16> x, MatView<float> y);

// y += scale * x, as fma(scale, x, y).
void AddScaled(const Context& context, MatView<const float> x, float scale, MatView<float> y);

// A term of the exact combine (data-plane.md section 4) of one row, on the calling thread: t =
// weight · y, rounded once to bf16 if `is_rounded`; sum = t for the first term, else sum + t in
// f32.
void AddTerm(const Context& context, std::span<const float> y, float weight, bool is_first,
             bool is_rounded, std::span<float> sum);

enum class Activation {
  kSilu,       // x·σ(x)
  kGeluTanh,   // 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))), as x·σ(2√(2/π)(x + 0.044715x³))
  kGeluErf,    // 0.5x(1 + erf(x/√2)), as x·Φ(x)
  kQuickGelu,  // x·σ(1.702x)
};

// In place.
void Activate(const Context& context, Activation activation, MatView<float> x);

// out[r, f] = act(gate_up[r, f]) * gate_up[r, F + f], F = gate_up.cols / 2: the gated FFN (SwiGLU
// for kSilu). `out` [rows, F] must not alias gate_up.
void GatedActivate(const Context& context, Activation activation, MatView<const float> gate_up,
                   MatView<float> out);

// Rotary position embedding, half-split: within every head of `head_dim` the pairs (i, i + d/2), i
// < d/2, of the first d = 2·cos.cols dims rotate; the others pass. x [rows, num_heads·head_dim] in
// place; cos, sin [positions, d/2]; row r uses table row positions[r].
void RotateHalfSplit(const Context& context, MatView<const float> cos, MatView<const float> sin,
                     std::span<const int32_t> positions, int64_t num_heads, int64_t head_dim,
                     MatView<float> x);

// logits[r, e] = dot(x[r, :], weight[e, :]) in f32 over 16 lanes: the gate, and any other matrix
// too narrow to pack.
void DotRows(const Context& context, MatView<const float> x, MatView<const float> weight,
             MatView<float> logits);

// In place softmax of each row, f32, over all columns.
void Softmax(const Context& context, MatView<float> x);

}  // namespace conclave::kernels
