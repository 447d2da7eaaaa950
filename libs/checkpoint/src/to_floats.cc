// Stored values to f32, with a check that all are finite. The inner loops run over blocks of a
// constant size so that compilers vectorise them also at -O2.
#include <array>
#include <cmath>
#include <cstring>
#include <memory>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"

namespace conclave::checkpoint {
namespace {

constexpr size_t kBlock = 64;
constexpr uint32_t kExponent = 0x7f800000u;

// f16 to f32 by table: conversions by arithmetic would depend on whether this thread flushes
// denormals.
const std::array<uint32_t, 65536>& HalfTable() {
  static const auto table = [] {
    auto values = std::make_unique<std::array<uint32_t, 65536>>();
    for (uint32_t half = 0; half < values->size(); ++half) {
      (*values)[half] = __builtin_bit_cast(uint32_t, HalfToFloat(static_cast<uint16_t>(half)));
    }
    return values;
  }();
  return *table;
}

// out[i] = convert(in[i]) as bits of an f32; false when one is not finite.
template <typename In, typename Convert>
bool ConvertAll(std::span<const std::byte> bytes, std::vector<float>& out, const Convert& convert) {
  const size_t num = out.size();
  uint32_t worst = 0;
  for (size_t first = 0; first < num; first += kBlock) {
    const size_t count = std::min(kBlock, num - first);
    In in[kBlock] = {};
    uint32_t wide[kBlock];
    std::memcpy(in, bytes.data() + first * sizeof(In), count * sizeof(In));
    for (size_t i = 0; i < kBlock; ++i) {
      wide[i] = convert(in[i]);
    }
    uint32_t exponents[kBlock];
    for (size_t i = 0; i < kBlock; ++i) {
      exponents[i] = wide[i] & kExponent;
    }
    for (size_t i = 0; i < kBlock; ++i) {
      worst = std::max(worst, exponents[i]);
    }
    std::memcpy(out.data() + first, wide, count * sizeof(float));
  }
  return worst < kExponent;
}

absl::Status Nonfinite(const TensorView& tensor, const std::vector<float>& values) {
  size_t at = 0;
  while (at < values.size() &&
         (__builtin_bit_cast(uint32_t, values[at]) & kExponent) != kExponent) {
    ++at;
  }
  const bool is_nan = (__builtin_bit_cast(uint32_t, values[at]) & 0x7fffffu) != 0;
  return InvalidArgument("tensor_nonfinite", std::string(tensor.file) + ": tensor " +
                                                 std::string(tensor.name) +
                                                 ": expected finite numbers, found " +
                                                 (is_nan ? "NaN" : "an infinity") + " at element " +
                                                 std::to_string(at));
}

}  // namespace

absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
  bool is_finite = true;
  switch (tensor.dtype) {
    case DType::kF32:
      is_finite = ConvertAll<uint32_t>(tensor.bytes, out, [](uint32_t bits) { return bits; });
      break;
    case DType::kBf16:
      is_finite = ConvertAll<uint16_t>(
          tensor.bytes, out, [](uint16_t bits) { return static_cast<uint32_t>(bits) << 16; });
      break;
    case DType::kF16: {
      const std::array<uint32_t, 65536>& table = HalfTable();
      is_finite =
          ConvertAll<uint16_t>(tensor.bytes, out, [&table](uint16_t half) { return table[half]; });
      break;
    }
    case DType::kF64:
      is_finite = ConvertAll<uint64_t>(tensor.bytes, out, [](uint64_t bits) {
        return __builtin_bit_cast(uint32_t, static_cast<float>(__builtin_bit_cast(double, bits)));
      });
      break;
    default:
      return InvalidArgument("tensor_dtype", std::string(tensor.file) + ": tensor " +
                                                 std::string(tensor.name) +
                                                 ": expected floating point numbers, found " +
                                                 std::string(NameOf(tensor.dtype)));
  }
  if (!is_finite) {
    return Nonfinite(tensor, out);
  }
  return out;
}

}  // namespace conclave::checkpoint
