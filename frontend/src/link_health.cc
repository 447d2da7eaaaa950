#include "conclave/frontend/link_health.h"

#include <bit>
#include <cmath>

namespace conclave::frontend {
namespace {

// Weight of a new sample in the smoothed time per row.
constexpr double kSmoothing = 0.1;
constexpr double kWayRise = 0.05;
// Below so many rows a call's time says more of the weights than of the rows.
constexpr int kRowsForRowTime = 16;
constexpr uint32_t kErrorWindow = (1u << 20) - 1;
constexpr double kPatienceMax = 16.0;
// Per answer in time: a thousand of them take most of a false alarm back.
constexpr double kPatienceDecay = 0.999;
constexpr double kLatenessMax = 8.0;
constexpr double kLatenessUnitUs = 100'000;

Microseconds ToMicroseconds(double us) { return Microseconds(std::llround(us)); }

}  // namespace

int LinkHealth::SizeClassOf(int rows) {
  if (rows <= 1) {
    return 0;
  }
  return rows <= 4 ? 1 : rows <= 16 ? 2 : rows <= 64 ? 3 : 4;
}

LinkHealth::LinkHealth(const LinkSettings& settings) : settings_(settings) {
  for (Class& size_class : classes_) {
    size_class.ring.resize(kSamples);
  }
  scratch_.resize(kSamples);
}

void LinkHealth::SetEstimate(double expert_us, double row_us) {
  expert_us_ = expert_us;
  row_us_ = row_us;
}

double LinkHealth::ExpectedUs(int rows, int experts) const {
  const double queue = outstanding_rows_ * row_us_;
  const Class& size_class = classes_[static_cast<size_t>(SizeClassOf(rows))];
  // Within a class the largest call takes four times the smallest: what was seen is scaled only
  // where it grows without bound.
  if (size_class.count >= settings_.samples_min && SizeClassOf(rows) < kSizeClasses - 1) {
    return queue + size_class.mean;
  }
  return queue + link_us_ + experts * expert_us_ + rows * row_us_;
}

Microseconds LinkHealth::DeadlineFor(int rows, int experts, double lateness_factor) const {
  const Class& size_class = classes_[static_cast<size_t>(SizeClassOf(rows))];
  const double expected = ExpectedUs(rows, experts);
  const double seen =
      size_class.count >= settings_.samples_min ? 4.0 * size_class.p99 : 2.0 * expected;
  double us = std::max<double>(static_cast<double>(settings_.deadline_min.count()), seen);
  const double longest =
      std::max<double>(static_cast<double>(settings_.deadline_max.count()), 2.0 * expected);
  us = std::min(us, longest) * patience_ * lateness_factor;
  if (num_answers_ < settings_.warm_answers) {
    us *= settings_.cold_factor;
  }
  return ToMicroseconds(us);
}

Microseconds LinkHealth::HedgeDelayFor(int rows, int experts, double lateness_factor) const {
  const Class& size_class = classes_[static_cast<size_t>(SizeClassOf(rows))];
  const double seen =
      size_class.count >= settings_.samples_min ? size_class.p99 : 2.0 * ExpectedUs(rows, experts);
  const double longest = std::max<double>(static_cast<double>(settings_.hedge_max.count()),
                                          2.0 * ExpectedUs(rows, experts));
  double us = std::max<double>(static_cast<double>(settings_.hedge_min.count()), seen);
  us = std::min(us, longest) * patience_ * lateness_factor;
  if (num_answers_ < settings_.warm_answers) {
    us *= settings_.cold_factor;
  }
  return ToMicroseconds(us);
}

void LinkHealth::OnSent(int rows, MonotonicTime now) {
  outstanding_rows_ += rows;
  ++outstanding_calls_;
  last_sent_ = now;
}

void LinkHealth::End(int rows) {
  outstanding_rows_ -= rows;
  --outstanding_calls_;
}

void LinkHealth::RefreshPercentile(Class& size_class) {
  const auto num = static_cast<size_t>(std::min<int64_t>(size_class.count, kSamples));
  std::copy_n(size_class.ring.begin(), num, scratch_.begin());
  const size_t at = num - 1 - num / 100;
  std::nth_element(scratch_.begin(), scratch_.begin() + static_cast<std::ptrdiff_t>(at),
                   scratch_.begin() + static_cast<std::ptrdiff_t>(num));
  size_class.p99 = scratch_[at];
}

void LinkHealth::Count(bool is_error) {
  recent_errors_ = (recent_errors_ << 1 | (is_error ? 1u : 0u)) & kErrorWindow;
}

void LinkHealth::OnAnswer(int rows, Microseconds round_trip, uint32_t queue_us, uint32_t service_us,
                          MonotonicTime /*now*/) {
  End(rows);
  // Down at once and up slowly: what is above the least is this side's own lateness, mostly.
  const double way = std::max(0.0, static_cast<double>(round_trip.count()) - queue_us - service_us);
  link_us_ = num_answers_ == 0 || way < link_us_ ? way : link_us_ + (way - link_us_) * kWayRise;
  ++num_answers_;
  Count(false);
  losses_in_row_ = 0;
  patience_ = std::max(1.0, patience_ * kPatienceDecay);
  const auto us = static_cast<float>(round_trip.count());
  Class& size_class = classes_[static_cast<size_t>(SizeClassOf(rows))];
  size_class.ring[static_cast<size_t>(size_class.next)] = us;
  size_class.next = (size_class.next + 1) % kSamples;
  size_class.mean +=
      (us - size_class.mean) * static_cast<float>(size_class.count == 0 ? 1.0 : kSmoothing);
  ++size_class.count;
  if (size_class.count == settings_.samples_min || size_class.count % kRefresh == 0) {
    RefreshPercentile(size_class);
  }
  if (rows >= kRowsForRowTime) {
    row_us_ += (static_cast<double>(service_us) / rows - row_us_) * kSmoothing;
  }
  if (is_ejected_ && ++good_probes_ >= settings_.probes_to_close) {
    is_ejected_ = false;
    ejections_in_row_ = 0;
    recent_errors_ = 0;
  }
}

void LinkHealth::Eject(MonotonicTime now) {
  is_ejected_ = true;
  good_probes_ = 0;
  const auto pause = std::min(settings_.eject_max, settings_.eject_min * (1 << ejections_in_row_));
  ejections_in_row_ = std::min(ejections_in_row_ + 1, 5);
  ejected_until_ = now + pause;
}

void LinkHealth::AddLoss(MonotonicTime now) {
  Count(true);
  ++losses_in_row_;
  if (losses_in_row_ >= settings_.eject_losses ||
      std::popcount(recent_errors_) >= settings_.eject_errors) {
    Eject(now);
  }
}

void LinkHealth::OnTimeout(int rows, MonotonicTime now) {
  End(rows);
  AddLoss(now);
}

void LinkHealth::OnLostHedge(int rows, MonotonicTime now) {
  End(rows);
  AddLoss(now);
}

void LinkHealth::OnWithdrawn(int rows) { End(rows); }

void LinkHealth::OnError(int rows, MonotonicTime now) {
  End(rows);
  Count(true);
  if (std::popcount(recent_errors_) >= settings_.eject_errors) {
    Eject(now);
  }
}

void LinkHealth::OnFalseAlarm() {
  patience_ = std::min(kPatienceMax, patience_ * settings_.false_alarm_factor);
}

LinkHealth::Trust LinkHealth::TrustAt(MonotonicTime now) const {
  if (is_ejected_) {
    return now >= ejected_until_ && outstanding_calls_ == 0 ? Trust::kProbe : Trust::kNone;
  }
  if (is_suspect()) {
    const bool is_due = outstanding_calls_ == 0 && now - last_sent_ >= settings_.probe_interval;
    return is_due ? Trust::kProbe : Trust::kNone;
  }
  return Trust::kFull;
}

RetryBudget::RetryBudget(const Settings& settings, MonotonicTime now)
    : settings_(settings), tokens_(settings.cap), refilled_(now) {}

bool RetryBudget::Take(MonotonicTime now) {
  const double seconds = std::chrono::duration<double>(now - refilled_).count();
  if (seconds > 0) {
    tokens_ = std::min(settings_.cap, tokens_ + seconds * settings_.per_second_min);
    refilled_ = now;
  }
  if (tokens_ < 1.0) {
    return false;
  }
  tokens_ -= 1.0;
  return true;
}

MonotonicTime RetryBudget::NextToken(MonotonicTime now) const {
  const double missing = std::max(0.0, 1.0 - tokens_);
  return std::max(
      now, refilled_ + std::chrono::duration_cast<std::chrono::nanoseconds>(
                           std::chrono::duration<double>(missing / settings_.per_second_min)));
}

void TimerLateness::Observe(Microseconds lateness) {
  ring_[static_cast<size_t>(next_)] =
      static_cast<int32_t>(std::clamp<int64_t>(lateness.count(), 0, int64_t{10'000'000}));
  next_ = (next_ + 1) % kSamples;
  count_ = std::min(count_ + 1, kSamples);
  // One of 128 is above the 99th percentile: the second largest.
  int32_t largest = 0;
  int32_t second = 0;
  for (int i = 0; i < count_; ++i) {
    const int32_t value = ring_[static_cast<size_t>(i)];
    if (value > largest) {
      second = largest;
      largest = value;
    } else if (value > second) {
      second = value;
    }
  }
  factor_ = std::min(kLatenessMax, 1.0 + (count_ < 2 ? 0 : second) / kLatenessUnitUs);
}

}  // namespace conclave::frontend
