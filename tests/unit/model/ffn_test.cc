// Goal: FfnForward computes gated and plain networks with their biases, in f32 and bf16, from
// weights stored in any floating dtype, and its rows do not depend on each other. Method: small
// networks of random weights against a reference in double, within a bound derived from the sizes;
// the tiny recorded checkpoint for loading.
#include "conclave/model/ffn.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/tensor/dtype.h"
#include "gtest/gtest.h"

namespace conclave::model {
namespace {

using checkpoint::ActivationKind;
using checkpoint::FfnSpec;

constexpr int64_t kWidth = 48;
constexpr int32_t kInner = 70;

std::vector<float> RandomFloats(uint64_t seed, size_t count, float scale, bool is_bf16) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) {
    v = normal(rng);
    v = is_bf16 ? ToFloat(ToBf16(v)) : v;
  }
  return values;
}

double Act(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kSilu:
      return x / (1 + std::exp(-x));
    case ActivationKind::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ActivationKind::kGeluErf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case ActivationKind::kQuickGelu:
      return x / (1 + std::exp(-1.702 * x));
  }
  return 0;
}

struct Net {
  FfnSpec spec;
  std::vector<float> up;  // [2F or F, H]
  std::vector<float> up_bias;
  std::vector<float> down;  // [H, F]
  std::vector<float> down_bias;
};

Net RandomNet(uint64_t seed, const FfnSpec& spec, bool is_bf16) {
  const size_t up_rows = static_cast<size_t>(spec.inner_dim) * (spec.is_gated ? 2 : 1);
  Net net;
  net.spec = spec;
  net.up = RandomFloats(seed + 1, up_rows * kWidth, 0.15f, is_bf16);
  net.down = RandomFloats(seed + 2, static_cast<size_t>(kWidth * spec.inner_dim), 0.12f, is_bf16);
  if (spec.has_bias) {
    net.up_bias = RandomFloats(seed + 3, up_rows, 0.5f, false);
    net.down_bias = RandomFloats(seed + 4, kWidth, 0.5f, false);
  }
  return net;
}

FfnWeights Pack(const Net& net, DType dtype, ThreadPool& pool) {
  const int64_t up_rows = static_cast<int64_t>(net.up.size()) / kWidth;
  FfnWeights weights;
  weights.spec = net.spec;
  weights.up = kernels::PackedMatrix(up_rows, kWidth, dtype);
  weights.up.PackRows(0, MatView<const float>(net.up.data(), up_rows, kWidth), pool);
  weights.down = kernels::PackedMatrix(kWidth, net.spec.inner_dim, dtype);
  weights.down.PackRows(0, MatView<const float>(net.down.data(), kWidth, net.spec.inner_dim), pool);
  weights.up_bias = net.up_bias;
  weights.down_bias = net.down_bias;
  return weights;
}

struct Value {
  double y = 0;
  double error = 0;
};

// A dot product of n terms in f32 errs by at most n·2^-24·Σ|w||x| (its bias counted as a term).
// Activations have slopes below 1.2 and are held to 2^-20 relative to |x|; the inner row is rounded
// with `unit`.
Value Dot(const float* w, const float* x, double bias) {
  Value v{bias, std::abs(bias)};
  for (int64_t c = 0; c < kWidth; ++c) {
    v.y += double{w[c]} * x[c];
    v.error += std::abs(double{w[c]} * x[c]);
  }
  v.error *= (kWidth + 1) * 0x1p-24;
  return v;
}

