#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <string_view>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

// Elements that one task draws and writes; a multiple of 4.
constexpr int64_t kChunk = 1 << 20;
// Chunks between two calls of progress.
constexpr size_t kBatch = 32;

uint64_t Mix(uint64_t z) {  // The finalizer of splitmix64.
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// Independent of the order of tensors, so that a layout can change without changing the weights.
uint64_t KeyOf(std::string_view name, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : name) {
    hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ULL;
  }
  return Mix(hash ^ Mix(seed + 0x9e3779b97f4a7c15ULL));
}

// Four values from one hash: 16 bits each, uniform.
template <typename Out, typename Convert>
void Fill(uint64_t key, int64_t first, const Spread& spread, std::span<Out> out,
          const Convert& convert) {
  // A uniform number in [-32768, 32768) has the deviation 65536 / sqrt(12).
  const float scale = spread.deviation * (std::sqrt(12.0f) / 65536.0f);
  auto counter = static_cast<uint64_t>(first / 4);
  for (size_t i = 0; i < out.size(); i += 4) {
    const uint64_t bits = Mix(key + ++counter * 0x9e3779b97f4a7c15ULL);
    const size_t count = std::min<size_t>(4, out.size() - i);
    for (size_t j = 0; j < count; ++j) {
      const auto lane = static_cast<int16_t>(bits >> (16 * j));
      out[i + j] = convert(spread.offset + scale * static_cast<float>(lane));
    }
  }
}

struct Chunk {
  size_t tensor = 0;  // of the writer
  int64_t first = 0;
  int64_t count = 0;
};

std::vector<Chunk> CutChunks(std::span<const TensorSpec> tensors) {
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t num = tensors[t].num_elements();
    for (int64_t first = 0; first < num; first += kChunk) {
      chunks.push_back({t, first, std::min(kChunk, num - first)});
    }
  }
  return chunks;
}

template <typename T>
absl::Status DrawAndWrite(const SafetensorsWriter& writer, const Chunk& chunk, uint64_t key,
                          const Spread& spread) {
  std::vector<T> values(static_cast<size_t>(chunk.count));
  if constexpr (sizeof(T) == sizeof(float)) {
    FillF32(key, chunk.first, spread, values);
  } else {
    FillBf16(key, chunk.first, spread, values);
  }
  return writer.Write(chunk.tensor, chunk.first * static_cast<int64_t>(sizeof(T)),
                      std::as_bytes(std::span(values)));
}

bool EndsIn(const ExpectedTensor& tensor, std::string_view end) {
  return tensor.name.ends_with(end);
}

// Deviation of a matrix that neither shrinks nor grows unit-size rows.
float Unit(const ExpectedTensor& tensor) {
  int64_t fan_in = 1;
  for (size_t i = 1; i < tensor.shape.size(); ++i) {
    fan_in *= tensor.shape[i];
  }
  return 1.0f / std::sqrt(static_cast<float>(fan_in));
}

Spread TowerSpread(const ExpectedTensor& tensor, const VisionSpec& vision) {
  const bool is_norm = tensor.name.find("norm") != std::string::npos ||
                       tensor.name.find("pre_layrnorm") != std::string::npos;
  if (EndsIn(tensor, ".bias") || EndsIn(tensor, "_bias")) {
    return {.offset = 0, .deviation = 0.02f};
  }
  if (is_norm) {
    return {.offset = 1, .deviation = 0.1f};
  }
  if (EndsIn(tensor, "_embedding") || EndsIn(tensor, "position_embedding.weight") ||
      EndsIn(tensor, "probe")) {
    return {.offset = 0, .deviation = 0.05f};
  }
  const bool is_residual = EndsIn(tensor, "out_proj.weight") || EndsIn(tensor, "fc2.weight");
  const float depth = std::sqrt(2.0f * static_cast<float>(vision.num_layers));
  return {.offset = 0, .deviation = is_residual ? Unit(tensor) / depth : Unit(tensor)};
}

}  // namespace

