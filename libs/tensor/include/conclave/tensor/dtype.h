// Element types of stored and computed tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace conclave {

enum class DType : uint8_t { kF32, kBf16, kF16, kF64, kI8, kU8, kI16, kI32, kI64, kBool };

size_t SizeOf(DType dtype);            // bytes of one element
std::string_view NameOf(DType dtype);  // "f32", "bf16", ...

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
