#include "conclave/service/progress.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>

#include "conclave/observability/log.h"

namespace conclave::service {
namespace {

constexpr auto kBarEvery = std::chrono::milliseconds(100);
constexpr auto kLineEvery = std::chrono::seconds(3);
constexpr int kBarWidth = 30;
constexpr std::string_view kClearLine = "\r\x1b[K";

std::string RateText(double bytes_per_second) {
  std::array<char, 32> buffer;
  std::snprintf(buffer.data(), buffer.size(), "%.1f MB/s", bytes_per_second * 1e-6);
  return buffer.data();
}

ProgressOptions WithDefaults(ProgressOptions options) {
  if (!options.write_bar) {
    options.write_bar = [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stderr);
      std::fflush(stderr);
    };
  }
  if (!options.write_line) {
    options.write_line = [label = options.label](double fraction, const std::string& what,
                                                 double bytes_per_second) {
      const int percent = static_cast<int>(fraction * 100);
      if (bytes_per_second > 0) {
        observability::LogInfo(
            label, {{"percent", percent}, {"what", what}, {"rate", RateText(bytes_per_second)}});
      } else {
        observability::LogInfo(label, {{"percent", percent}, {"what", what}});
      }
    };
  }
  return options;
}

}  // namespace

bool IsProgressTerminal(std::string_view term) {
  return ::isatty(STDERR_FILENO) == 1 && !term.empty() && term != "dumb";
}

Progress::Progress(ProgressOptions options)
    : options_(WithDefaults(std::move(options))),
      start_(options_.clock->Now()),
      // A terminal sees the bar at once; a log hears of work only when it takes seconds.
      shown_(options_.is_terminal ? start_ - kBarEvery : start_) {}

Progress::~Progress() { Clear(); }

void Progress::Finish() {
  Clear();
  MutexLock lock(mu_);
  fraction_ = 1;
}

void Progress::Clear() {
  MutexLock lock(mu_);
  if (is_bar_drawn_) {
    options_.write_bar(kClearLine);
    is_bar_drawn_ = false;
  }
}

void Progress::Update(double fraction, const std::string& what, int64_t num_bytes) {
  const MonotonicTime now = options_.clock->Now();
  MutexLock lock(mu_);
  fraction_ = std::max(fraction_, std::clamp(fraction, 0.0, 1.0));
  const auto every = options_.is_terminal
                         ? std::chrono::duration_cast<MonotonicTime::duration>(kBarEvery)
                         : std::chrono::duration_cast<MonotonicTime::duration>(kLineEvery);
  if (now - shown_ < every) {
    return;
  }
  shown_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate =
      num_bytes >= 0 && seconds > 0 ? static_cast<double>(num_bytes) / seconds : 0.0;
  if (options_.is_terminal) {
    Draw(what, rate);
  } else {
    options_.write_line(fraction_, what, rate);
  }
}

double Progress::fraction() const {
  MutexLock lock(mu_);
  return fraction_;
}

void Progress::Draw(const std::string& what, double bytes_per_second) {
  const int filled = static_cast<int>(fraction_ * kBarWidth);
  std::string bar(static_cast<size_t>(filled), '#');
  bar.resize(kBarWidth, '.');
  std::string text = std::string(kClearLine) + options_.label + " [" + bar + "] " +
                     std::to_string(static_cast<int>(fraction_ * 100)) + "%";
  if (!what.empty()) {
    text += " " + what;
  }
  if (bytes_per_second > 0) {
    text += " " + RateText(bytes_per_second);
  }
  is_bar_drawn_ = true;
  options_.write_bar(text);
}

}  // namespace conclave::service