Spread SpreadOf(const ExpectedTensor& tensor, const ModelDesc& desc) {
  if (tensor.part == TensorPart::kTower) {
    return TowerSpread(tensor, desc.vision);
  }
  const bool is_bias = EndsIn(tensor, ".bias");
  if (tensor.part == TensorPart::kNorm) {
    return {.offset = is_bias ? 0.0f : 1.0f, .deviation = is_bias ? 0.02f : 0.1f};
  }
  if (is_bias) {
    return {.offset = 0, .deviation = 0.02f};
  }
  const float unit = Unit(tensor);
  switch (tensor.part) {
    case TensorPart::kEmbedding:
      return {.offset = 0, .deviation = 0.05f};
    case TensorPart::kHead:
    case TensorPart::kGate:
      // Scores with deviation 4: the best and the next are seldom within rounding of each other.
      return {.offset = 0, .deviation = 4 * unit};
    case TensorPart::kProjector: {
      // Image rows as small as the embedding's. The last linear reads rows of the decoder's width.
      const bool is_last =
          desc.projector.num_linears == 1 ||
          EndsIn(tensor, "." + std::to_string(2 * (desc.projector.num_linears - 1)) + ".weight");
      return {.offset = 0, .deviation = is_last ? 0.1f * unit : unit};
    }
    default:
      break;
  }
  // What is added to the residual is scaled down so that all layers together add about one.
  const bool is_residual =
      EndsIn(tensor, desc.names.o + ".weight") || EndsIn(tensor, desc.names.ffn_down + ".weight");
  const float depth = std::sqrt(2.0f * static_cast<float>(desc.num_layers));
  return {.offset = 0, .deviation = is_residual ? unit / depth : unit};
}

void FillBf16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out) {
  Fill(key, first, spread, out, [](float value) { return ToBf16(value).bits; });
}

void FillF32(uint64_t key, int64_t first, const Spread& spread, std::span<float> out) {
  Fill(key, first, spread, out, [](float value) { return value; });
}

DType SynthDType(const ExpectedTensor& tensor, bool has_f32_gate) {
  return tensor.part == TensorPart::kGate && has_f32_gate ? DType::kF32 : DType::kBf16;
}

std::vector<std::vector<size_t>> CutShards(const std::vector<ExpectedTensor>& list,
                                           bool has_f32_gate, int64_t bytes_max) {
  std::vector<std::vector<size_t>> shards(1);
  int64_t used = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t bytes =
        list[i].num_elements() * static_cast<int64_t>(SizeOf(SynthDType(list[i], has_f32_gate)));
    if (used > 0 && used + bytes > bytes_max) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(i);
    used += bytes;
  }
  return shards;
}

absl::Status WriteShard(const std::string& path, const std::vector<ExpectedTensor>& list,
                        std::span<const size_t> shard, const ModelDesc& desc, bool has_f32_gate,
                        uint64_t seed, ThreadPool& pool,
                        const std::function<void(int64_t bytes)>& written) {
  std::vector<TensorSpec> specs;
  for (const size_t index : shard) {
    specs.push_back({list[index].name, SynthDType(list[index], has_f32_gate), list[index].shape});
  }
  CONCLAVE_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                            SafetensorsWriter::Create(path, std::move(specs)));
  // The writer has its own order.
  std::vector<std::pair<uint64_t, Spread>> streams;
  for (const TensorSpec& spec : writer.tensors()) {
    const auto found = std::find_if(shard.begin(), shard.end(),
                                    [&](size_t index) { return list[index].name == spec.name; });
    streams.emplace_back(KeyOf(spec.name, seed), SpreadOf(list[*found], desc));
  }
  const std::vector<Chunk> chunks = CutChunks(writer.tensors());
  for (size_t first = 0; first < chunks.size(); first += kBatch) {
    const size_t count = std::min(kBatch, chunks.size() - first);
    std::array<absl::Status, kBatch> results;
    pool.ParallelFor(static_cast<int64_t>(count), [&](int64_t task) {
      const Chunk& chunk = chunks[first + static_cast<size_t>(task)];
      const auto& [key, spread] = streams[chunk.tensor];
      results[static_cast<size_t>(task)] = writer.tensors()[chunk.tensor].dtype == DType::kF32
                                               ? DrawAndWrite<float>(writer, chunk, key, spread)
                                               : DrawAndWrite<uint16_t>(writer, chunk, key, spread);
    });
    int64_t bytes = 0;
    for (size_t i = 0; i < count; ++i) {
      CONCLAVE_RETURN_IF_ERROR(results[i]);
      const Chunk& chunk = chunks[first + i];
      bytes += chunk.count * static_cast<int64_t>(SizeOf(writer.tensors()[chunk.tensor].dtype));
    }
    written(bytes);
  }
  return writer.Finish();
}

}  // namespace conclave::checkpoint
