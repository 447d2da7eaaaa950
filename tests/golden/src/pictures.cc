#include "pictures.h"

#include <algorithm>
#include <span>

#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "recording.h"

namespace conclave::golden {

absl::StatusOr<std::vector<float>> PixelsOf(const std::string& file,
                                            const checkpoint::VisionSpec& spec) {
  image::PreprocessSpec preprocess;
  preprocess.size = spec.image_size;
  preprocess.fit = spec.fit == checkpoint::ImageFit::kPad    ? image::Fit::kPad
                   : spec.fit == checkpoint::ImageFit::kCrop ? image::Fit::kCrop
                                                             : image::Fit::kStretch;
  std::copy_n(spec.mean, 3, preprocess.mean);
  std::copy_n(spec.std, 3, preprocess.std);
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(file));
  CONCLAVE_ASSIGN_OR_RETURN(const image::RgbImage picture,
                            image::Decode(std::as_bytes(std::span(bytes)), {}));
  return image::Normalize(image::FitAndResize(picture, preprocess), preprocess);
}

}  // namespace conclave::golden
