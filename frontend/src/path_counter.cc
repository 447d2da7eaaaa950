#include "conclave/frontend/path_counter.h"

#include <algorithm>

#include "absl/strings/string_view.h"
#include "conclave/base/check.h"

namespace conclave::frontend {

PathCounter::PathCounter(model::MoeExecutor& next, std::span<const checkpoint::MoeLayerSpec> layers,
                         int32_t max_rows)
    : next_(next), num_layers_(layers.size()) {
  CONCLAVE_CHECK(!layers.empty());
  index_of_.assign(static_cast<size_t>(layers.back().layer) + 1, -1);
  for (size_t i = 0; i < layers.size(); ++i) {
    index_of_[static_cast<size_t>(layers[i].layer)] = static_cast<int32_t>(i);
  }
  for (std::string& bytes : open_) {
    bytes.resize(static_cast<size_t>(max_rows) * num_layers_ * 2);
  }
}

void PathCounter::Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
                        std::span<const model::StepRow> rows, const model::GateChoice& choice,
                        MatView<float> out) {
  const auto index = static_cast<size_t>(index_of_.at(static_cast<size_t>(layer)));
  std::string& bytes = open_.at(static_cast<size_t>(micro_batch));
  for (size_t r = 0; r < rows.size(); ++r) {
    const auto expert = static_cast<uint16_t>(choice.experts.Row(static_cast<int64_t>(r))[0]);
    char* place = bytes.data() + (r * num_layers_ + index) * 2;
    place[0] = static_cast<char>(expert >> 8);
    place[1] = static_cast<char>(expert & 0xFF);
  }
  next_.Start(micro_batch, layer, n, rows, choice, out);
  // Behind the dispatch, while the workers compute.
  if (index + 1 == num_layers_) {
    Count(rows, bytes);
  }
}

void PathCounter::Count(std::span<const model::StepRow> rows, const std::string& path_bytes) {
  MutexLock lock(mu_);
  for (size_t r = 0; r < rows.size(); ++r) {
    Table& table = tables_[rows[r].is_image ? 1 : 0];
    const absl::string_view path(path_bytes.data() + r * num_layers_ * 2, num_layers_ * 2);
    ++table.rows;
    if (const auto it = table.paths.find(path); it != table.paths.end()) {
      ++it->second;
    } else if (table.paths.size() < kPathsMax) {
      // The only allocation here: once for every path that is new.
      table.paths.emplace(std::string(path), 1);
    } else {
      ++table.other;
    }
  }
}

std::array<live::PathCounts, live::kModalities> PathCounter::Counts() const {
  using Counted = std::pair<const std::string*, uint64_t>;
  std::array<live::PathCounts, live::kModalities> out;
  std::array<std::vector<Counted>, live::kModalities> counted;
  for (std::vector<Counted>& paths : counted) {
    paths.reserve(kPathsMax);
  }
  {
    // The engine waits behind it: copied here, sorted below.
    MutexLock lock(mu_);
    for (size_t m = 0; m < out.size(); ++m) {
      const Table& table = tables_[m];
      for (const auto& [path, rows] : table.paths) {
        counted[m].emplace_back(&path, rows);
      }
      out[m].rows = table.rows;
      out[m].other = table.other;
      out[m].distinct = table.paths.size();
    }
  }
  for (size_t m = 0; m < out.size(); ++m) {
    std::vector<Counted>& best = counted[m];
    const size_t count = std::min(best.size(), live::kTopPaths);
    std::partial_sort(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(count), best.end(),
                      [](const Counted& a, const Counted& b) {
                        return a.second != b.second ? a.second > b.second : *a.first < *b.first;
                      });
    for (size_t i = 0; i < count; ++i) {
      live::Path path;
      path.rows = best[i].second;
      for (size_t at = 0; at < best[i].first->size(); at += 2) {
        const auto high = static_cast<uint8_t>((*best[i].first)[at]);
        const auto low = static_cast<uint8_t>((*best[i].first)[at + 1]);
        path.experts.push_back(high << 8 | low);
      }
      out[m].top.push_back(std::move(path));
    }
  }
  return out;
}

}  // namespace conclave::frontend
