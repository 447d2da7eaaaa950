// How a model's pictures are prepared, from its description.
#pragma once

#include "conclave/checkpoint/model_desc.h"
#include "conclave/frontend/chat.h"
#include "conclave/image/image.h"

namespace conclave::frontend {

// The preparation that the model's own processor does, or another fit where `mode` asks for one.
image::PreprocessSpec PreprocessSpecFor(const checkpoint::VisionSpec& vision, ImageMode mode);

}  // namespace conclave::frontend
