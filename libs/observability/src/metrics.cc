#include "conclave/observability/metrics.h"

#include <prometheus/check_names.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <locale>
#include <map>
#include <sstream>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/mutex.h"

namespace conclave::observability {
namespace {

constexpr double kTimeToFirstToken[] = {.001, .005, .01, .02, .04, .06, .08, .1,
                                        .25,  .5,   .75, 1,   1.5, 2,   2.5, 5,
                                        7.5,  10,   20,  40,  80,  160, 640, 2560};
constexpr double kInterToken[] = {.0005, .001, .002, .003, .005, .0075, .01, .025, .05,
                                  .075,  .1,   .15,  .2,   .3,   .4,    .5,  .75,  1,
                                  2.5,   5,    7.5,  10,   20,   40,    80};
constexpr double kRequestTime[] = {.01, .025, .05, .1, .2, .3, .5, .8,  1,   1.5, 2,   2.5,  5,
                                   10,  15,   20,  30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
constexpr double kIterationTokens[] = {1,   8,    16,   32,   64,   128,  256,
                                       512, 1024, 2048, 4096, 8192, 16384};
constexpr double kImageTime[] = {.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10};

// A name with a colon is legal but reserved for recording rules.
void CheckName(const std::string& name, const Labels& labels) {
  CONCLAVE_CHECK(prometheus::CheckMetricName(name) && name.find(':') == std::string::npos);
  for (const auto& [key, value] : labels) {
    CONCLAVE_CHECK(prometheus::CheckLabelName(key));
  }
}

void SetLabels(const Labels& labels, prometheus::ClientMetric& metric) {
  for (const auto& [key, value] : labels) {
    metric.label.push_back({key, value});
  }
}

// prometheus-cpp reports misuse by exceptions; all of it is a mistake in our code.
template <typename Fn>
auto& OrAbort(const Fn& fn) {
  try {
    return fn();
  } catch (const std::exception&) {
    CONCLAVE_CHECK(false && "a metric was added twice with different types or bounds");
  }
}

}  // namespace

void Counter::Add(double value) const {
  if (counter_ != nullptr && value > 0) {
    counter_->Increment(value);
  }
}
double Counter::Value() const { return counter_ == nullptr ? 0 : counter_->Value(); }

void Gauge::Set(double value) const {
  if (gauge_ != nullptr) {
    gauge_->Set(value);
  }
}
void Gauge::Add(double delta) const {
  if (gauge_ != nullptr) {
    gauge_->Increment(delta);
  }
}
double Gauge::Value() const { return gauge_ == nullptr ? 0 : gauge_->Value(); }

void Histogram::Observe(double value) const {
  if (histogram_ != nullptr && !std::isnan(value)) {
    histogram_->Observe(value);
  }
}

struct Metrics::State {
  struct Collector {
    std::string name;
    std::function<prometheus::MetricFamily()> collect;
  };
  void Add(const std::string& name, std::function<prometheus::MetricFamily()> collect) {
    CheckName(name, {});
    MutexLock lock(mu);
    for (const Collector& other : collectors) {
      CONCLAVE_CHECK(other.name != name);
    }
    collectors.push_back({name, std::move(collect)});
  }

