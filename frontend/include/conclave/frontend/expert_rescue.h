// The last resort for an expert that no worker serves: the frontend computes it itself.
#pragma once

#include <span>

#include "absl/status/status.h"
#include "conclave/placement/placement.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::frontend {

// All by the dispatcher's thread.
class ExpertRescue {
 public:
  virtual ~ExpertRescue() = default;

  // Computes calls for what is held, within Poll; has the row width and dtype of the links.
  virtual transport::ExpertChannel& channel() = 0;
  virtual bool Holds(placement::ExpertUnit unit) const = 0;
  // Loads the expert; blocks, as long as reading and packing its weights takes. OK when it is held
  // already. kResourceExhausted ("rescue_memory") where it does not fit, or the checkpoint's error.
  virtual absl::Status Load(placement::ExpertUnit unit) = 0;
  // Workers serve these again. None of their calls is under way.
  virtual void Retire(std::span<const placement::ExpertUnit> units) = 0;
};

}  // namespace conclave::frontend
