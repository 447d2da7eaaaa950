// What a frontend knows of one link to a worker: how fast it answers, whether to trust it, and from
// that when to give up a call. A state machine without clock, thread or I/O: time comes with every
// event, so that a simulator drives it as the dispatcher does (failure-model.md section 6).
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <vector>

#include "conclave/base/clock.h"

namespace conclave::frontend {

using Microseconds = std::chrono::microseconds;

// Defaults and reasons: failure-model.md sections 6.1 and 6.2.
struct LinkSettings {
  // A call is given up after max(deadline_min, 4 x the 99th percentile of its size class), at most
  // deadline_max unless what the link is expected to need for it is longer.
  Microseconds deadline_min{5'000};
  Microseconds deadline_max{150'000};
  // A call is sent to a second worker after the 99th percentile of its size class.
  Microseconds hedge_min{5'000};
  Microseconds hedge_max{100'000};
  // Until a link has answered so many calls of a size, what it is expected to need, the way there
  // and back included, stands for the percentile, doubled.
  int samples_min = 50;
  // And until it has answered this many at all, deadlines are longer: the first call of an expert
  // reads its weights from disk.
  int warm_answers = 8;
  int cold_factor = 20;
  // After a late answer to a call that was given up.
  double false_alarm_factor = 1.5;

  int suspect_timeouts = 2;  // in a row: no new calls but a probe every probe_interval
  int eject_losses = 3;      // timeouts or lost hedges in a row: no calls but probes
  int eject_errors = 5;      // of the last 20 calls
  std::chrono::milliseconds probe_interval{100};
  std::chrono::milliseconds eject_min{1'000};
  std::chrono::milliseconds eject_max{30'000};
  int probes_to_close = 3;
};

class LinkHealth {
 public:
  // Rows of a call by size: 1, 2-4, 5-16, 17-64, 65 and more.
  static constexpr int kSizeClasses = 5;
  static int SizeClassOf(int rows);

  explicit LinkHealth(const LinkSettings& settings);

  // Microseconds that a call of `rows` rows to `experts` experts is expected to take here, from
  // sending to the answer, behind what is under way: the estimate of the model at first, then what
  // was seen.
  double ExpectedUs(int rows, int experts) const;

  // Durations from now on for a call of that size. `lateness_factor` >= 1: how late our own timers
  // are (Lifeguard).
  Microseconds DeadlineFor(int rows, int experts, double lateness_factor) const;
  Microseconds HedgeDelayFor(int rows, int experts, double lateness_factor) const;

  void OnSent(int rows, MonotonicTime now);
  void OnAnswer(int rows, Microseconds round_trip, uint32_t queue_us, uint32_t service_us,
                MonotonicTime now);
  // Given up after its deadline.
  void OnTimeout(int rows, MonotonicTime now);
  // The other worker of a hedged call was faster.
  void OnLostHedge(int rows, MonotonicTime now);
  // Cancelled for no fault of the link's.
  void OnWithdrawn(int rows);
  // Refused or damaged: an error of the worker, not of the call.
  void OnError(int rows, MonotonicTime now);
  // An answer to a call that had been given up came after all: the deadline was too short.
  void OnFalseAlarm();

  // Whether a call may go there now: healthy, or a probe is due. kProbe: one call as a trial.
  enum class Trust : uint8_t { kFull, kProbe, kNone };
  Trust TrustAt(MonotonicTime now) const;

  bool is_suspect() const { return losses_in_row_ >= settings_.suspect_timeouts; }
  bool is_ejected() const { return is_ejected_; }
  bool is_trusted() const { return !is_ejected() && !is_suspect(); }
  int outstanding_rows() const { return outstanding_rows_; }
  int outstanding_calls() const { return outstanding_calls_; }
  // Microseconds per row, smoothed over calls with enough rows.
  double row_us() const { return row_us_; }
  int64_t num_answers() const { return num_answers_; }

  // The model's estimate, before anything was seen: microseconds per expert whose weights a call
  // reads and per row of it.
  void SetEstimate(double expert_us, double row_us);

 private:
  static constexpr int kSamples = 500;
  struct Class {
    std::vector<float> ring;  // round trips in microseconds
    int next = 0;
    int64_t count = 0;
    float p99 = 0;  // of the ring, as of the last multiple of kRefresh
    float mean = 0;
  };
  static constexpr int kRefresh = 16;

  void RefreshPercentile(Class& size_class);
  void Count(bool is_error);
  void AddLoss(MonotonicTime now);
  void Eject(MonotonicTime now);
  void End(int rows);

  LinkSettings settings_;
  double expert_us_ = 1000;
  double row_us_ = 100;
  double link_us_ = 0;  // of an answer's time, what neither waiting nor computing took
  std::array<Class, kSizeClasses> classes_;
  std::vector<float> scratch_;
  int outstanding_rows_ = 0;
  int outstanding_calls_ = 0;
  int64_t num_answers_ = 0;
  double patience_ = 1.0;  // grows with false alarms, falls back slowly
  int losses_in_row_ = 0;
  uint32_t recent_errors_ = 0;  // one bit per call, the newest lowest
  bool is_ejected_ = false;
  int ejections_in_row_ = 0;
  int good_probes_ = 0;
  MonotonicTime ejected_until_;
  MonotonicTime last_sent_;
};

// Re-sends of one frontend: retries and hedges pay, first attempts earn (failure-model.md section
// 6.2). An empty bucket stops hedges and delays retries; it never fails a call.
class RetryBudget {
 public:
  struct Settings {
    double per_call = 0.2;
    double cap = 20;
    double per_second_min = 3;
  };
  RetryBudget(const Settings& settings, MonotonicTime now);

  void OnFirstAttempt() { tokens_ = std::min(settings_.cap, tokens_ + settings_.per_call); }
  // Takes a token; false when there is none.
  bool Take(MonotonicTime now);
  // When the next token comes at the latest.
  MonotonicTime NextToken(MonotonicTime now) const;

 private:
  const Settings settings_;
  double tokens_;
  MonotonicTime refilled_;
};

// How late the frontend's own timers are: everything it waits for is stretched by it, so that a
// frontend that is starved of CPU does not suspect its workers.
class TimerLateness {
 public:
  void Observe(Microseconds lateness);
  // 1 + p99 / 100 ms, at most 8.
  double factor() const { return factor_; }

 private:
  static constexpr int kSamples = 128;
  std::array<int32_t, kSamples> ring_{};
  int next_ = 0;
  int count_ = 0;
  double factor_ = 1.0;
};

}  // namespace conclave::frontend
