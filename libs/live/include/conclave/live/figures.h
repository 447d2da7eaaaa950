// What one frontend has counted since its start, as the live picture (docs/live.md) needs it: plain
// values that add up over frontends.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace conclave::live {

struct MoeLayer {
  int32_t layer = 0;
  int32_t num_experts = 0;
  friend bool operator==(const MoeLayer&, const MoeLayer&) = default;
};

struct ModelCard {
  std::string name;
  std::string dtype;
  int32_t top_k = 0;
  std::vector<MoeLayer> layers;  // ascending
  int32_t image_rows = 0;        // patch grid of a picture; 0: no vision
  int32_t image_columns = 0;
  friend bool operator==(const ModelCard&, const ModelCard&) = default;
};

// Experts of all layers: they are counted from 0, layer after layer.
size_t NumExperts(const std::vector<MoeLayer>& layers);

// Counters of one expert: [rank][phase][modality] = [first, second choice][prefill, decode][text,
// image].
inline constexpr size_t kCellsPerExpert = 8;
inline constexpr size_t kModalities = 2;
constexpr size_t RowCell(size_t expert, size_t rank, size_t phase, size_t modality) {
  return expert * kCellsPerExpert + rank * 4 + phase * 2 + modality;
}

// Counts per bucket; one more than there are bounds.
using Buckets = std::vector<uint64_t>;

struct Serving {
  uint64_t prompt_text = 0;   // rows of prompts that were computed
  uint64_t prompt_image = 0;  // likewise, of pictures
  uint64_t cached = 0;        // prompt rows that the prefix cache had
  uint64_t generated = 0;
  std::array<uint64_t, 4> finished{};  // requests: stop, length, abort, error
  uint64_t images = 0;
  uint64_t image_hits = 0;  // of them, found by digest
  uint64_t preemptions = 0;
  uint64_t requests_touched = 0;  // ran in a step in which a call was sent again
  uint64_t rescued = 0;           // calls that no worker served and the frontend computed itself
  Buckets ttft, itl, recovery;
  friend bool operator==(const Serving&, const Serving&) = default;
};

// Attempts at one worker.
struct WorkerCalls {
  int32_t worker = 0;
  uint64_t calls = 0;
  uint64_t rows = 0;
  uint64_t calls_resent = 0;  // had to go to somebody else
  uint64_t rows_resent = 0;
  uint64_t hedges = 0;
  uint64_t timeouts = 0;
  uint64_t links_lost = 0;
  uint64_t bytes_out = 0;
  uint64_t bytes_in = 0;
  uint64_t bytes_least = 0;  // what these rows need at their width, both ways
  Buckets seconds;           // round trips
  friend bool operator==(const WorkerCalls&, const WorkerCalls&) = default;
};

// First choices of rows through all MoE layers.
struct Path {
  std::vector<int32_t> experts;
  uint64_t rows = 0;
  friend bool operator==(const Path&, const Path&) = default;
};
struct PathCounts {
  uint64_t rows = 0;
  uint64_t distinct = 0;
  uint64_t other = 0;     // rows on paths that are not counted one by one
  std::vector<Path> top;  // most rows first, ties by experts
  friend bool operator==(const PathCounts&, const PathCounts&) = default;
};
inline constexpr size_t kTopPaths = 64;

struct FrontendFigures {
  ModelCard model;
  std::vector<uint64_t> rows;         // by RowCell
  std::vector<double> weights;        // [expert][modality]: sums of the gates' weights
  std::vector<double> probabilities;  // [expert]: sums of the gates' probabilities
  int32_t running = 0;
  int32_t waiting = 0;
  double kv = 0;  // used part of the KV blocks, 0..1
  Serving serving;
  std::vector<WorkerCalls> workers;  // by id
  std::array<PathCounts, kModalities> pathways;
};

// Adds what another frontend of the same model counted; `into` may be empty.
void Add(const FrontendFigures& from, FrontendFigures& into);

}  // namespace conclave::live
