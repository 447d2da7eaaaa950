// The attempts of calls of one engine step, for the trace of a request that takes part in it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "conclave/frontend/dispatch_observer.h"

namespace conclave::frontend {

// Stands between a dispatcher and another observer, to which everything is handed on. The engine's
// thread.
class StepTrace final : public DispatchObserver {
 public:
  // Attempts kept of one step; further ones are counted.
  static constexpr size_t kAttemptsMax = 512;

  // `next` may be null; otherwise it outlives this.
  explicit StepTrace(DispatchObserver* next);

  // Between the two, attempts are kept. Begin forgets those of the step before.
  void Begin();
  void End() { is_on_ = false; }

  std::span<const AttemptRecord> attempts() const { return attempts_; }
  int32_t num_left_out() const { return num_left_out_; }
  // Whether any attempt was late, refused, lost, repeated or overtaken.
  bool has_trouble() const { return has_trouble_; }

  void OnAttempt(const AttemptRecord& record) override;
  void OnLayer(const LayerRecord& record) override;

 private:
  DispatchObserver* const next_;
  bool is_on_ = false;
  bool has_trouble_ = false;
  int32_t num_left_out_ = 0;
  std::vector<AttemptRecord> attempts_;
};

}  // namespace conclave::frontend
