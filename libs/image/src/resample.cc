#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "row_ops.h"

namespace conclave::image {
namespace {

constexpr double kSupport = 2.0;

// For each output position the inputs [first, first + count) and their fixed point weights.
struct AxisWeights {
  std::vector<Tap> taps;       // [window.count]; their weights point into `parts`
  std::vector<int16_t> parts;  // [window.count, 2, padded]: high parts, low parts

  AxisWeights() = default;
  AxisWeights(AxisWeights&&) = default;  // keeps the memory that `taps` points to
  AxisWeights& operator=(AxisWeights&&) = default;
  AxisWeights(const AxisWeights&) = delete;
  AxisWeights& operator=(const AxisWeights&) = delete;
  ~AxisWeights() = default;

  int32_t End(int32_t position) const {
    const Tap& tap = taps[static_cast<size_t>(position)];
    return tap.first + tap.count;
  }
};

// Catmull-Rom: the cubic kernel with a = −0.5.
double Kernel(double t) {
  constexpr double kA = -0.5;
  t = std::abs(t);
  if (t < 1.0) {
    return ((kA + 2.0) * t - (kA + 3.0)) * t * t + 1;
  }
  if (t < 2.0) {
    return (((t - 5) * t + 8) * t - 4) * kA;
  }
  return 0.0;
}

// Operations and their order are those of Pillow's precompute_coeffs and normalize_coeffs_8bpc: one
// rounding that differs moves a weight, and sooner or later a pixel.
AxisWeights MakeWeights(int32_t num_inputs, const Window& window) {
  const double scale = static_cast<double>(num_inputs) / window.resized;
  const double filter_scale = std::max(scale, 1.0);
  const double support = kSupport * filter_scale;
  const double inverse_scale = 1.0 / filter_scale;

  const int32_t taps_max = std::min(static_cast<int32_t>(std::ceil(support)) * 2 + 1, num_inputs);
  const int32_t padded = (taps_max + kTapsUnit - 1) / kTapsUnit * kTapsUnit;
  AxisWeights out;
  out.taps.resize(static_cast<size_t>(window.count));
  out.parts.resize(size_t{2} * static_cast<size_t>(window.count) * static_cast<size_t>(padded));
  std::vector<double> exact(static_cast<size_t>(taps_max));
  for (int32_t i = 0; i < window.count; ++i) {
    const double center = (window.first + i + 0.5) * scale;
    // NOLINTBEGIN(bugprone-incorrect-roundings): Pillow truncates exactly so.
    const int32_t first = std::max(static_cast<int32_t>(center - support + 0.5), 0);
    const int32_t last = std::min(static_cast<int32_t>(center + support + 0.5), num_inputs);
    // NOLINTEND(bugprone-incorrect-roundings)
    double sum = 0.0;
    for (int32_t x = 0; x < last - first; ++x) {
      exact[static_cast<size_t>(x)] = Kernel((x + first - center + 0.5) * inverse_scale);
      sum += exact[static_cast<size_t>(x)];
    }
    int16_t* high = out.parts.data() + int64_t{2} * i * padded;
    int16_t* low = high + padded;
    for (int32_t x = 0; x < last - first; ++x) {
      const double weight =
          sum != 0.0 ? exact[static_cast<size_t>(x)] / sum : exact[static_cast<size_t>(x)];
      const double scaled = weight * (1 << kWeightBits);
      const auto fixed = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
      high[x] = static_cast<int16_t>((fixed + 2048) >> 12);
      low[x] = static_cast<int16_t>(fixed - high[x] * 4096);
    }
    out.taps[static_cast<size_t>(i)] = {first, last - first, {high, low}};
  }
  return out;
}

void FillRow(uint8_t* row, int32_t num_pixels, const std::array<uint8_t, 3>& colour) {
  for (int32_t x = 0; x < num_pixels; ++x) {
    std::copy(colour.begin(), colour.end(), row + int64_t{3} * x);
  }
}

// The horizontal pass over canvas rows.
class RowResampler {
 public:
  RowResampler(const Canvas& canvas, const Window& window, const RowOps& ops)
      : canvas_(canvas),
        window_(window),
        ops_(ops),
        is_copy_(canvas.width == window.resized),
        is_padded_(canvas.image.width != canvas.width || canvas.image.height != canvas.height),
        row_bytes_(int64_t{3} * window.count),
        line_bytes_(int64_t{3} * canvas.width + kLineSlack) {
    if (!is_copy_) {
      axis_ = MakeWeights(canvas.width, window);
    }
    lines_.resize(static_cast<size_t>(kLines * line_bytes_));
    unused_.resize(static_cast<size_t>(row_bytes_));
    to_ = window.count;
    if (is_padded_) {
      // A row of nothing but canvas, and its result: whole for rows above and below the picture,
      // and for those output positions of its rows that no pixel of it reaches.
      for (int32_t l = 0; l < kLines; ++l) {
        FillRow(Line(l), canvas.width, canvas.colour);
      }
      border_.resize(static_cast<size_t>(row_bytes_));
      Apply(1, border_.data());
      FindReach();
    }
  }