std::vector<Value> Reference(const Net& net, const float* x, double unit) {
  const int64_t inner = net.spec.inner_dim;
  const auto bias = [](const std::vector<float>& b, int64_t i) {
    return b.empty() ? 0.0 : double{b[static_cast<size_t>(i)]};
  };
  std::vector<Value> a(static_cast<size_t>(inner));
  for (int64_t f = 0; f < inner; ++f) {
    const Value g = Dot(&net.up[static_cast<size_t>(f * kWidth)], x, bias(net.up_bias, f));
    Value act{Act(net.spec.activation, g.y), 1.2 * g.error + 0x1p-20 * std::abs(g.y)};
    if (net.spec.is_gated) {
      const int64_t row = inner + f;
      const Value u = Dot(&net.up[static_cast<size_t>(row * kWidth)], x, bias(net.up_bias, row));
      act = {act.y * u.y, act.error * (std::abs(u.y) + u.error) + std::abs(act.y) * u.error};
    }
    a[static_cast<size_t>(f)] = {act.y, act.error + (unit + 0x1p-23) * std::abs(act.y)};
  }
  std::vector<Value> y(kWidth);
  for (int64_t h = 0; h < kWidth; ++h) {
    Value& v = y[static_cast<size_t>(h)];
    v.y = bias(net.down_bias, h);
    double magnitude = std::abs(v.y);
    for (int64_t f = 0; f < inner; ++f) {
      const double w = net.down[static_cast<size_t>(h * inner + f)];
      const Value& inner_value = a[static_cast<size_t>(f)];
      v.y += w * inner_value.y;
      v.error += std::abs(w) * inner_value.error;
      magnitude += std::abs(w) * (std::abs(inner_value.y) + inner_value.error);
    }
    v.error += static_cast<double>(inner + 1) * 0x1p-24 * magnitude;
  }
  return y;
}

std::vector<float> Forward(const kernels::Context& context, const FfnWeights& weights,
                           const std::vector<float>& x, FfnScratch& scratch) {
  const int64_t rows = static_cast<int64_t>(x.size()) / kWidth;
  std::vector<float> y(x.size());
  const MatView<float> out(y.data(), rows, kWidth);
  if (weights.up.dtype() == DType::kF32) {
    FfnForward(context, weights, MatView<const float>(x.data(), rows, kWidth), scratch, out);
    return y;
  }
  std::vector<Bf16> rounded(x.size());
  std::transform(x.begin(), x.end(), rounded.begin(), ToBf16);
  FfnForward(context, weights, MatView<const Bf16>(rounded.data(), rows, kWidth), scratch, out);
  return y;
}

// -0 and 0 differ.
bool SameBits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

struct Shape {
  const char* name;
  bool is_gated;
  bool has_bias;
  ActivationKind activation;
};

class FfnForwardTest : public ::testing::TestWithParam<std::tuple<Shape, DType>> {
 protected:
  FfnSpec Spec() const {
    const Shape& shape = std::get<0>(GetParam());
    FfnSpec spec;
    spec.is_gated = shape.is_gated;
    spec.has_bias = shape.has_bias;
    spec.activation = shape.activation;
    spec.inner_dim = kInner;
    return spec;
  }
  DType dtype() const { return std::get<1>(GetParam()); }

  ThreadPool pool_{1};
};

TEST_P(FfnForwardTest, AgreesWithTheReferenceOnEveryIsa) {
  constexpr uint64_t kSeed = 5;
  constexpr int64_t kRows = 7;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  const bool is_bf16 = dtype() == DType::kBf16;
  const Net net = RandomNet(kSeed, Spec(), is_bf16);
  const FfnWeights weights = Pack(net, dtype(), pool_);
  const std::vector<float> x = RandomFloats(kSeed + 9, kRows * kWidth, 1.0f, is_bf16);
  FfnScratch scratch(net.spec, kWidth, kRows, dtype());
  double largest = 0;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const std::vector<float> y = Forward(kernels::Context(isa, pool_), weights, x, scratch);
    for (int64_t r = 0; r < kRows; ++r) {
      const std::vector<Value> want =
          Reference(net, &x[static_cast<size_t>(r * kWidth)], is_bf16 ? 0x1p-8 : 0);
      for (int64_t c = 0; c < kWidth; ++c) {
        const Value& v = want[static_cast<size_t>(c)];
        ASSERT_NEAR(y[static_cast<size_t>(r * kWidth + c)], v.y, v.error)
            << kernels::NameOf(isa) << " row " << r << " column " << c;
        largest = std::max(largest, std::abs(v.y) / v.error);
      }
    }
  }
  // The bound must be far below the values, or the comparison would say nothing.
  EXPECT_GT(largest, 20.0);
}

