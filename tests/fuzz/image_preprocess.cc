// What stands between a decoded picture and the vision tower.
//
// Promises: any picture, fitted in any way to any size, gives [3, size, size] finite numbers, and
// the numbers of a picture of one colour are that colour's everywhere, but for padding.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/image/image.h"
#include "fuzzer/FuzzedDataProvider.h"

namespace conclave::image {
namespace {

RgbImage TakePicture(FuzzedDataProvider& source) {
  RgbImage picture;
  picture.width = source.ConsumeIntegralInRange(1, 60);
  picture.height = source.ConsumeIntegralInRange(1, 60);
  picture.pixels.resize(size_t{3} * static_cast<size_t>(picture.width) *
                        static_cast<size_t>(picture.height));
  // A few bytes are repeated all over the picture: inputs stay short.
  const std::vector<uint8_t> pattern = source.ConsumeRemainingBytes<uint8_t>();
  for (size_t i = 0; i < picture.pixels.size() && !pattern.empty(); ++i) {
    picture.pixels[i] = pattern[i % pattern.size()];
  }
  return picture;
}

PreprocessSpec TakeSpec(FuzzedDataProvider& source) {
  PreprocessSpec spec;
  spec.size = source.ConsumeIntegralInRange(1, 40);
  spec.fit = source.PickValueInArray({Fit::kPad, Fit::kCrop, Fit::kStretch});
  const bool is_clip = source.ConsumeBool();
  static constexpr float kClip[2][3] = {{0.48145466F, 0.4578275F, 0.40821073F},
                                        {0.26862954F, 0.26130258F, 0.27577711F}};
  for (int c = 0; c < 3; ++c) {
    spec.mean[c] = is_clip ? kClip[0][c] : 0.5F;
    spec.std[c] = is_clip ? kClip[1][c] : 0.5F;
  }
  return spec;
}

bool IsOneColour(const RgbImage& picture) {
  for (size_t i = 3; i < picture.pixels.size(); ++i) {
    if (picture.pixels[i] != picture.pixels[i - 3]) {
      return false;
    }
  }
  return true;
}

void Check(FuzzedDataProvider& source) {
  const PreprocessSpec spec = TakeSpec(source);
  const RgbImage picture = TakePicture(source);
  const RgbImage fitted = FitAndResize(picture, spec);
  CONCLAVE_CHECK(fitted.width == spec.size && fitted.height == spec.size);
  const auto num_pixels = static_cast<size_t>(spec.size) * static_cast<size_t>(spec.size);
  CONCLAVE_CHECK(fitted.pixels.size() == 3 * num_pixels);
  const std::vector<float> tensor = Normalize(fitted, spec);
  CONCLAVE_CHECK(tensor.size() == 3 * num_pixels);
  CONCLAVE_CHECK(
      std::all_of(tensor.begin(), tensor.end(), [](float value) { return std::isfinite(value); }));
  if (spec.fit != Fit::kPad && IsOneColour(picture)) {
    CONCLAVE_CHECK(IsOneColour(fitted));
    CONCLAVE_CHECK(
        std::equal(picture.pixels.begin(), picture.pixels.begin() + 3, fitted.pixels.begin()));
  }
}

}  // namespace
}  // namespace conclave::image

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider source(bytes, size);
  conclave::image::Check(source);
  return 0;
}