  // Writes out[bottom - top, window.count, 3] for the rows [top, bottom) of the canvas.
  void Rows(int32_t top, int32_t bottom, uint8_t* out) {
    if (is_padded_) {
      for (int32_t y = top; y < bottom; ++y) {
        std::memcpy(out + (y - top) * row_bytes_, border_.data(), border_.size());
      }
    }
    const int32_t first = std::max(top, canvas_.top);
    const int32_t last = std::min(bottom, canvas_.top + canvas_.image.height);
    const int64_t image_bytes = int64_t{3} * canvas_.image.width;
    for (int32_t y = first; y < last; y += kLines) {
      const int32_t count = std::min(kLines, last - y);
      for (int32_t l = 0; l < count; ++l) {
        std::memcpy(Line(l) + int64_t{3} * canvas_.left,
                    canvas_.image.pixels.data() + (y + l - canvas_.top) * image_bytes,
                    static_cast<size_t>(image_bytes));
      }
      Apply(count, out + (y - top) * row_bytes_);
    }
  }

 private:
  uint8_t* Line(int32_t l) { return lines_.data() + l * line_bytes_; }

  // Output positions [from_, to_) of the first `count` lines.
  void Apply(int32_t count, uint8_t* out) {
    const uint8_t* lines[kLines];
    uint8_t* rows[kLines];
    for (int32_t l = 0; l < kLines; ++l) {
      lines[l] = Line(l);
      rows[l] = l < count ? out + l * row_bytes_ : unused_.data();
    }
    if (!is_copy_) {
      ops_.shrink(lines, axis_.taps.data(), from_, to_, rows);
      return;
    }
    for (int32_t l = 0; l < count; ++l) {
      std::memcpy(rows[l] + int64_t{3} * from_, lines[l] + int64_t{3} * (window_.first + from_),
                  size_t{3} * static_cast<size_t>(to_ - from_));
    }
  }

  // Sets [from_, to_) to the output positions with at least one tap on the picture.
  void FindReach() {
    const int32_t right = canvas_.left + canvas_.image.width;
    from_ = window_.count;
    to_ = 0;
    for (int32_t i = 0; i < window_.count; ++i) {
      const int32_t first = is_copy_ ? window_.first + i : axis_.taps[static_cast<size_t>(i)].first;
      const int32_t end = is_copy_ ? first + 1 : axis_.End(i);
      if (first < right && end > canvas_.left) {
        from_ = std::min(from_, i);
        to_ = i + 1;
      }
    }
    from_ = std::min(from_, to_);
  }

  const Canvas& canvas_;
  const Window& window_;
  const RowOps& ops_;
  const bool is_copy_;
  const bool is_padded_;
  const int64_t row_bytes_;
  const int64_t line_bytes_;
  int32_t from_ = 0;
  int32_t to_ = 0;
  AxisWeights axis_;
  std::vector<uint8_t> lines_;   // [kLines, line_bytes_]
  std::vector<uint8_t> border_;  // [window.count, 3]
  std::vector<uint8_t> unused_;  // [window.count, 3]: results of lines that are not there
};

}  // namespace

RgbImage Resample(const Canvas& canvas, const Window& horizontal, const Window& vertical) {
  RgbImage result{horizontal.count, vertical.count, {}};
  const int64_t row_bytes = int64_t{3} * horizontal.count;
  result.pixels.resize(static_cast<size_t>(row_bytes * vertical.count));
  const RowOps& ops = CurrentRowOps();
  RowResampler rows(canvas, horizontal, ops);
  if (canvas.height == vertical.resized) {
    rows.Rows(vertical.first, vertical.first + vertical.count, result.pixels.data());
    return result;
  }
  const AxisWeights axis = MakeWeights(canvas.height, vertical);
  // Taps move down with the output, so the rows needed are those from the first tap to the last.
  const int32_t top = axis.taps.front().first;
  const int32_t bottom = axis.End(vertical.count - 1);
  std::vector<uint8_t> narrowed(static_cast<size_t>(row_bytes * (bottom - top)));
  rows.Rows(top, bottom, narrowed.data());
  for (int32_t y = 0; y < vertical.count; ++y) {
    const Tap& tap = axis.taps[static_cast<size_t>(y)];
    ops.columns(narrowed.data() + (tap.first - top) * row_bytes, row_bytes, tap.weights, tap.count,
                result.pixels.data() + y * row_bytes);
  }
  return result;
}

}  // namespace conclave::image
