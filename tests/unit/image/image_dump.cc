// What the image library makes of files, for a comparison with another implementation.
//
// Each line of standard input is "<file> <width> <height> <size>", without spaces in <file>. Each
// line of standard output is the SHA-256 of: the decoded picture; its resize to width × height;
// and, as f32 of size × size, CLIP's pad and crop and SigLIP's pad and stretch. A file that is
// refused gives the reason alone.
#include <cstdint>
#include <iostream>
#include <string>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "digest.h"
#include "files.h"

namespace {

using conclave::image::Fit;
using conclave::image::PreprocessSpec;

PreprocessSpec Clip(int32_t size, Fit fit) {
  return {.size = size,
          .fit = fit,
          .mean = {0.48145466F, 0.4578275F, 0.40821073F},
          .std = {0.26862954F, 0.26130258F, 0.27577711F}};
}

PreprocessSpec Siglip(int32_t size, Fit fit) {
  return {.size = size, .fit = fit, .mean = {0.5F, 0.5F, 0.5F}, .std = {0.5F, 0.5F, 0.5F}};
}

}  // namespace

int main() {
  std::string path;
  int32_t width = 0;
  int32_t height = 0;
  int32_t size = 0;
  while (std::cin >> path >> width >> height >> size) {
    if (width < 1 || height < 1 || size < 1) {
      std::cerr << "sizes start at 1\n";
      return 2;
    }
    const auto image =
        conclave::image::Decode(conclave::image::AsInput(conclave::image::ReadFileBytes(path)), {});
    if (!image.ok()) {
      std::cout << conclave::ReasonOf(image.status()) << "\n";
      continue;
    }
    std::cout << conclave::image::Sha256(image->pixels) << " "
              << conclave::image::Sha256(
                     conclave::image::ResizeBicubic(*image, width, height).pixels);
    for (const auto& [is_clip, fit] : {std::pair{true, Fit::kPad},
                                       {true, Fit::kCrop},
                                       {false, Fit::kPad},
                                       {false, Fit::kStretch}}) {
      const PreprocessSpec spec = is_clip ? Clip(size, fit) : Siglip(size, fit);
      std::cout << " "
                << conclave::image::Sha256(conclave::image::Normalize(
                       conclave::image::FitAndResize(*image, spec), spec));
    }
    std::cout << "\n";
  }
  return 0;
}