TEST_P(FfnForwardTest, RowsDoNotDependOnTheirNeighbours) {
  constexpr int64_t kRows = 19;
  const FfnWeights weights = Pack(RandomNet(6, Spec(), false), dtype(), pool_);
  const std::vector<float> x = RandomFloats(8, kRows * kWidth, 1.0f, true);
  FfnScratch scratch(weights.spec, kWidth, kRows, dtype());
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const kernels::Context context(isa, pool_);
    const std::vector<float> batch = Forward(context, weights, x, scratch);
    for (int64_t r = 0; r < kRows; ++r) {
      const std::vector<float> row(x.begin() + r * kWidth, x.begin() + (r + 1) * kWidth);
      const std::vector<float> alone = Forward(context, weights, row, scratch);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), batch.begin() + r * kWidth, SameBits))
          << kernels::NameOf(isa) << " row " << r;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, FfnForwardTest,
    ::testing::Combine(
        ::testing::Values(Shape{"GatedSilu", true, false, ActivationKind::kSilu},
                          Shape{"GatedSiluBias", true, true, ActivationKind::kSilu},
                          Shape{"PlainGeluTanhBias", false, true, ActivationKind::kGeluTanh},
                          Shape{"PlainGeluErf", false, false, ActivationKind::kGeluErf},
                          Shape{"PlainQuickGeluBias", false, true, ActivationKind::kQuickGelu}),
        ::testing::Values(DType::kF32, DType::kBf16)),
    [](const auto& test) {
      return std::string(std::get<0>(test.param).name) + "_" +
             std::string(NameOf(std::get<1>(test.param)));
    });

// In q8: rows of both types are quantized, the activated inner rows once more, from f32; then it is
// the product of the kernels. Against f32 the error of two roundings to 8 bits is left.
TEST(FfnForwardQ8Test, IsTheProductOfQuantizedRows) {
  constexpr int64_t kRows = 5;
  ThreadPool pool(1);
  FfnSpec spec;
  spec.inner_dim = kInner;
  spec.has_bias = true;
  const Net net = RandomNet(3, spec, false);
  const FfnWeights exact = Pack(net, DType::kF32, pool);
  const FfnWeights weights = Pack(net, DType::kQ8, pool);
  const std::vector<float> x = RandomFloats(4, kRows * kWidth, 1.0f, true);
  std::vector<Bf16> wire(x.size());
  std::transform(x.begin(), x.end(), wire.begin(), ToBf16);
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const kernels::Context context(isa, pool);
    kernels::Q8Scratch quantized(kRows, std::max<int64_t>(kWidth, kInner));
    std::vector<float> inner(static_cast<size_t>(kRows * 2 * kInner));
    std::vector<float> activated(static_cast<size_t>(kRows * kInner));
    std::vector<float> want(x.size());
    const MatView<float> inner_rows(inner.data(), kRows, 2 * kInner);
    const MatView<float> activated_rows(activated.data(), kRows, kInner);
    const MatView<const float> rows(x.data(), kRows, kWidth);
    kernels::MatMul(context, quantized.Quantize(context, rows), weights.up, net.up_bias,
                    inner_rows);
    kernels::GatedActivate(context, ToKernel(spec.activation), inner_rows, activated_rows);
    kernels::MatMul(context, quantized.Quantize(context, MatView<const float>(activated_rows)),
                    weights.down, net.down_bias, MatView<float>(want.data(), kRows, kWidth));

    FfnScratch scratch(spec, kWidth, kRows, DType::kQ8);
    std::vector<float> y(x.size());
    const MatView<float> out(y.data(), kRows, kWidth);
    FfnForward(context, weights, rows, scratch, out);
    EXPECT_TRUE(std::equal(y.begin(), y.end(), want.begin(), SameBits)) << kernels::NameOf(isa);
    FfnForward(context, weights, MatView<const Bf16>(wire.data(), kRows, kWidth), scratch, out);
    EXPECT_TRUE(std::equal(y.begin(), y.end(), want.begin(), SameBits)) << kernels::NameOf(isa);

    FfnScratch exact_scratch(spec, kWidth, kRows, DType::kF32);
    std::vector<float> close(x.size());
    FfnForward(context, exact, rows, exact_scratch, MatView<float>(close.data(), kRows, kWidth));
    double error = 0;
    double size = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      error += std::pow(double{y[i]} - double{close[i]}, 2);
      size += std::pow(double{close[i]}, 2);
    }
    // A step of max / 127 with the largest of 32 normal values near 2.1 of their deviation leaves
    // 0.5 % of it per factor; four factors on the longest way, and products of two, stay below 2 %.
    EXPECT_LT(std::sqrt(error / size), 0.02) << kernels::NameOf(isa);
    EXPECT_GT(error, 0.0);
  }
}

constexpr char kTinyCheckpoint[] =
    CONCLAVE_SOURCE_DIR "/tests/golden/data/cases/stablelm-clip/checkpoint";

