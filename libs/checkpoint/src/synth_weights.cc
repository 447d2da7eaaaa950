#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <map>
#include <string_view>
#include <utility>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/torch_zip_writer.h"
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

template <typename Writer>
absl::Status DrawAndWrite(const Writer& writer, const Chunk& chunk, uint64_t key,
                          const Spread& spread) {
  const DType dtype = writer.tensors()[chunk.tensor].dtype;
  const auto count = static_cast<size_t>(chunk.count);
  const int64_t offset = chunk.first * static_cast<int64_t>(SizeOf(dtype));
  if (dtype == DType::kF32) {
    std::vector<float> values(count);
    FillF32(key, chunk.first, spread, values);
    return writer.Write(chunk.tensor, offset, std::as_bytes(std::span(values)));
  }
  std::vector<uint16_t> halves(count);
  if (dtype == DType::kF16) {
    FillF16(key, chunk.first, spread, halves);
  } else {
    FillBf16(key, chunk.first, spread, halves);
  }
  return writer.Write(chunk.tensor, offset, std::as_bytes(std::span(halves)));
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
      // One that is also the head must be small beside what the layers add, or every token would
      // predict itself.
      return {.offset = 0, .deviation = desc.tie_embeddings ? 0.1f / desc.embedding_scale : 0.05f};
    case TensorPart::kHead:
      return {.offset = 0, .deviation = 4 * unit / desc.head_scale};
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
  const float depth = std::sqrt(2.0f * static_cast<float>(desc.num_layers)) * desc.residual_scale;
  return {.offset = 0, .deviation = is_residual ? unit / depth : unit};
}

void FillBf16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out) {
  Fill(key, first, spread, out, [](float value) { return ToBf16(value).bits; });
}

void FillF16(uint64_t key, int64_t first, const Spread& spread, std::span<uint16_t> out) {
  Fill(key, first, spread, out, [](float value) { return FloatToHalf(value); });
}

void FillF32(uint64_t key, int64_t first, const Spread& spread, std::span<float> out) {
  Fill(key, first, spread, out, [](float value) { return value; });
}

DType SynthDType(const ExpectedTensor& tensor, const SynthModel& model) {
  return tensor.part == TensorPart::kGate && model.has_f32_gate ? DType::kF32 : model.dtype;
}

std::vector<std::vector<size_t>> CutShards(const std::vector<ExpectedTensor>& list,
                                           const SynthModel& model) {
  std::vector<std::vector<size_t>> shards(1);
  int64_t used = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    const int64_t bytes =
        list[i].num_elements() * static_cast<int64_t>(SizeOf(SynthDType(list[i], model)));
    if (used > 0 && used + bytes > model.shard_bytes_max) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(i);
    used += bytes;
  }
  return shards;
}

namespace {

// Draws and writes all tensors of one file.
template <typename Writer>
absl::Status Draw(Writer& writer, const std::vector<ExpectedTensor>& list,
                  std::span<const size_t> shard, const ModelDesc& desc, uint64_t seed,
                  ThreadPool& pool, const std::function<void(int64_t bytes)>& written) {
  // The writer has its own order.
  std::map<std::string_view, size_t> index_of;
  for (const size_t index : shard) {
    index_of[list[index].name] = index;
  }
  std::vector<std::pair<uint64_t, Spread>> streams;
  for (const TensorSpec& spec : writer.tensors()) {
    streams.emplace_back(KeyOf(spec.name, seed), SpreadOf(list[index_of.at(spec.name)], desc));
  }
  const std::vector<Chunk> chunks = CutChunks(writer.tensors());
  for (size_t first = 0; first < chunks.size(); first += kBatch) {
    const size_t count = std::min(kBatch, chunks.size() - first);
    std::array<absl::Status, kBatch> results;
    pool.ParallelFor(static_cast<int64_t>(count), [&](int64_t task) {
      const Chunk& chunk = chunks[first + static_cast<size_t>(task)];
      const auto& [key, spread] = streams[chunk.tensor];
      results[static_cast<size_t>(task)] = DrawAndWrite(writer, chunk, key, spread);
    });
    int64_t bytes = 0;
    for (size_t i = 0; i < count; ++i) {
      CONCLAVE_RETURN_IF_ERROR(results[i]);
      const Chunk& chunk = chunks[first + i];
      bytes += chunk.count * static_cast<int64_t>(SizeOf(writer.tensors()[chunk.tensor].dtype));
    }
    written(bytes);
  }
  return absl::OkStatus();
}

template <typename Writer>
absl::Status WriteFileOf(const std::string& path, const std::vector<ExpectedTensor>& list,
                         std::span<const size_t> shard, const ModelDesc& desc,
                         const SynthModel& model, const SynthOptions& options, ThreadPool& pool,
                         const std::function<void(int64_t bytes)>& written) {
  std::vector<TensorSpec> specs;
  for (const size_t index : shard) {
    specs.push_back({list[index].name, SynthDType(list[index], model), list[index].shape});
  }
  CONCLAVE_ASSIGN_OR_RETURN(Writer writer, Writer::Create(path, std::move(specs)));
  if (!options.is_headers_only) {
    CONCLAVE_RETURN_IF_ERROR(Draw(writer, list, shard, desc, options.seed, pool, written));
  }
  return writer.Finish();
}

}  // namespace

absl::Status WriteShard(const std::string& path, const std::vector<ExpectedTensor>& list,
                        std::span<const size_t> shard, const ModelDesc& desc,
                        const SynthModel& model, const SynthOptions& options, ThreadPool& pool,
                        const std::function<void(int64_t bytes)>& written) {
  return model.is_torch
             ? WriteFileOf<TorchZipWriter>(path, list, shard, desc, model, options, pool, written)
             : WriteFileOf<SafetensorsWriter>(path, list, shard, desc, model, options, pool,
                                              written);
}

}  // namespace conclave::checkpoint
