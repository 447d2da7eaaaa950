#include "image_encoder.h"

#include <openssl/evp.h>

#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/frontend/image_spec.h"

namespace conclave::frontend {
namespace {

// SHA-256 over (width, height, fit, pixels), as 32 raw bytes.
std::string CacheKey(const image::RgbImage& picture, image::Fit fit) {
  const int32_t shape[] = {picture.width, picture.height, static_cast<int32_t>(fit)};
  std::string digest(32, '\0');
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  unsigned length = 0;
  const bool is_done =
      context != nullptr && EVP_DigestInit_ex(context, EVP_sha256(), nullptr) == 1 &&
      EVP_DigestUpdate(context, shape, sizeof shape) == 1 &&
      EVP_DigestUpdate(context, picture.pixels.data(), picture.pixels.size()) == 1 &&
      EVP_DigestFinal_ex(context, reinterpret_cast<unsigned char*>(digest.data()), &length) == 1;
  EVP_MD_CTX_free(context);
  CONCLAVE_CHECK(is_done && length == digest.size());
  return digest;
}

}  // namespace

ImageEncoder::ImageEncoder(model::VisionTower& tower, const checkpoint::VisionSpec& spec,
                           const image::DecodeLimits& limits, int64_t cache_bytes)
    : tower_(tower), spec_(spec), limits_(limits), cache_bytes_max_(cache_bytes) {}

absl::StatusOr<ImageEncoder::Result> ImageEncoder::Encode(std::span<const std::byte> encoded,
                                                          ImageMode mode) {
  const auto start = std::chrono::steady_clock::now();
  const image::PreprocessSpec spec = PreprocessSpecFor(spec_, mode);
  CONCLAVE_ASSIGN_OR_RETURN(const image::RgbImage picture, image::Decode(encoded, limits_));
  CONCLAVE_RETURN_IF_ERROR(CONCLAVE_FAILPOINT("f.image_decode", {}).status());
  Result result;
  const std::string key = CacheKey(picture, spec.fit);
  if (const auto it = by_key_.find(key); it != by_key_.end()) {
    recent_.splice(recent_.begin(), recent_, it->second);
    result.features = it->second->features;
    result.was_cached = true;
    result.decode = std::chrono::steady_clock::now() - start;
    return result;
  }
  const std::vector<float> pixels = image::Normalize(image::FitAndResize(picture, spec), spec);
  const auto decoded = std::chrono::steady_clock::now();
  auto features = std::make_shared<ImageFeatures>();
  std::memcpy(&features->digest, key.data(), sizeof features->digest);
  features->num_rows = tower_.num_features();
  tower_.Encode(pixels, features->rows, nullptr);
  result.features = features;
  result.decode = decoded - start;
  result.encode = std::chrono::steady_clock::now() - decoded;

  recent_.push_front({key, features});
  by_key_[key] = recent_.begin();
  cache_bytes_ += static_cast<int64_t>(features->rows.size() * sizeof(float));
  while (cache_bytes_ > cache_bytes_max_ && recent_.size() > 1) {
    const Entry& oldest = recent_.back();
    cache_bytes_ -= static_cast<int64_t>(oldest.features->rows.size() * sizeof(float));
    by_key_.erase(oldest.key);
    recent_.pop_back();
  }
  return result;
}

}  // namespace conclave::frontend