  prometheus::Registry registry;
  mutable Mutex mu;
  std::vector<Collector> collectors ABSL_GUARDED_BY(mu);
  std::vector<std::function<void()>> refreshes ABSL_GUARDED_BY(mu);
  std::map<std::string, std::string> aliases ABSL_GUARDED_BY(mu);  // by name
};

Metrics::Metrics() : state_(new State) {}
Metrics::~Metrics() = default;

Counter Metrics::AddCounter(const std::string& name, const std::string& help,
                            const Labels& labels) {
  CheckName(name, labels);
  return Counter(&OrAbort([&]() -> prometheus::Counter& {
    return prometheus::BuildCounter().Name(name).Help(help).Register(state_->registry).Add(labels);
  }));
}

Gauge Metrics::AddGauge(const std::string& name, const std::string& help, const Labels& labels) {
  CheckName(name, labels);
  return Gauge(&OrAbort([&]() -> prometheus::Gauge& {
    return prometheus::BuildGauge().Name(name).Help(help).Register(state_->registry).Add(labels);
  }));
}

Histogram Metrics::AddHistogram(const std::string& name, const std::string& help,
                                const Labels& labels, std::span<const double> bounds) {
  CheckName(name, labels);
  CONCLAVE_CHECK(std::is_sorted(bounds.begin(), bounds.end(), std::less_equal<>()));
  return Histogram(&OrAbort([&]() -> prometheus::Histogram& {
    return prometheus::BuildHistogram()
        .Name(name)
        .Help(help)
        .Register(state_->registry)
        .Add(labels, prometheus::Histogram::BucketBoundaries(bounds.begin(), bounds.end()));
  }));
}

void Metrics::AddCollector(const std::string& name, const std::string& help, Kind kind,
                           std::function<std::vector<Sample>()> collect) {
  state_->Add(name, [name, help, kind, collect = std::move(collect)] {
    const bool is_counter = kind == Kind::kCounter;
    prometheus::MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = is_counter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
    for (const Sample& sample : collect()) {
      prometheus::ClientMetric& metric = family.metric.emplace_back();
      SetLabels(sample.labels, metric);
      (is_counter ? metric.counter.value : metric.gauge.value) = sample.value;
    }
    return family;
  });
}

void Metrics::AddHistogramCollector(const std::string& name, const std::string& help,
                                    std::span<const double> bounds,
                                    std::function<std::vector<HistogramSample>()> collect) {
  CONCLAVE_CHECK(std::is_sorted(bounds.begin(), bounds.end(), std::less_equal<>()));
  state_->Add(name, [name, help, bounds = std::vector<double>(bounds.begin(), bounds.end()),
                     collect = std::move(collect)] {
    prometheus::MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = prometheus::MetricType::Histogram;
    for (const HistogramSample& sample : collect()) {
      CONCLAVE_CHECK(sample.counts.size() == bounds.size() + 1);
      prometheus::ClientMetric& metric = family.metric.emplace_back();
      SetLabels(sample.labels, metric);
      uint64_t count = 0;
      for (size_t i = 0; i < bounds.size(); ++i) {
        count += sample.counts[i];
        metric.histogram.bucket.push_back({count, bounds[i]});
      }
      metric.histogram.sample_count = count + sample.counts.back();
      metric.histogram.sample_sum = sample.sum;
    }
    return family;
  });
}

void Metrics::AddRefresh(std::function<void()> refresh) {
  MutexLock lock(state_->mu);
  state_->refreshes.push_back(std::move(refresh));
}

void Metrics::AddAlias(const std::string& name, const std::string& alias) {
  CONCLAVE_CHECK(prometheus::CheckMetricName(alias));
  MutexLock lock(state_->mu);
  state_->aliases[name] = alias;
}

std::string Metrics::Text() const {
  std::vector<std::function<void()>> refreshes;
  {
    MutexLock lock(state_->mu);
    refreshes = state_->refreshes;
  }
  // Without the lock: they set gauges of this object by way of other threads.
  for (const std::function<void()>& refresh : refreshes) {
    refresh();
  }
  std::vector<prometheus::MetricFamily> families = state_->registry.Collect();
  {
    // Held while call-backs run: a page is rare, and this keeps a collector's owner simple.
    MutexLock lock(state_->mu);
    for (const State::Collector& collector : state_->collectors) {
      families.push_back(collector.collect());
    }
    const size_t num_families = families.size();
    for (size_t i = 0; i < num_families; ++i) {
      if (const auto alias = state_->aliases.find(families[i].name);
          alias != state_->aliases.end()) {
        prometheus::MetricFamily copy = families[i];
        copy.name = alias->second;
        families.push_back(std::move(copy));
      }
    }
  }
  std::sort(families.begin(), families.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  std::ostringstream out;
  out.imbue(std::locale::classic());
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

std::span<const double> TimeToFirstTokenBounds() { return kTimeToFirstToken; }
std::span<const double> InterTokenBounds() { return kInterToken; }
std::span<const double> RequestTimeBounds() { return kRequestTime; }
std::span<const double> IterationTokenBounds() { return kIterationTokens; }
std::span<const double> ImageTimeBounds() { return kImageTime; }

std::vector<double> TokenCountBounds(int64_t max_tokens) {
  std::vector<double> bounds;
  for (int64_t decade = 1;; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      bounds.push_back(static_cast<double>(decade * step));
      if (decade * step >= max_tokens) {
        return bounds;
      }
    }
  }
}

}  // namespace conclave::observability
