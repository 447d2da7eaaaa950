// Metrics of a process, in Prometheus' text format. A thin layer: prometheus-cpp keeps the values,
// this keeps its headers out of ours and gives cheap handles, so that the hot path never looks a
// metric up by name.
//
// Names: `conclave_` for serving, `moe_` for experts; never a colon, which is reserved for
// recording rules (another program's names, by AddAlias, may have one). Labels take values from
// fixed sets only (model, route, layer, expert, worker, modality, reason, ...) and names that an
// operator gave: never a user, key, path, prompt, URL or other text of a peer. docs/metrics.md
// lists them all.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace conclave::observability {

using Labels = std::map<std::string, std::string>;

// Handles: copyable, valid as long as their Metrics; any thread. A default-made handle ignores
// everything, so code can be run without metrics.
class Counter {
 public:
  Counter() = default;
  // Negative values are ignored: a counter only grows.
  void Add(double value = 1.0) const;
  double Value() const;

 private:
  friend class Metrics;
  explicit Counter(prometheus::Counter* counter) : counter_(counter) {}
  prometheus::Counter* counter_ = nullptr;
};

class Gauge {
 public:
  Gauge() = default;
  void Set(double value) const;
  void Add(double delta) const;
  double Value() const;

 private:
  friend class Metrics;
  explicit Gauge(prometheus::Gauge* gauge) : gauge_(gauge) {}
  prometheus::Gauge* gauge_ = nullptr;
};

class Histogram {
 public:
  Histogram() = default;
  // NaN is ignored.
  void Observe(double value) const;

 private:
  friend class Metrics;
  explicit Histogram(prometheus::Histogram* histogram) : histogram_(histogram) {}
  prometheus::Histogram* histogram_ = nullptr;
};

// Any thread. Outlives its handles and whoever's call-backs it holds must outlive it.
class Metrics {
 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The same name and labels give the same metric again. A name or label that Prometheus does not
  // take, or a name that already has another type, is a mistake in our code and aborts.
  Counter AddCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge AddGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  // `bounds`: upper bounds, strictly ascending; +Inf is added.
  Histogram AddHistogram(const std::string& name, const std::string& help, const Labels& labels,
                         std::span<const double> bounds);

  enum class Kind : uint8_t { kCounter, kGauge };
  struct Sample {
    Labels labels;
    double value = 0;
  };
  // A family whose samples are asked for at every scrape, on the scraping thread. `collect` must
  // not block for long and must not call this object. For values that somebody counts anyway, such
  // as rows per expert.
  void AddCollector(const std::string& name, const std::string& help, Kind kind,
                    std::function<std::vector<Sample>()> collect);

  struct HistogramSample {
    Labels labels;
    // One more than bounds, not cumulative: values up to each bound, and beyond all of them.
    std::vector<uint64_t> counts;
    double sum = 0;
  };
  // As AddCollector, for durations that somebody sorts into buckets anyway. `bounds` as
  // AddHistogram.
  void AddHistogramCollector(const std::string& name, const std::string& help,
                             std::span<const double> bounds,
                             std::function<std::vector<HistogramSample>()> collect);

  // Called on the scraping thread before a page is put together, to bring up to date what others
  // then read. Must not block for long and must not ask for a page.
  void AddRefresh(std::function<void()> refresh);

  // From now on the page has this metric once more, under `alias`: a name of another program, which
  // may have a colon. Nothing while there is no metric `name`.
  void AddAlias(const std::string& name, const std::string& alias);

  // Memory, CPU time, open files and start time of this process, under Prometheus' usual process_*
  // names.
  void AddProcessMetrics();

  // The whole page, "text/plain; version=0.0.4".
  std::string Text() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Upper bounds in seconds. Every bound of vLLM's histograms is among them, so that its dashboards
// can be carried over, plus finer ones: a token of a 2B model takes a few milliseconds, where
// vLLM's lowest bound is 10.
std::span<const double> TimeToFirstTokenBounds();
std::span<const double> InterTokenBounds();
std::span<const double> RequestTimeBounds();  // e2e, queue, prefill, decode
std::span<const double> IterationTokenBounds();
std::span<const double> ImageTimeBounds();
// 1, 2, 5, 10, ... up to and including the first that is >= max_tokens.
std::vector<double> TokenCountBounds(int64_t max_tokens);

}  // namespace conclave::observability