TEST(LoadFfnTest, StacksGateOverUp) {
  const auto opened = checkpoint::Checkpoint::Open(kTinyCheckpoint);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const checkpoint::Checkpoint& stored = **opened;
  const checkpoint::ModelDesc& desc = stored.desc();
  const std::string prefix = checkpoint::ExpertPrefix(desc.names, 2, 1);
  ThreadPool pool(1);
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kQ8}) {
    const auto loaded = LoadFfn(stored, prefix, dtype, pool);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ(loaded->up.n(), 2 * desc.ffn.inner_dim);
    EXPECT_EQ(loaded->up.k(), desc.hidden_dim);
    EXPECT_EQ(loaded->down.n(), desc.hidden_dim);
    EXPECT_EQ(loaded->down.k(), desc.ffn.inner_dim);
    EXPECT_EQ(loaded->up.dtype(), dtype);
    EXPECT_TRUE(loaded->up_bias.empty());
    EXPECT_EQ(loaded->size_bytes(), loaded->up.size_bytes() + loaded->down.size_bytes());

    kernels::PackedMatrix want(int64_t{2} * desc.ffn.inner_dim, desc.hidden_dim, dtype);
    int64_t first_row = 0;
    for (const std::string& name : {desc.names.ffn_gate, desc.names.ffn_up}) {
      const checkpoint::TensorView* tensor = stored.Find(prefix + name + ".weight");
      ASSERT_NE(tensor, nullptr);
      const auto values = checkpoint::ToFloats(*tensor);
      ASSERT_TRUE(values.ok()) << values.status();
      want.PackRows(first_row,
                    MatView<const float>(values->data(), desc.ffn.inner_dim, desc.hidden_dim),
                    pool);
      first_row += desc.ffn.inner_dim;
    }
    for (int64_t panel = 0; panel < want.num_panels(); ++panel) {
      ASSERT_EQ(std::memcmp(loaded->up.Panel(panel), want.Panel(panel),
                            static_cast<size_t>(want.panel_bytes())),
                0)
          << "panel " << panel;
    }
  }
}

TEST(LoadFfnTest, NamesWhatIsMissingOrMisshapen) {
  const auto opened = checkpoint::Checkpoint::Open(kTinyCheckpoint);
  ASSERT_TRUE(opened.ok()) << opened.status();
  ThreadPool pool(1);
  const auto missing = LoadFfn(**opened, "model.layers.77.mlp.", DType::kBf16, pool);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(ReasonOf(missing.status()), "tensor_missing");
  EXPECT_NE(MessageOf(missing.status()).find("model.layers.77.mlp."), std::string::npos);
  const std::string prefix = checkpoint::ExpertPrefix((*opened)->desc().names, 0, 0);
  const auto wide = LoadFfn(**opened, prefix, 65, DType::kBf16, pool);
  EXPECT_EQ(ReasonOf(wide.status()), "tensor_shape_mismatch");
}

TEST(FfnForwardDeathTest, WrongUseIsABrokenInvariant) {
  FfnSpec spec;
  spec.inner_dim = kInner;
  ThreadPool pool(1);
  const FfnWeights weights = Pack(RandomNet(1, spec, true), DType::kBf16, pool);
  const kernels::Context context(kernels::Isa::kScalar, pool);
  FfnScratch scratch(spec, kWidth, 2, DType::kBf16);
  std::vector<float> y(3 * kWidth);
  const std::vector<Bf16> rounded(3 * kWidth);
  const FfnWeights exact = Pack(RandomNet(1, spec, true), DType::kF32, pool);
  EXPECT_DEATH(FfnForward(context, exact, MatView<const Bf16>(rounded.data(), 2, kWidth), scratch,
                          MatView<float>(y.data(), 2, kWidth)),
               "kBf16RowsNeedOtherThanF32Weights");
  EXPECT_DEATH(FfnForward(context, weights, MatView<const Bf16>(rounded.data(), 3, kWidth), scratch,
                          MatView<float>(y.data(), 3, kWidth)),
               "max_rows");
  EXPECT_DEATH(FfnForward(context, weights, MatView<const Bf16>(rounded.data(), 2, kWidth - 2),
                          scratch, MatView<float>(y.data(), 2, kWidth)),
               "x_cols");
}

}  // namespace
}  // namespace conclave::model
