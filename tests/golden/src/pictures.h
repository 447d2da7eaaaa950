// Pictures of a recording as the tower takes them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"

namespace conclave::golden {

// The picture in `file` fitted, resized and normalised as the model's config says:
// [3, image_size, image_size].
absl::StatusOr<std::vector<float>> PixelsOf(const std::string& file,
                                            const checkpoint::VisionSpec& spec);

}  // namespace conclave::golden
