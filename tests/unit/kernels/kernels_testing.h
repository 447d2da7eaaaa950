// Inputs and comparisons shared by the tests of the kernels.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "conclave/kernels/context.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::kernels {

// Names a path in gtest's output.
inline void PrintTo(Isa isa, std::ostream* out) { *out << NameOf(isa); }

inline std::string IsaTestName(const testing::TestParamInfo<Isa>& info) {
  std::string name(NameOf(info.param));
  std::erase(name, '-');
  return name;
}

// A row-major matrix whose rows lie `stride` >= cols apart; what lies between rows is `T{}` unless
// a test fills it.
template <typename T>
struct Matrix {
  int64_t rows;
  int64_t cols;
  int64_t stride;
  std::vector<T> values;

  Matrix(int64_t r, int64_t c, int64_t s = 0)
      : rows(r), cols(c), stride(s == 0 ? c : s), values(static_cast<size_t>(rows * stride)) {}

  MatView<T> View() { return {values.data(), rows, cols, stride}; }
  MatView<const T> View() const { return {values.data(), rows, cols, stride}; }
  T& At(int64_t r, int64_t c) { return values[static_cast<size_t>(r * stride + c)]; }
  const T& At(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * stride + c)]; }
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  float Uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  int64_t Int(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  // Any finite f32: all exponents alike, denormals, zeros of both signs.
  float AnyFinite() {
    while (true) {
      const uint32_t bits = static_cast<uint32_t>(engine_());
      if ((bits & 0x7f800000u) != 0x7f800000u) {
        return __builtin_bit_cast(float, bits);
      }
    }
  }
  // Mostly ordinary numbers; one in eight is a zero, a denormal or has any exponent.
  float Hostile() {
    switch (engine_() % 16) {
      case 0:
        return Uniform(0.0f, 1.0f) < 0.5f ? 0.0f : -0.0f;
      case 1:
        return __builtin_bit_cast(float, static_cast<uint32_t>(engine_()) & 0x807fffffu);
      case 2:
        return AnyFinite();
      // Factors whose products straddle the smallest normal number.
      case 3:
        return std::ldexp(Uniform(-1.0f, 1.0f), -62);
      default:
        return Uniform(-2.0f, 2.0f);
    }
  }
  // Numbers whose products, sums and exponentials fall around the smallest normal number; some
  // ordinary ones between.
  float NearUnderflow() {
    switch (engine_() % 4) {
      case 0:
        return __builtin_bit_cast(float, static_cast<uint32_t>(engine_()) & 0x80ffffffu);
      case 1:
        return std::ldexp(Uniform(-1.0f, 1.0f), -63);
      case 2:
        return std::ldexp(Uniform(-1.0f, 1.0f), -120);
      default:
        return Uniform(-1.0f, 1.0f);
    }
  }

  void Fill(std::vector<float>& values, float low, float high) {
    for (float& value : values) {
      value = Uniform(low, high);
    }
  }
  void FillHostile(std::vector<float>& values) {
    for (float& value : values) {
      value = Hostile();
    }
  }

 private:
  std::mt19937_64 engine_;
};

inline std::vector<float> UniformVector(Random& random, int64_t n, float low, float high) {
  std::vector<float> values(static_cast<size_t>(n));
  random.Fill(values, low, high);
  return values;
}

inline Matrix<float> UniformMatrix(Random& random, int64_t rows, int64_t cols, float low = -1.0f,
                                   float high = 1.0f) {
  Matrix<float> matrix(rows, cols);
  random.Fill(matrix.values, low, high);
  return matrix;
}

inline Matrix<float> HostileMatrix(Random& random, int64_t rows, int64_t cols) {
  Matrix<float> matrix(rows, cols);
  random.FillHostile(matrix.values);
  return matrix;
}

inline Matrix<Bf16> Rounded(const Matrix<float>& matrix) {
  Matrix<Bf16> out(matrix.rows, matrix.cols, matrix.stride);
  for (size_t i = 0; i < matrix.values.size(); ++i) {
    out.values[i] = ToBf16(matrix.values[i]);
  }
  return out;
}

inline uint32_t BitsOf(float value) { return __builtin_bit_cast(uint32_t, value); }
inline uint32_t BitsOf(Bf16 value) { return value.bits; }

// Bound of the relative error of a sum of n terms, each with one rounding per step (Higham,
// "Accuracy and Stability", lemma 3.1), for f32.
inline double Gamma(int64_t n) {
  const double nu = static_cast<double>(n) * std::ldexp(1.0, -24);
  return nu / (1.0 - nu);
}

// Passes when all bytes agree; names the first element that does not.
template <typename T>
testing::AssertionResult SameBytes(const std::vector<T>& found, const std::vector<T>& expected) {
  if (found.size() != expected.size()) {
    return testing::AssertionFailure() << found.size() << " elements, expected " << expected.size();
  }
  for (size_t i = 0; i < found.size(); ++i) {
    if (BitsOf(found[i]) != BitsOf(expected[i])) {
      return testing::AssertionFailure()
             << "element " << i << " is " << testing::PrintToString(found[i]) << ", expected "
             << testing::PrintToString(expected[i]);
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace conclave::kernels
