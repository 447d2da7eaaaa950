// Element types of stored and computed tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace conclave {

// kQ8 is a numeric mode and a form of packed weights, never the type of a stored tensor: blocks of
// 32 int8 along the inputs with one scale each (kernels/quantize.h).
enum class DType : uint8_t { kF32, kBf16, kF16, kF64, kI8, kU8, kI16, kI32, kI64, kBool, kQ8 };

size_t SizeOf(DType dtype);            // bytes of one element; aborts for kQ8, which has blocks
std::string_view NameOf(DType dtype);  // "f32", "bf16", ...

// The element type of a numeric mode's rows: what is dispatched to experts, kept as keys and
// values and looked up as embeddings. kF32 for kF32, kBf16 for kBf16 and kQ8.
constexpr DType RowDtypeOf(DType mode) { return mode == DType::kF32 ? DType::kF32 : DType::kBf16; }

// bfloat16 as stored: the upper half of an f32.
struct Bf16 {
  uint16_t bits = 0;
  friend bool operator==(const Bf16&, const Bf16&) = default;
};

inline float ToFloat(Bf16 value) {
  const uint32_t wide = static_cast<uint32_t>(value.bits) << 16;
  return __builtin_bit_cast(float, wide);
}

// Round to nearest even; denormal inputs become zero with their sign and a NaN stays a (quiet) NaN,
// exactly as VCVTNEPS2BF16 does, so that every ISA path rounds alike.
inline Bf16 ToBf16(float value) {
  uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  if (magnitude < 0x00800000u) {
    return Bf16{static_cast<uint16_t>((bits >> 16) & 0x8000u)};
  }
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return Bf16{static_cast<uint16_t>(bits >> 16)};
}

// IEEE half precision to f32, exact, denormals included.
float HalfToFloat(uint16_t half);

// f32 to IEEE half precision, round to nearest even.
uint16_t FloatToHalf(float value);

}  // namespace conclave
