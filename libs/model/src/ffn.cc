#include "conclave/model/ffn.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::model {
namespace {

// Width of the rows that the first matrix writes.
int64_t UpRows(const checkpoint::FfnSpec& spec) {
  return spec.is_gated ? 2 * int64_t{spec.inner_dim} : int64_t{spec.inner_dim};
}

// Activated rows of a gated network are kept in f32 where they are the result, and where gate and
// up are no whole panels, so that the activation needs a loop of its own.
bool NeedsActivatedF32(const checkpoint::FfnSpec& spec, DType dtype) {
  return spec.is_gated && (dtype == DType::kF32 || spec.inner_dim % kernels::kPanelColumns != 0);
}

// `rows` of one call, `total` with those before it.
void CheckShapes(const FfnWeights& weights, DType dtype, int64_t x_cols, int64_t rows,
                 int64_t total, const FfnScratch& scratch, MatView<float> y) {
  CONCLAVE_CHECK(weights.up.dtype() == dtype && weights.down.dtype() == dtype);
  CONCLAVE_CHECK(x_cols == weights.up.k() && total <= scratch.max_rows());
  CONCLAVE_CHECK(y.rows == rows && y.cols == weights.down.n());
}

}  // namespace

kernels::Activation ToKernel(checkpoint::ActivationKind kind) {
  switch (kind) {
    case checkpoint::ActivationKind::kSilu:
      return kernels::Activation::kSilu;
    case checkpoint::ActivationKind::kGeluTanh:
      return kernels::Activation::kGeluTanh;
    case checkpoint::ActivationKind::kGeluErf:
      return kernels::Activation::kGeluErf;
    case checkpoint::ActivationKind::kQuickGelu:
      return kernels::Activation::kQuickGelu;
  }
  CONCLAVE_CHECK(false);
}

size_t FfnBytes(const checkpoint::FfnSpec& spec, int64_t io_dim, DType dtype) {
  return kernels::PackedMatrix::BytesOf(UpRows(spec), io_dim, dtype) +
         kernels::PackedMatrix::BytesOf(io_dim, spec.inner_dim, dtype);
}

absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   int64_t io_dim, DType dtype, ThreadPool& pool) {
  const checkpoint::ModelDesc& desc = source.desc();
  const checkpoint::FfnSpec& spec = desc.ffn;
  std::vector<LinearPart> up_parts;
  if (spec.is_gated) {
    up_parts.push_back({prefix + desc.names.ffn_gate, spec.inner_dim});
  }
  up_parts.push_back({prefix + desc.names.ffn_up, spec.inner_dim});
  const LinearPart down_part[] = {{prefix + desc.names.ffn_down, io_dim}};
  CONCLAVE_ASSIGN_OR_RETURN(Linear up,
                            LoadLinear(source, up_parts, io_dim, spec.has_bias, dtype, pool));
  CONCLAVE_ASSIGN_OR_RETURN(
      Linear down, LoadLinear(source, down_part, spec.inner_dim, spec.has_bias, dtype, pool));
  FfnWeights weights;
  weights.spec = spec;
  weights.up = std::move(up.weight);
  weights.up_bias = std::move(up.bias);
  weights.down = std::move(down.weight);
  weights.down_bias = std::move(down.bias);
  return weights;
}

absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   DType dtype, ThreadPool& pool) {
  return LoadFfn(source, prefix, source.desc().hidden_dim, dtype, pool);
}

FfnScratch::FfnScratch(const checkpoint::FfnSpec& spec, int64_t io_dim, int64_t max_rows,
                       DType dtype)
    : max_rows_(max_rows),
      inner_(static_cast<size_t>(max_rows * UpRows(spec)) * sizeof(float)),
      activated_f32_(NeedsActivatedF32(spec, dtype)
                         ? static_cast<size_t>(max_rows * spec.inner_dim) * sizeof(float)
                         : 0),
      input_(max_rows, io_dim, dtype),
      activated_(max_rows, spec.inner_dim, dtype) {}

// One loop's worth of networks.
class FfnRun {
 public:
  static constexpr size_t kCallsMax = 64;

  FfnRun(const kernels::Context& context, FfnScratch& scratch)
      : context_(context), scratch_(scratch) {}

  template <typename Element>
  void Run(std::span<const FfnCall<Element>> calls) {
    switch (calls[0].weights->up.dtype()) {
      case DType::kQ8:
        RunAs<kernels::Q8Rows>(calls);
        break;
      case DType::kBf16:
        RunAs<MatView<const Bf16>>(calls);
        break;
      default:
        RunAs<MatView<const float>>(calls);
        break;
    }
  }

