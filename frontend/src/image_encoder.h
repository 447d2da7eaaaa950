// From encoded pictures to feature rows, with a cache: the same picture over several turns is
// encoded once.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/engine.h"
#include "conclave/image/image.h"
#include "conclave/model/vision_tower.h"

namespace conclave::frontend {

// Used by one thread.
class ImageEncoder {
 public:
  // `tower` outlives the encoder.
  ImageEncoder(model::VisionTower& tower, const checkpoint::VisionSpec& spec,
               const image::DecodeLimits& limits, int64_t cache_bytes);

  struct Result {
    std::shared_ptr<const ImageFeatures> features;
    std::chrono::nanoseconds decode{0};
    std::chrono::nanoseconds encode{0};
    bool was_cached = false;
  };

  // Decodes, fits, resizes, normalises and encodes. The cache key is a SHA-256 over the decoded
  // pixels, their width and height and the mode, so that neither a file's metadata nor a clash of
  // shapes can bring up another picture.
  absl::StatusOr<Result> Encode(std::span<const std::byte> encoded, ImageMode mode);

 private:
  struct Entry {
    std::string key;
    std::shared_ptr<const ImageFeatures> features;
  };

  model::VisionTower& tower_;
  const checkpoint::VisionSpec& spec_;
  const image::DecodeLimits limits_;
  const int64_t cache_bytes_max_;
  int64_t cache_bytes_ = 0;
  std::list<Entry> recent_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_key_;
};

}  // namespace conclave::frontend
