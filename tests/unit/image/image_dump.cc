// What the image library makes of files, for a comparison with another implementation.
//
// Each line of standard input is "<file> <width> <height> <size>", without spaces in <file>. Each
// line of standard output is the SHA-256 of: the decoded picture, its resize to width × height, and
// the pad, crop and stretch fits of CLIP to size × size. A file that is refused gives the reason
// alone.
#include <cstdint>
#include <iostream>
#include <string>

#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "digest.h"
#include "files.h"

int main() {
  using conclave::image::Fit;
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
    for (const Fit fit : {Fit::kPad, Fit::kCrop, Fit::kStretch}) {
      const conclave::image::PreprocessSpec spec{
          .size = size, .fit = fit, .mean = {0.48145466F, 0.4578275F, 0.40821073F}};
      std::cout << " "
                << conclave::image::Sha256(conclave::image::FitAndResize(*image, spec).pixels);
    }
    std::cout << "\n";
  }
  return 0;
}
