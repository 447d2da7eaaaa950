#include "conclave/model/vision_tower.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/kernels/attention.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/model/ffn.h"
#include "conclave/model/linear.h"
#include "norm.h"
#include "tower_weights.h"

namespace conclave::model {
namespace {

using checkpoint::ProjectorKind;
using checkpoint::VisionSpec;
using kernels::kKvBlockTokens;

struct TowerLayer {
  Norm norm1, norm2;
  Linear qkv, output, fc1, fc2;
};

struct TowerWeights {
  Linear patch;  // [width, 3 · patch · patch]
  std::vector<float> class_embedding;
  std::vector<float> position_embedding;  // [positions, width]
  std::optional<Norm> pre_norm;
  std::vector<TowerLayer> layers;
  std::vector<Linear> projector;
};

absl::StatusOr<TowerLayer> LoadLayer(const WeightSource& source, int32_t index, DType dtype,
                                     ThreadPool& pool) {
  const VisionSpec& spec = source.desc().vision;
  const int64_t width = spec.hidden_dim;
  const std::string prefix =
      source.desc().names.tower + "encoder.layers." + std::to_string(index) + ".";
  const checkpoint::NormSpec norm{checkpoint::NormKind::kLayerNorm, spec.norm_eps, true};
  TowerLayer layer;
  CONCLAVE_ASSIGN_OR_RETURN(layer.norm1, Norm::Load(source, prefix + "layer_norm1", norm, width));
  CONCLAVE_ASSIGN_OR_RETURN(layer.norm2, Norm::Load(source, prefix + "layer_norm2", norm, width));
  const LinearPart qkv[] = {{prefix + "self_attn.q_proj", width},
                            {prefix + "self_attn.k_proj", width},
                            {prefix + "self_attn.v_proj", width}};
  CONCLAVE_ASSIGN_OR_RETURN(layer.qkv, LoadLinear(source, qkv, width, true, dtype, pool));
  const LinearPart output[] = {{prefix + "self_attn.out_proj", width}};
  CONCLAVE_ASSIGN_OR_RETURN(layer.output, LoadLinear(source, output, width, true, dtype, pool));
  const LinearPart fc1[] = {{prefix + "mlp.fc1", spec.inner_dim}};
  CONCLAVE_ASSIGN_OR_RETURN(layer.fc1, LoadLinear(source, fc1, width, true, dtype, pool));
  const LinearPart fc2[] = {{prefix + "mlp.fc2", width}};
  CONCLAVE_ASSIGN_OR_RETURN(layer.fc2, LoadLinear(source, fc2, spec.inner_dim, true, dtype, pool));
  return layer;
}

absl::Status LoadEmbeddings(const WeightSource& source, DType dtype, ThreadPool& pool,
                            TowerWeights& weights) {
  const VisionSpec& spec = source.desc().vision;
  const int64_t width = spec.hidden_dim;
  const std::string prefix = source.desc().names.tower;
  const int64_t patch_elements = int64_t{3} * spec.patch_size * spec.patch_size;
  const MatrixPart patch[] = {
      {prefix + "embeddings.patch_embedding.weight", {width, 3, spec.patch_size, spec.patch_size}}};
  CONCLAVE_ASSIGN_OR_RETURN(weights.patch.weight,
                            source.Matrix(patch, patch_elements, dtype, pool));
  const int64_t width_shape[] = {width};
  if (spec.has_patch_bias) {
    CONCLAVE_ASSIGN_OR_RETURN(
        weights.patch.bias, source.Floats(prefix + "embeddings.patch_embedding.bias", width_shape));
  }
  if (spec.has_class_token) {
    CONCLAVE_ASSIGN_OR_RETURN(weights.class_embedding,
                              source.Floats(prefix + "embeddings.class_embedding", width_shape));
  }
  const int64_t position_shape[] = {spec.num_positions(), width};
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.position_embedding,
      source.Floats(prefix + "embeddings.position_embedding.weight", position_shape));
  if (spec.has_pre_norm) {
    // "pre_layrnorm" is the published spelling.
    CONCLAVE_ASSIGN_OR_RETURN(
        weights.pre_norm,
        Norm::Load(source, prefix + "pre_layrnorm",
                   {checkpoint::NormKind::kLayerNorm, spec.norm_eps, true}, width));
  }
  return absl::OkStatus();
}

absl::Status LoadProjector(const WeightSource& source, DType dtype, ThreadPool& pool,
                           TowerWeights& weights) {
  const checkpoint::ModelDesc& desc = source.desc();
  const checkpoint::ProjectorSpec& spec = desc.projector;
  const int32_t count = spec.kind == ProjectorKind::kLinear ? 1 : spec.num_linears;
  for (int32_t j = 0; j < count && spec.kind != ProjectorKind::kIdentity; ++j) {
    // Indices count the GELUs between the linears, which have no weights.
    const std::string block = spec.pools_2x2 ? ".block." : ".";
    const std::string suffix =
        spec.kind == ProjectorKind::kLinear ? "" : block + std::to_string(2 * j);
    const LinearPart part[] = {{desc.names.projector + suffix, desc.hidden_dim}};
    const int64_t k = j == 0 ? desc.vision.hidden_dim : desc.hidden_dim;
    CONCLAVE_ASSIGN_OR_RETURN(Linear linear, LoadLinear(source, part, k, true, dtype, pool));
    weights.projector.push_back(std::move(linear));
  }
  return absl::OkStatus();
}

absl::StatusOr<TowerWeights> LoadTower(const WeightSource& source, DType dtype, ThreadPool& pool,
                                       const std::function<void(int64_t, int64_t)>& on_progress) {
  const VisionSpec& spec = source.desc().vision;
  CONCLAVE_CHECK(spec.kind != checkpoint::TowerKind::kNone);
  TowerWeights weights;
  CONCLAVE_RETURN_IF_ERROR(LoadEmbeddings(source, dtype, pool, weights));
  for (int32_t i = 0; i < spec.num_layers_run; ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(TowerLayer layer, LoadLayer(source, i, dtype, pool));
    weights.layers.push_back(std::move(layer));
    if (on_progress != nullptr) {
      on_progress(i + 1, spec.num_layers_run);
    }
  }
  CONCLAVE_RETURN_IF_ERROR(LoadProjector(source, dtype, pool, weights));
  return weights;
}

// Buffers of one picture, allocated once.
struct Buffers {
  Buffers(const VisionSpec& spec, const checkpoint::ModelDesc& desc,
          const kernels::KvLayout& layout, DType dtype)
      : patches(Bytes(spec.num_patches(), int64_t{3} * spec.patch_size * spec.patch_size)),
        x(Bytes(spec.num_positions(), spec.hidden_dim)),
        n(Bytes(spec.num_positions(), spec.hidden_dim)),
        qkv(Bytes(spec.num_positions(), int64_t{3} * spec.hidden_dim)),
        mixed(Bytes(spec.num_positions(), spec.hidden_dim)),
        inner(Bytes(spec.num_positions(), std::max(spec.inner_dim, desc.hidden_dim))),
        kv(static_cast<size_t>(NumBlocks(spec)) * layout.block_bytes()),
        gemm(spec.num_positions(),
             std::max({spec.hidden_dim, spec.inner_dim, desc.hidden_dim,
                       3 * spec.patch_size * spec.patch_size}),
             dtype),
        ranges(static_cast<size_t>(spec.num_positions())) {
    for (int32_t block = 0; block < NumBlocks(spec); ++block) {
      block_table.push_back(block);
    }
    const kernels::KvRange all{kv.As<std::byte>(), layout.block_bytes(), block_table.data(), 0,
                               spec.num_positions()};
    std::fill(ranges.begin(), ranges.end(), all);
  }

