#include "conclave/frontend/image_spec.h"

#include <algorithm>

#include "conclave/base/check.h"

namespace conclave::frontend {
namespace {

image::Fit FitOf(checkpoint::ImageFit fit) {
  switch (fit) {
    case checkpoint::ImageFit::kPad:
      return image::Fit::kPad;
    case checkpoint::ImageFit::kCrop:
      return image::Fit::kCrop;
    case checkpoint::ImageFit::kStretch:
      return image::Fit::kStretch;
  }
  CONCLAVE_CHECK(false);
}

}  // namespace

image::PreprocessSpec PreprocessSpecFor(const checkpoint::VisionSpec& vision, ImageMode mode) {
  image::PreprocessSpec spec;
  spec.size = vision.image_size;
  switch (mode) {
    case ImageMode::kModelDefault:
      spec.fit = FitOf(vision.fit);
      break;
    case ImageMode::kPad:
      spec.fit = image::Fit::kPad;
      break;
    case ImageMode::kCrop:
      spec.fit = image::Fit::kCrop;
      break;
    case ImageMode::kStretch:
      spec.fit = image::Fit::kStretch;
      break;
  }
  std::copy_n(vision.mean, 3, spec.mean);
  std::copy_n(vision.std, 3, spec.std);
  return spec;
}

}  // namespace conclave::frontend
