#include "top_frame.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>

#include "table.h"

namespace conclave::cli {
namespace {

constexpr int32_t kWidthMin = 20;
constexpr int32_t kHeightMin = 6;
constexpr int32_t kCellWidth = 5;
constexpr int32_t kBarWidth = 10;
constexpr size_t kEventsShown = 5;
// An epoch is term << 32 | number.
constexpr double kTermStep = 4294967296.0;

const char* const kHelp[] = {"q         quit",
                             "a, t, i   rows of all tokens, of text, of images",
                             "b, p, d   both phases, prefill, decode",
                             "arrows    move over the experts of a large model",
                             "?         this page, and back",
                             "",
                             "A cell is the expert's part of its layer's rows over a fair part:",
                             "1.00 is fair, 0 nobody chose it. Rates, percentiles and cells are",
                             "of the last 10 seconds."};

// Columns of plain text; beyond the width it is cut.
std::string Cut(std::string text, int32_t width) {
  if (text.size() > static_cast<size_t>(width)) {
    text.resize(static_cast<size_t>(width));
  }
  return text;
}

std::string Right(const std::string& text, size_t width) {
  return text.size() >= width ? text : std::string(width - text.size(), ' ') + text;
}

std::string Left(std::string text, size_t width) {
  text.resize(std::max(width, text.size()), ' ');
  return text.substr(0, width);
}

// "12.3M": at most five columns.
std::string Short(double value) {
  const char* const units[] = {"", "k", "M", "G", "T", "P"};
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  return Fixed(value, value < 9.95 && (unit > 0 || value != std::floor(value)) ? 1 : 0) +
         units[unit];
}

std::string Bytes(double bytes) {
  return bytes >= 1024.0 * 1024 * 1024 ? Fixed(bytes / (1024.0 * 1024 * 1024), 1) + "G"
                                       : Fixed(bytes / (1024.0 * 1024), 0) + "M";
}

std::string Time(double seconds) {
  if (seconds < 0) {
    return "-";
  }
  return seconds < 1e-3 ? Fixed(seconds * 1e6, 0) + "us"
         : seconds < 1  ? Fixed(seconds * 1e3, seconds < 0.01 ? 1 : 0) + "ms"
                        : Fixed(seconds, 1) + "s";
}

std::string ClockTime(double seconds) {
  const auto time = static_cast<std::time_t>(std::clamp(seconds, 0.0, 4e9));
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  std::array<char, 16> text{};
  std::strftime(text.data(), text.size(), "%H:%M:%S", &parts);
  return text.data();
}

std::vector<double> Minus(std::vector<double> now, const std::vector<double>* before) {
  if (before == nullptr || before->size() != now.size()) {
    return now;
  }
  for (size_t i = 0; i < now.size(); ++i) {
    now[i] = std::max(0.0, now[i] - (*before)[i]);
  }
  return now;
}

// A line of cells with colours, whose width is counted without them.
class Line {
 public:
  Line(int32_t width, TopColor color) : width_(width), color_(color) {}
  void Text(const std::string& text) {
    out_ += Cut(text, width_ - used_);
    used_ +=
        static_cast<int32_t>(std::min<size_t>(text.size(), static_cast<size_t>(width_ - used_)));
  }
  // "38;5;9" and the like; nothing without colour.
  void Styled(const std::string& text, const std::string& style) {
    if (color_ == TopColor::kNone || style.empty() || used_ == width_) {
      Text(text);
      return;
    }
    out_ += "\x1b[" + style + "m";
    Text(text);
    out_ += "\x1b[0m";
  }
  std::string Take() {
    const size_t end = color_ == TopColor::kNone ? out_.find_last_not_of(' ') + 1 : out_.size();
    return out_.substr(0, end);
  }

 private:
  int32_t width_;
  TopColor color_;
  std::string out_;
  int32_t used_ = 0;
};

// Blue below a fair part, dark at it, red above: what is too hot stands out.
std::string HeatStyle(double share, TopColor color) {
  const double hot = std::clamp(share - 1, 0.0, 1.0);
  const double cold = std::clamp(1 - share, 0.0, 1.0);
  if (color == TopColor::kTrue) {
    const auto red = static_cast<int>(std::lround(40 + 180 * hot));
    const auto green = static_cast<int>(std::lround(40 + 30 * cold));
    const auto blue = static_cast<int>(std::lround(40 + 130 * cold));
    return "38;2;255;255;255;48;2;" + std::to_string(red) + ";" + std::to_string(green) + ";" +
           std::to_string(blue);
  }
  constexpr int kHot[] = {237, 52, 88, 124, 160, 196};
  constexpr int kCold[] = {237, 17, 18, 19, 20, 21};
  const auto step = static_cast<size_t>(std::lround(5 * std::max(hot, cold)));
  return "38;5;15;48;5;" + std::to_string(hot > 0 ? kHot[step] : kCold[step]);
}

std::string StateStyle(const LiveWorker& worker) {
  if (worker.state == "dead" || worker.is_distrusted) {
    return "1;31";
  }
  if (worker.state == "suspect") {
    return "1;33";
  }
  return worker.state == "live" ? "32" : "36";
}

class Painter {
 public:
  Painter(const LiveState& state, int32_t width, int32_t height, const TopOptions& options)
      : state_(state), width_(width), height_(height), options_(options) {}