  static size_t Bytes(int64_t rows, int64_t cols) {
    return static_cast<size_t>(rows * cols) * sizeof(float);
  }
  static int64_t NumBlocks(const VisionSpec& spec) {
    return (spec.num_positions() + kKvBlockTokens - 1) / kKvBlockTokens;
  }

  AlignedBuffer patches, x, n, qkv, mixed, inner, kv;
  GemmScratch gemm;
  std::vector<int32_t> block_table;
  std::vector<kernels::KvRange> ranges;
};

}  // namespace

struct VisionTower::State {
  State(const checkpoint::ModelDesc& model_desc, DType mode, const kernels::Context& context,
        TowerWeights loaded)
      : desc(model_desc),
        spec(desc.vision),
        compute(context),
        weights(std::move(loaded)),
        layout{spec.num_heads, spec.hidden_dim / spec.num_heads, mode},
        buffers(spec, desc, layout, mode) {}

  MatView<float> Rows(AlignedBuffer& buffer, int64_t rows, int64_t cols) const {
    return {buffer.As<float>(), rows, cols, cols};
  }
  // Patches of `pixels` as rows of the convolution's input, times its weights, plus class token and
  // positions.
  void EmbedPatches(std::span<const float> pixels, MatView<float> x);
  void Attend(const TowerLayer& layer, MatView<const float> n, MatView<float> out);
  void RunLayer(const TowerLayer& layer, MatView<float> x);
  // Means of 2×2 neighbours of the square grid of features; an
  // odd side loses its last row and column, as in the original (spec 3.5).
  MatView<const float> Pool(MatView<const float> features);
  void Project(MatView<const float> features, std::vector<float>& out);

