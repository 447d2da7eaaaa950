// The checks of a call that need its counts alone: a parser makes them before it forms any view.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "conclave/transport/frame.h"

namespace conclave::transport {

// The numbers of a call, as wide as the header carries them.
struct CallCounts {
  uint32_t model = 0;
  int64_t layer = 0;
  uint32_t row_width = 0;
  bool has_agreed_dtype = false;
  uint64_t rows = 0;
  uint64_t pairs = 0;
  uint64_t image_rows = 0;
};

absl::Status CheckCounts(const CallCounts& counts, const FrameLimits& limits);

}  // namespace conclave::transport