  std::string Paint();

 private:
  // Unlimited where there is no height.
  size_t Room(size_t keep) const {
    const auto used = lines_.size() + keep;
    return height_ == 0                           ? SIZE_MAX
           : used >= static_cast<size_t>(height_) ? 0
                                                  : static_cast<size_t>(height_) - used;
  }
  Line NewLine() const { return {width_, options_.color}; }
  void Add(const std::string& text, const std::string& style = "") {
    Line line = NewLine();
    line.Styled(Cut(text, width_), style);
    lines_.push_back(line.Take());
  }
  void AddHead();
  void AddRates();
  void AddWorkers();
  void AddMap(size_t keep);
  void AddEvents(size_t num);
  std::string Keys() const;
  // Per expert, of what the options choose.
  std::vector<double> Chosen() const;
  std::string Rate(double now, double before) const;
  std::string Latency(const std::vector<double>& now, const std::vector<double>* before,
                      const std::vector<double>& bounds) const;

  const LiveState& state_;
  const int32_t width_;
  const int32_t height_;
  const TopOptions& options_;
  std::vector<std::string> lines_;
};

void Painter::AddHead() {
  const LiveCluster& c = state_.cluster;
  Line line = NewLine();
  line.Styled("conclave top", "1");
  line.Text("  " + state_.role + " " + state_.model + "  epoch " +
            Fixed(c.term > 0 ? c.term : std::floor(c.epoch / kTermStep), 0) + "." +
            Fixed(std::fmod(c.epoch, kTermStep), 0) + "  ");
  line.Styled(c.state.empty() ? "-" : c.state, c.state == "serving" ? "32" : "1;33");
  if (!c.blocked.empty()) {
    line.Styled("  blocked: " + c.blocked, "1;31");
  }
  lines_.push_back(line.Take());
  line = NewLine();
  const bool is_whole = c.experts_served == c.experts_total;
  line.Styled("experts " + std::to_string(c.experts_served) + "/" +
                  std::to_string(c.experts_total) + " served",
              is_whole ? "" : "1;31");
  line.Text("  replicas " + std::to_string(c.replicas_lowest) + " of " +
            std::to_string(c.replicas_wanted) + "  imbalance " + Fixed(c.imbalance_seen, 2) +
            " seen, " + Fixed(c.imbalance_planned, 2) + " planned" +
            (c.plan > 0 ? "  moving experts" : ""));
  lines_.push_back(line.Take());
}

std::string Painter::Rate(double now, double before) const {
  const LiveState::Moment* earlier = state_.earlier();
  if (earlier == nullptr || state_.time <= earlier->time) {
    return "-";
  }
  return Short(std::max(0.0, now - before) / (state_.time - earlier->time));
}

std::string Painter::Latency(const std::vector<double>& now, const std::vector<double>* before,
                             const std::vector<double>& bounds) const {
  const std::vector<double> counts = Minus(now, before);
  return Time(Percentile(counts, bounds, 0.5)) + "/" + Time(Percentile(counts, bounds, 0.99));
}

void Painter::AddRates() {
  const LiveServing& now = state_.serving;
  const LiveState::Moment* earlier = state_.earlier();
  const LiveServing none;
  const LiveServing& before = earlier == nullptr ? none : earlier->serving;
  Add("tokens/s: prompt " + Rate(now.prompt_text, before.prompt_text) + " text, " +
      Rate(now.prompt_image, before.prompt_image) + " image; cached " +
      Rate(now.cached, before.cached) + "; generated " + Rate(now.generated, before.generated));
  Add("p50/p99: first token " +
      Latency(now.ttft, earlier == nullptr ? nullptr : &before.ttft, state_.ttft_bounds) +
      ", next " + Latency(now.itl, earlier == nullptr ? nullptr : &before.itl, state_.itl_bounds) +
      "  frontends " + std::to_string(state_.frontends) + ", running " +
      std::to_string(state_.running) + ", waiting " + std::to_string(state_.waiting));
}

void Painter::AddWorkers() {
  if (Room(0) < 3) {
    return;
  }
  Add("");
  size_t name_width = 6;
  for (const auto& [id, worker] : state_.workers) {
    name_width = std::max(name_width, std::min<size_t>(worker.name.size(), 16));
  }
  Add(Left("WORKER", name_width) + " STATE      BUSY            QUEUE ROWS/S    P99 EXPERTS MEMORY",
      "1");
  // A third of the screen, at least one.
  const size_t most =
      height_ == 0 ? SIZE_MAX : std::max<size_t>(1, static_cast<size_t>(height_) / 3);
  size_t shown = 0;
  for (const auto& [id, worker] : state_.workers) {
    if (shown == most || Room(1) == 0) {
      Add("... and " + std::to_string(state_.workers.size() - shown) + " more");
      return;
    }
    ++shown;
    Line line = NewLine();
    line.Text(Left(worker.name, name_width) + " ");
    line.Styled(Left(worker.is_distrusted ? "distrusted" : worker.state, 10), StateStyle(worker));
    const double busy = std::clamp(worker.busy, 0.0, 1.0);
    const auto full = static_cast<size_t>(std::lround(busy * kBarWidth));
    line.Text(" ");
    line.Styled(std::string(full, '#'), busy > 0.9 ? "31" : "32");
    line.Text(std::string(kBarWidth - full, '.') + Right(Fixed(busy * 100, 0) + "%", 5));
    const std::vector<double>* before = nullptr;
    if (const LiveState::Moment* earlier = state_.earlier(); earlier != nullptr) {
      const auto it = earlier->call_seconds.find(id);
      before = it == earlier->call_seconds.end() ? nullptr : &it->second;
    }
    const double p99 = Percentile(Minus(worker.call_seconds, before), state_.call_bounds, 0.99);
    line.Text(Right(std::to_string(worker.queue), 6) + Right(Short(worker.rows_per_second), 7) +
              Right(Time(p99), 7) +
              Right(std::to_string(worker.experts) +
                        (worker.loading > 0 ? "+" + std::to_string(worker.loading) : ""),
                    8) +
              " " + Bytes(worker.memory_used) + "/" + Bytes(worker.memory));
    lines_.push_back(line.Take());
  }
  if (state_.workers.empty()) {
    Add("none");
  }
}

std::vector<double> Painter::Chosen() const {
  const LiveState::Moment* earlier = state_.earlier();
  const std::vector<double> rows =
      Minus(state_.rows, earlier == nullptr ? nullptr : &earlier->rows);
  std::vector<double> chosen(rows.size() / kLiveRowKinds, 0);
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t phase = i / 2 % 2;
    const size_t modality = i % 2;
    const bool is_phase =
        options_.phase == TopPhase::kBoth || (options_.phase == TopPhase::kDecode) == (phase == 1);
    const bool is_modality = options_.modality == TopModality::kAll ||
                             (options_.modality == TopModality::kImage) == (modality == 1);
    chosen[i / kLiveRowKinds] += is_phase && is_modality ? rows[i] : 0;
  }
  return chosen;
}

void Painter::AddMap(size_t keep) {
  if (Room(keep) < 4) {
    return;
  }
  const char* const modalities[] = {"all tokens", "text", "images"};
  const char* const phases[] = {"prefill and decode", "prefill", "decode"};
  Add("");
  Add("EXPERTS  part of the layer's rows over a fair part: " +
          std::string(modalities[static_cast<size_t>(options_.modality)]) + ", " +
          phases[static_cast<size_t>(options_.phase)],
      "1");
  if (state_.layers.empty()) {
    Add("no member has said yet what the model is");
    return;
  }
  int32_t most = 0;
  for (const LiveLayer& layer : state_.layers) {
    most = std::max(most, layer.experts);
  }
  constexpr int32_t kLabel = 6;
  const int32_t columns = std::max(1, (width_ - kLabel) / kCellWidth);
  const int32_t first = std::clamp(options_.first_expert, 0, std::max(0, most - columns));
  const int32_t last = std::min(most, first + columns);
  std::string head = Left("LAYER", kLabel);
  for (int32_t e = first; e < last; ++e) {
    head += Right(std::to_string(e), kCellWidth);
  }
  Add(head + (last < most ? " >" : ""));
  const auto num_layers = static_cast<int32_t>(state_.layers.size());
  const auto rows = static_cast<int32_t>(std::min<size_t>(Room(keep), 1 << 20));
  const int32_t top = std::clamp(options_.first_layer, 0, std::max(0, num_layers - rows));
  const std::vector<double> chosen = Chosen();
  size_t unit = 0;
  for (int32_t l = 0; l < num_layers; ++l) {
    const LiveLayer& layer = state_.layers[static_cast<size_t>(l)];
    const auto experts = static_cast<size_t>(layer.experts);
    double sum = 0;
    for (size_t e = 0; e < experts; ++e) {
      sum += chosen[unit + e];
    }
    if (l >= top && l < top + rows) {
      Line line = NewLine();
      line.Text(Left(std::to_string(layer.layer), kLabel));
      for (int32_t e = first; e < std::min(last, layer.experts); ++e) {
        const double share =
            sum > 0 ? chosen[unit + static_cast<size_t>(e)] * layer.experts / sum : -1;
        line.Styled(Right(share < 0        ? "-"
                          : share < 99.995 ? Fixed(share, 2)
                                           : Short(share),
                          kCellWidth),
                    share < 0 ? "" : HeatStyle(share, options_.color));
      }
      lines_.push_back(line.Take());
    }
    unit += experts;
  }
}

void Painter::AddEvents(size_t num) {
  if (num == 0) {
    return;
  }
  Add("");
  const size_t from = state_.events.size() - std::min(num, state_.events.size());
  for (size_t i = from; i < state_.events.size(); ++i) {
    const LiveEvent& event = state_.events[i];
    const bool is_bad = event.kind == "dead" || event.kind == "unserved" ||
                        event.kind == "failed" || event.kind == "distrusted";
    Add(ClockTime(event.time) + "  " + Left(event.kind, 15) + " " +
            // Most texts name whom they are about.
            (event.text.find(event.name) != std::string::npos ? "" : event.name + "  ") +
            event.text,
        is_bad                    ? "31"
        : event.kind == "suspect" ? "33"
                                  : "");
  }
}

std::string Painter::Keys() const {
  return options_.trouble.empty()
             ? "q quit  a/t/i all, text, images  b/p/d both, prefill, decode  arrows move  ? help"
             : options_.trouble;
}

std::string Painter::Paint() {
  if (height_ > 0 && (width_ < kWidthMin || height_ < kHeightMin)) {
    Add("the window is too small");
  } else if (options_.is_help) {
    for (const char* line : kHelp) {
      if (Room(1) > 0) {
        Add(line);
      }
    }
  } else {
    AddHead();
    AddRates();
    AddWorkers();
    const size_t num_events = std::min(kEventsShown, state_.events.size());
    // The map first, events in what it leaves, but two lines in any case.
    const size_t map = state_.layers.size() + 3;
    const size_t room = Room(1);
    const size_t left = room > map ? room - map : 0;
    const size_t events =
        num_events == 0 ? 0 : std::min(num_events, std::max<size_t>(left > 0 ? left - 1 : 0, 2));
    const size_t keep = (events == 0 ? 0 : events + 1) + 1;
    AddMap(keep);
    if (Room(1) > events) {
      AddEvents(events);
    }
  }
  std::string out;
  if (height_ == 0) {
    for (const std::string& line : lines_) {
      out += line + "\n";
    }
    return out;
  }
  lines_.resize(static_cast<size_t>(height_));
  if (width_ >= kWidthMin && height_ >= kHeightMin) {
    Line keys = NewLine();
    keys.Styled(Left(Keys(), static_cast<size_t>(width_)), options_.trouble.empty() ? "7" : "1;31");
    lines_.back() = keys.Take();
  }
  for (size_t i = 0; i < lines_.size(); ++i) {
    out += lines_[i] + (i + 1 < lines_.size() ? "\n" : "");
  }
  return out;
}

}  // namespace

double Percentile(const std::vector<double>& counts, const std::vector<double>& bounds,
                  double share) {
  double sum = 0;
  for (const double count : counts) {
    sum += count;
  }
  if (sum <= 0 || bounds.empty()) {
    return -1;
  }
  const double wanted = share * sum;
  double below = 0;
  for (size_t i = 0; i < counts.size() && i < bounds.size(); ++i) {
    if (below + counts[i] >= wanted && counts[i] > 0) {
      const double from = i == 0 ? 0 : bounds[i - 1];
      return from + (bounds[i] - from) * std::max(0.0, wanted - below) / counts[i];
    }
    below += counts[i];
  }
  return bounds.back();
}

std::string Frame(const LiveState& state, int32_t width, int32_t height,
                  const TopOptions& options) {
  return Painter(state, std::max(1, width), std::max(0, height), options).Paint();
}

}  // namespace conclave::cli