  const checkpoint::ModelDesc desc;
  const VisionSpec& spec;
  const kernels::Context compute;
  const TowerWeights weights;
  const kernels::KvLayout layout;
  Buffers buffers;
};

void VisionTower::State::EmbedPatches(std::span<const float> pixels, MatView<float> x) {
  const int64_t size = spec.image_size;
  const int64_t patch = spec.patch_size;
  const int64_t side = size / patch;  // pixels beyond side · patch are ignored (SigLIP-384)
  const MatView<float> patches = Rows(buffers.patches, spec.num_patches(), 3 * patch * patch);
  for (int64_t p = 0; p < patches.rows; ++p) {
    float* row = patches.Row(p);
    for (int64_t channel = 0; channel < 3; ++channel) {
      for (int64_t y = 0; y < patch; ++y) {
        const float* source =
            pixels.data() + (channel * size + (p / side) * patch + y) * size + (p % side) * patch;
        row = std::copy_n(source, patch, row);
      }
    }
  }
  const int64_t first = spec.has_class_token ? 1 : 0;
  ApplyLinear(compute, weights.patch, patches, buffers.gemm, x.Rows(first, patches.rows));
  if (spec.has_class_token) {
    std::copy(weights.class_embedding.begin(), weights.class_embedding.end(), x.Row(0));
  }
  const MatView<const float> positions(weights.position_embedding.data(), x.rows, x.cols, x.cols);
  kernels::AddScaled(compute, positions, 1.0f, x);
}

void VisionTower::State::Attend(const TowerLayer& layer, MatView<const float> n,
                                MatView<float> out) {
  const int64_t width = spec.hidden_dim;
  const MatView<float> qkv = Rows(buffers.qkv, n.rows, 3 * width);
  ApplyLinear(compute, layer.qkv, n, buffers.gemm, qkv);
  compute.pool->ParallelFor(n.rows, [&](int64_t r) {
    kernels::StoreKv(compute, layout, qkv.Cols(width, width).RowSpan(r),
                     qkv.Cols(2 * width, width).RowSpan(r), r % kKvBlockTokens,
                     buffers.kv.As<std::byte>() +
                         static_cast<size_t>(r / kKvBlockTokens) * layout.block_bytes());
  });
  const float scale = 1.0f / std::sqrt(static_cast<float>(layout.head_dim));
  const MatView<float> mixed = Rows(buffers.mixed, n.rows, width);
  kernels::Attend(compute, layout, spec.num_heads, scale, qkv.Cols(0, width), buffers.ranges,
                  mixed);
  ApplyLinear(compute, layer.output, mixed, buffers.gemm, out);
}

void VisionTower::State::RunLayer(const TowerLayer& layer, MatView<float> x) {
  const MatView<float> n = Rows(buffers.n, x.rows, x.cols);
  const MatView<float> out = Rows(buffers.mixed, x.rows, x.cols);
  layer.norm1.Apply(compute, x, n);
  // The projection reads `mixed`, so its result goes where the norm's output is no longer needed.
  Attend(layer, n, n);
  kernels::AddScaled(compute, n, 1.0f, x);
  layer.norm2.Apply(compute, x, n);
  const MatView<float> inner = Rows(buffers.inner, x.rows, spec.inner_dim);
  ApplyLinear(compute, layer.fc1, n, buffers.gemm, inner);
  kernels::Activate(compute, ToKernel(spec.activation), inner);
  ApplyLinear(compute, layer.fc2, inner, buffers.gemm, out);
  kernels::AddScaled(compute, out, 1.0f, x);
}

