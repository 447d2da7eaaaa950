#include "conclave/frontend/step_trace.h"

namespace conclave::frontend {

StepTrace::StepTrace(DispatchObserver* next) : next_(next) { attempts_.reserve(kAttemptsMax); }

void StepTrace::Begin() {
  attempts_.clear();
  num_left_out_ = 0;
  has_trouble_ = false;
  is_on_ = true;
}

void StepTrace::OnAttempt(const AttemptRecord& record) {
  if (is_on_) {
    has_trouble_ = has_trouble_ || record.end != AttemptEnd::kAnswered || record.number > 0;
    if (attempts_.size() < kAttemptsMax) {
      attempts_.push_back(record);
    } else {
      ++num_left_out_;
    }
  }
  if (next_ != nullptr) {
    next_->OnAttempt(record);
  }
}

void StepTrace::OnLayer(const LayerRecord& record) {
  if (next_ != nullptr) {
    next_->OnLayer(record);
  }
}

}  // namespace conclave::frontend
