// Where a vision tower's geometry comes from, and reading it (spec 2.6, 3.1 to 3.4).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "conclave/checkpoint/model_desc.h"
#include "config_reader.h"
#include "file.h"

namespace conclave::checkpoint {

// Fills kind, geometry, norm, activation, mean and std of `vision`. `name`: mm_image_tower. The
// first of these that is there decides: the folder `vision_tower`, a vision_config in `config` with
// preprocessor_config.json beside it, a folder called `name` (absolute, in the checkpoint folder,
// in its parent), the table of published towers.
absl::Status ReadTower(const ModelFolder& folder, const boost::json::object& config,
                       const std::string& name, const std::string& vision_tower,
                       VisionSpec& vision);

}  // namespace conclave::checkpoint