MatView<const float> VisionTower::State::Pool(MatView<const float> features) {
  const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(features.rows)));
  CONCLAVE_CHECK(side * side == features.rows);
  const int64_t half = side / 2;
  const MatView<float> pooled = Rows(buffers.mixed, half * half, features.cols);
  for (int64_t y = 0; y < half; ++y) {
    for (int64_t x = 0; x < half; ++x) {
      const float* top = features.Row(2 * y * side + 2 * x);
      const float* bottom = features.Row((2 * y + 1) * side + 2 * x);
      float* out = pooled.Row(y * half + x);
      for (int64_t c = 0; c < features.cols; ++c) {
        const float upper = top[c] + top[features.cols + c];
        out[c] = (upper + bottom[c] + bottom[features.cols + c]) * 0.25f;
      }
    }
  }
  return pooled;
}

void VisionTower::State::Project(MatView<const float> features, std::vector<float>& out) {
  const int64_t dim = desc.hidden_dim;
  out.resize(static_cast<size_t>(features.rows * dim));
  const MatView<float> result(out.data(), features.rows, dim, dim);
  if (weights.projector.empty()) {
    for (int64_t r = 0; r < features.rows; ++r) {
      std::copy_n(features.Row(r), dim, result.Row(r));
    }
    return;
  }
  const MatView<float> inner = Rows(buffers.inner, features.rows, dim);
  MatView<const float> input = features;
  for (size_t j = 0; j < weights.projector.size(); ++j) {
    ApplyLinear(compute, weights.projector[j], input, buffers.gemm, result);
    if (j + 1 < weights.projector.size()) {
      kernels::Activate(compute, kernels::Activation::kGeluErf, result);
      for (int64_t r = 0; r < result.rows; ++r) {
        std::copy_n(result.Row(r), dim, inner.Row(r));
      }
      input = inner;
    }
  }
}

VisionTower::VisionTower(std::unique_ptr<State> state) : state_(std::move(state)) {}
VisionTower::~VisionTower() = default;

absl::StatusOr<std::unique_ptr<VisionTower>> VisionTower::Load(
    const checkpoint::Checkpoint& checkpoint, DType mode, const kernels::Context& compute,
    const std::function<void(int64_t, int64_t)>& on_progress) {
  const DType dtype = RowDtypeOf(mode);
  CONCLAVE_ASSIGN_OR_RETURN(TowerWeights weights,
                            LoadTower(checkpoint, dtype, *compute.pool, on_progress));
  return std::unique_ptr<VisionTower>(new VisionTower(
      std::make_unique<State>(checkpoint.desc(), dtype, compute, std::move(weights))));
}

absl::Status RecordTower(const WeightSource& source, DType mode, ThreadPool& pool) {
  return LoadTower(source, RowDtypeOf(mode), pool, nullptr).status();
}

void VisionTower::Encode(std::span<const float> pixels, std::vector<float>& out,
                         VisionObserver* observer) {
  State& s = *state_;
  CONCLAVE_CHECK(static_cast<int64_t>(pixels.size()) ==
                 int64_t{3} * s.spec.image_size * s.spec.image_size);
  const MatView<float> x = s.Rows(s.buffers.x, s.spec.num_positions(), s.spec.hidden_dim);
  s.EmbedPatches(pixels, x);
  if (s.weights.pre_norm.has_value()) {
    s.weights.pre_norm->Apply(s.compute, x, x);
  }
  if (observer != nullptr) {
    observer->OnHidden(0, x);
  }
  for (size_t i = 0; i < s.weights.layers.size(); ++i) {
    s.RunLayer(s.weights.layers[i], x);
    if (observer != nullptr) {
      observer->OnHidden(static_cast<int32_t>(i) + 1, x);
    }
  }
  const int64_t first = s.spec.drops_first_row ? 1 : 0;
  const MatView<const float> features = x.Rows(first, x.rows - first);
  if (observer != nullptr) {
    observer->OnFeatures(features);
  }
  s.Project(s.desc.projector.pools_2x2 ? s.Pool(features) : features, out);
}

int32_t VisionTower::num_features() const { return state_->desc.splice.tokens_per_image; }

size_t VisionTower::weight_bytes() const {
  const TowerWeights& w = state_->weights;
  size_t bytes = w.patch.size_bytes() + w.position_embedding.size() * sizeof(float);
  for (const TowerLayer& layer : w.layers) {
    bytes += layer.qkv.size_bytes() + layer.output.size_bytes() + layer.fc1.size_bytes() +
             layer.fc2.size_bytes();
  }
  for (const Linear& linear : w.projector) {
    bytes += linear.size_bytes();
  }
  return bytes;
}

}  // namespace conclave::model
