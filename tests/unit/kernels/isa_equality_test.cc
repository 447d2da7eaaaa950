// Goal: every operation gives the same bytes on every path this machine can run, so that replicas
// on different machines agree.
// Method: the scalar path is the reference; inputs are ordinary, hostile (denormals, zeros of both
// signs, every exponent) and of odd sizes, from seeds that are printed.
#include <functional>

#include "attention_testing.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/matmul.h"

namespace conclave::kernels {
namespace {

using Operation = std::function<std::vector<float>(const Context&)>;

// Runs `operation` on all paths with two threads and compares the bytes.
testing::AssertionResult SameOnAllPaths(const Operation& operation) {
  ThreadPool pool(2);
  const std::vector<float> expected = operation(Context(Isa::kScalar, pool));
  for (const Isa isa : SupportedIsas()) {
    const testing::AssertionResult same = SameBytes(operation(Context(isa, pool)), expected);
    if (!same) {
      return testing::AssertionFailure() << NameOf(isa) << ": " << same.message();
    }
  }
  return testing::AssertionSuccess();
}

class IsaEqualityTest : public testing::TestWithParam<uint64_t> {
 protected:
  Random random_{GetParam()};

  // Ordinary numbers, hostile ones (sums of which often overflow), or ones near the smallest normal
  // number, by seed.
  Matrix<float> Input(int64_t rows, int64_t cols) {
    Matrix<float> matrix(rows, cols);
    for (float& value : matrix.values) {
      switch (GetParam() % 3) {
        case 0:
          value = random_.Uniform(-8.0f, 8.0f);
          break;
        case 1:
          value = random_.Hostile();
          break;
        default:
          value = random_.NearUnderflow();
          break;
      }
    }
    return matrix;
  }
};

INSTANTIATE_TEST_SUITE_P(Seeds, IsaEqualityTest, testing::Range(uint64_t{1}, uint64_t{10}));

constexpr int64_t kWidths[] = {1, 4, 16, 20, 63, 64, 72, 80, 257, 1000};

TEST_P(IsaEqualityTest, MatMul) {
  for (int i = 0; i < 12; ++i) {
    const int64_t m = random_.Int(0, 14);
    const int64_t n = random_.Int(1, 150);
    const int64_t k = random_.Int(1, i == 0 ? 1300 : 130);
    const Matrix<float> x = Input(m, k);
    const Matrix<float> w = Input(n, k);
    const Matrix<float> bias = Input(1, n);
    const auto run = [&](const Context& context, DType dtype) {
      PackedMatrix packed(n, k, dtype);
      packed.PackRows(0, w.View(), *context.pool);
      Matrix<float> y(m, n);
      if (dtype == DType::kF32) {
        MatMul(context, x.View(), packed, bias.values, y.View());
      } else if (dtype == DType::kQ8) {
        Q8Scratch scratch(m, k);
        MatMul(context, scratch.Quantize(context, x.View()), packed, bias.values, y.View());
      } else {
        const Matrix<Bf16> rounded = Rounded(x);
        MatMul(context, rounded.View(), packed, bias.values, y.View());
      }
      return y.values;
    };
    EXPECT_TRUE(SameOnAllPaths([&](const Context& c) { return run(c, DType::kBf16); }))
        << "bf16 " << m << " " << n << " " << k;
    EXPECT_TRUE(SameOnAllPaths([&](const Context& c) { return run(c, DType::kF32); }))
        << "f32 " << m << " " << n << " " << k;
    EXPECT_TRUE(SameOnAllPaths([&](const Context& c) { return run(c, DType::kQ8); }))
        << "q8 " << m << " " << n << " " << k;
  }
}

TEST_P(IsaEqualityTest, Norms) {
  for (const int64_t n : kWidths) {
    const Matrix<float> x = Input(3, n);
    const Matrix<float> w = Input(1, n);
    const Matrix<float> b = Input(1, n);
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y(3, n);
      LayerNorm(context, x.View(), w.values, b.values, 1e-5f, y.View());
      return y.values;
    })) << "layer norm "
        << n;
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y(3, n);
      RmsNorm(context, x.View(), w.values, 1e-6f, y.View());
      return y.values;
    })) << "rms norm "
        << n;
  }
}

TEST_P(IsaEqualityTest, SoftmaxAndDotProducts) {
  for (const int64_t n : kWidths) {
    const Matrix<float> x = Input(3, n);
    const Matrix<float> w = Input(6, n);
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y = x;
      Softmax(context, y.View());
      return y.values;
    })) << "softmax "
        << n;
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y(3, 6);
      DotRows(context, x.View(), w.View(), y.View());
      return y.values;
    })) << "dot rows "
        << n;
  }
}

TEST_P(IsaEqualityTest, Activations) {
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf, Activation::kQuickGelu}) {
    const Matrix<float> x = Input(3, 666);
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y = x;
      Activate(context, activation, y.View());
      return y.values;
    })) << static_cast<int>(activation);
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y(3, 333);
      GatedActivate(context, activation, x.View(), y.View());
      return y.values;
    })) << static_cast<int>(activation);
  }
}

TEST_P(IsaEqualityTest, RotationAndSums) {
  for (const int64_t head_dim : {20, 64, 72, 80}) {
    const Matrix<float> x = Input(4, 3 * head_dim);
    const Matrix<float> cos = UniformMatrix(random_, 9, head_dim / 4);
    const Matrix<float> sin = UniformMatrix(random_, 9, head_dim / 4);
    const std::vector<int32_t> positions = {8, 0, 3, 3};
    EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
      Matrix<float> y = x;
      RotateHalfSplit(context, cos.View(), sin.View(), positions, 3, head_dim, y.View());
      AddScaled(context, x.View(), 0.7f, y.View());
      return y.values;
    })) << head_dim;
  }
}

TEST_P(IsaEqualityTest, Conversions) {
  Matrix<float> x(3, 1001);
  for (float& value : x.values) {
    value = random_.AnyFinite();
  }
  EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
    Matrix<Bf16> rounded(3, 1001);
    RoundToBf16(context, x.View(), rounded.View());
    Matrix<float> y(3, 1001);
    WidenBf16(context, std::as_const(rounded).View(), y.View());
    return y.values;
  }));
}

TEST_P(IsaEqualityTest, Attention) {
  constexpr int64_t kTokens = 140;
  for (const int64_t head_dim : {20, 64, 72, 80}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      const KvLayout layout{2, head_dim, dtype};
      const Matrix<float> keys = Input(kTokens, 2 * head_dim);
      const Matrix<float> values = Input(kTokens, 2 * head_dim);
      const Matrix<float> q = Input(11, 4 * head_dim);
      EXPECT_TRUE(SameOnAllPaths([&](const Context& context) {
        KvCache cache(layout, kTokens, 0xff);
        for (int64_t t = 0; t < kTokens; ++t) {
          cache.Store(context, t, keys.View().RowSpan(t), values.View().RowSpan(t));
        }
        std::vector<KvRange> ranges;
        for (int64_t r = 0; r < q.rows; ++r) {
          ranges.push_back(cache.Range(r % 3 * 20, 90 + r * 5));
        }
        Matrix<float> out(q.rows, q.cols);
        Attend(context, layout, 4, 0.125f, q.View(), ranges, out.View());
        return out.values;
      })) << head_dim
          << " " << NameOf(dtype);
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