 private:
  // X: how products read rows.
  template <typename X, typename Element>
  void RunAs(std::span<const FfnCall<Element>> calls) {
    // On the stack, as decode steps come here.
    std::array<kernels::Product<X>, kCallsMax> up;
    std::array<kernels::Product<X>, kCallsMax> down;
    std::array<kernels::ActivatedRows, kCallsMax> activated;
    const checkpoint::FfnSpec& spec = calls[0].weights->spec;
    int64_t first = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
      const FfnCall<Element>& call = calls[i];
      const FfnWeights& w = *call.weights;
      const int64_t rows = call.x.rows;
      CheckShapes(w, calls[0].weights->up.dtype(), call.x.cols, rows, first + rows, scratch_,
                  call.y);
      const MatView<float> inner(scratch_.inner_.As<float>() + first * w.up.n(), rows, w.up.n());
      activated[i] = scratch_.activated_.Rows(first, rows, w.down.k());
      activated[i].f32 =
          scratch_.activated_f32_.size_bytes() == 0
              ? inner
              : MatView<float>(scratch_.activated_f32_.As<float>() + first * w.down.k(), rows,
                               w.down.k());
      up[i] = {Input<X>(call.x, first), &w.up, w.up_bias, inner};
      down[i] = {Form<X>(activated[i]), &w.down, w.down_bias, call.y};
      first += rows;
    }
    const std::span<const kernels::Product<X>> ups(up.data(), calls.size());
    const kernels::Activation activation = ToKernel(spec.activation);
    if (!spec.is_gated || kernels::CanActivateGated(calls[0].weights->up)) {
      kernels::MatMulActivated(
          context_, activation, spec.is_gated, ups,
          std::span<const kernels::ActivatedRows>(activated.data(), calls.size()));
    } else {
      kernels::MatMulAll(context_, ups);
      for (size_t i = 0; i < calls.size(); ++i) {
        kernels::GatedActivate(context_, activation, up[i].y, activated[i].f32);
        Convert(activated[i]);
      }
    }
    kernels::MatMulAll(context_, std::span<const kernels::Product<X>>(down.data(), calls.size()));
  }

  // Rows of `out.f32` in the form that `out` has beside.
  void Convert(const kernels::ActivatedRows& out) {
    if (out.bf16.data != nullptr) {
      kernels::RoundToBf16(context_, out.f32, out.bf16);
    } else if (out.q8.values != nullptr) {
      kernels::Quantize(context_, out.f32, out.q8);
    }
  }

  template <typename X>
  static X Form(const kernels::ActivatedRows& rows) {
    if constexpr (std::is_same_v<X, kernels::Q8Rows>) {
      return rows.q8;
    } else if constexpr (std::is_same_v<X, MatView<const Bf16>>) {
      return rows.bf16;
    } else {
      return rows.f32;
    }
  }

  template <typename X, typename Element>
  X Input(MatView<const Element> x, int64_t first) {
    if constexpr (std::is_same_v<X, MatView<const Element>>) {
      return x;
    } else if constexpr (std::is_same_v<X, kernels::Q8Rows>) {
      const kernels::Q8Rows rows = scratch_.input_.Rows(first, x.rows, x.cols).q8;
      kernels::Quantize(context_, x, rows);
      return rows;
    } else if constexpr (std::is_same_v<Element, float>) {
      const MatView<Bf16> rows = scratch_.input_.Rows(first, x.rows, x.cols).bf16;
      kernels::RoundToBf16(context_, x, rows);
      return rows;
    } else {
      constexpr bool kBf16RowsNeedOtherThanF32Weights = false;
      CONCLAVE_CHECK(kBf16RowsNeedOtherThanF32Weights);
    }
  }

  const kernels::Context& context_;
  FfnScratch& scratch_;
};

namespace {

template <typename Element>
void RunAllCalls(const kernels::Context& context, std::span<const FfnCall<Element>> calls,
                 FfnScratch& scratch) {
  while (!calls.empty()) {
    const size_t count = std::min(calls.size(), FfnRun::kCallsMax);
    FfnRun(context, scratch).Run(calls.first(count));
    calls = calls.subspan(count);
  }
}

}  // namespace

void FfnForwardAll(const kernels::Context& context, std::span<const FfnCall<float>> calls,
                   FfnScratch& scratch) {
  RunAllCalls(context, calls, scratch);
}

void FfnForwardAll(const kernels::Context& context, std::span<const FfnCall<Bf16>> calls,
                   FfnScratch& scratch) {
  RunAllCalls(context, calls, scratch);
}

void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const float> x,
                FfnScratch& scratch, MatView<float> y) {
  const FfnCall<float> call{&weights, x, y};
  FfnForwardAll(context, std::span(&call, 1), scratch);
}

void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const Bf16> x,
                FfnScratch& scratch, MatView<float> y) {
  const FfnCall<Bf16> call{&weights, x, y};
  FfnForwardAll(context, std::span(&call, 1), scratch);
}

}  // namespace conclave::model
