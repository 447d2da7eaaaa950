#include "held_set.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "conclave/base/crc32c.h"

namespace conclave::expert_worker {
namespace {

// Any fixed value: what counts is that all workers of all versions have the same row.
constexpr uint64_t kCanarySeed = 0x636f6e636c617665;

// splitmix64: the row must not depend on a standard library's distributions.
uint64_t NextBits(uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// In [-1, 1), with 24 bits, so that f32 holds it exactly.
float NextValue(uint64_t& state) {
  return static_cast<float>(static_cast<int64_t>(NextBits(state) >> 40) - (int64_t{1} << 23)) *
         0x1p-23f;
}

}  // namespace

UnitTable::UnitTable(const checkpoint::ModelDesc& desc) {
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    num_experts_max_ = std::max(num_experts_max_, layer.num_experts);
  }
  CONCLAVE_CHECK(num_experts_max_ <= UINT16_MAX && desc.num_layers <= UINT16_MAX);
  is_moe_.resize(static_cast<size_t>(desc.num_layers));
  is_unit_.resize(is_moe_.size() * static_cast<size_t>(num_experts_max_));
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    is_moe_[static_cast<size_t>(layer.layer)] = 1;
    for (int32_t expert = 0; expert < layer.num_experts; ++expert) {
      is_unit_[IndexOf(layer.layer, expert)] = 1;
    }
  }
}

bool UnitTable::Has(placement::ExpertUnit unit) const {
  const int32_t layer = unit.layer.value();
  const int32_t expert = unit.expert.value();
  return layer >= 0 && static_cast<size_t>(layer) < is_moe_.size() && expert >= 0 &&
         expert < num_experts_max_ && is_unit_[IndexOf(layer, expert)] != 0;
}

Canary::Canary(const checkpoint::ModelDesc& desc, DType dtype, const kernels::KernelTable* table)
    : wire_(RowDtypeOf(dtype)),
      width_(desc.moe.io_dim),
      scratch_(desc.ffn, width_, 1, dtype),
      row_(static_cast<size_t>(width_) * SizeOf(wire_)),
      output_(static_cast<size_t>(width_) * sizeof(float)),
      rounded_(static_cast<size_t>(width_)) {
  compute_.table = table;
  compute_.pool = &pool_;
  uint64_t state = kCanarySeed;
  for (int64_t c = 0; c < width_; ++c) {
    const float value = NextValue(state);
    if (wire_ == DType::kF32) {
      row_.As<float>()[c] = value;
    } else {
      row_.As<Bf16>()[c] = ToBf16(value);
    }
  }
}

uint32_t Canary::Checksum(const model::FfnWeights& weights) {
  const DenormalsOff denormals_off;
  const MatView<float> y(output_.As<float>(), 1, width_);
  std::span<const std::byte> answer;
  if (wire_ == DType::kF32) {
    model::FfnForward(compute_, weights, MatView<const float>(row_.As<float>(), 1, width_),
                      scratch_, y);
    answer = {output_.As<std::byte>(), static_cast<size_t>(width_) * sizeof(float)};
  } else {
    model::FfnForward(compute_, weights, MatView<const Bf16>(row_.As<Bf16>(), 1, width_), scratch_,
                      y);
    std::transform(y.data, y.data + width_, rounded_.begin(), [](float v) { return ToBf16(v); });
    answer = std::as_bytes(std::span(rounded_));
  }
  return Crc32c(answer);
}

}  // namespace conclave::expert_worker
