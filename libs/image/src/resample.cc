#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace conclave::image {
namespace {

constexpr int kPrecisionBits = 22;
constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);
constexpr double kSupport = 2.0;

// For each output position the inputs [first, first + count) and their fixed point weights.
struct AxisWeights {
  struct Taps {
    int32_t first = 0;
    int32_t count = 0;
  };
  std::vector<Taps> taps;        // [window.count]
  std::vector<int32_t> weights;  // [window.count, taps_max]
  int32_t taps_max = 0;

  const int32_t* WeightsOf(int32_t position) const {
    return weights.data() + int64_t{position} * taps_max;
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

  AxisWeights out;
  out.taps_max = std::min(static_cast<int32_t>(std::ceil(support)) * 2 + 1, num_inputs);
  out.taps.resize(static_cast<size_t>(window.count));
  out.weights.resize(static_cast<size_t>(window.count) * static_cast<size_t>(out.taps_max));
  std::vector<double> exact(static_cast<size_t>(out.taps_max));
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
    int32_t* weights = out.weights.data() + int64_t{i} * out.taps_max;
    for (int32_t x = 0; x < last - first; ++x) {
      const double weight =
          sum != 0.0 ? exact[static_cast<size_t>(x)] / sum : exact[static_cast<size_t>(x)];
      const double scaled = weight * (1 << kPrecisionBits);
      weights[x] = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    }
    out.taps[static_cast<size_t>(i)] = {first, last - first};
  }
  return out;
}

uint8_t Clamp(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

// Output positions [from, to) of one row of RGB pixels.
void ResampleRow(const uint8_t* in, const AxisWeights& axis, int32_t from, int32_t to,
                 uint8_t* out) {
  for (int32_t i = from; i < to; ++i) {
    const AxisWeights::Taps taps = axis.taps[static_cast<size_t>(i)];
    const int32_t* weights = axis.WeightsOf(i);
    const uint8_t* pixel = in + int64_t{3} * taps.first;
    int32_t red = kHalf;
    int32_t green = kHalf;
    int32_t blue = kHalf;
    for (int32_t x = 0; x < taps.count; ++x, pixel += 3) {
      red += weights[x] * pixel[0];
      green += weights[x] * pixel[1];
      blue += weights[x] * pixel[2];
    }
    out[int64_t{3} * i] = Clamp(red);
    out[int64_t{3} * i + 1] = Clamp(green);
    out[int64_t{3} * i + 2] = Clamp(blue);
  }
}

// One output row from the rows `in`, `in` + row_bytes, … `sums` is scratch of row_bytes elements.
void ResampleColumns(const uint8_t* in, int64_t row_bytes, const int32_t* weights, int32_t num_taps,
                     int32_t* sums, uint8_t* out) {
  std::fill_n(sums, row_bytes, kHalf);
  for (int32_t y = 0; y < num_taps; ++y) {
    const uint8_t* row = in + y * row_bytes;
    const int32_t weight = weights[y];
    for (int64_t i = 0; i < row_bytes; ++i) {
      sums[i] += weight * row[i];
    }
  }
  for (int64_t i = 0; i < row_bytes; ++i) {
    out[i] = Clamp(sums[i]);
  }
}

void FillRow(uint8_t* row, int32_t num_pixels, const std::array<uint8_t, 3>& colour) {
  for (int32_t x = 0; x < num_pixels; ++x) {
    std::copy(colour.begin(), colour.end(), row + int64_t{3} * x);
  }
}

// The horizontal pass over canvas rows, one at a time.
class RowResampler {
 public:
  RowResampler(const Canvas& canvas, const Window& window)
      : canvas_(canvas),
        window_(window),
        is_copy_(canvas.width == window.resized),
        is_padded_(canvas.image.width != canvas.width || canvas.image.height != canvas.height) {
    if (!is_copy_) {
      axis_ = MakeWeights(canvas.width, window);
    }
    if (!is_padded_) {
      to_ = window.count;
      return;
    }
    // A row of nothing but canvas, and its result: whole for rows above and below the picture, and
    // for those output positions of its rows that no pixel of it reaches.
    line_.resize(size_t{3} * static_cast<size_t>(canvas.width));
    FillRow(line_.data(), canvas.width, canvas.colour);
    border_.resize(size_t{3} * static_cast<size_t>(window.count));
    Apply(line_.data(), 0, window.count, border_.data());
    FindReach();
  }

  // Writes out[window.count, 3] for row `y` of the canvas.
  void Row(int32_t y, uint8_t* out) {
    const int32_t image_row = y - canvas_.top;
    if (is_padded_) {
      std::memcpy(out, border_.data(), border_.size());
    }
    if (image_row < 0 || image_row >= canvas_.image.height) {
      return;
    }
    const int64_t image_bytes = int64_t{3} * canvas_.image.width;
    const uint8_t* in = canvas_.image.pixels.data() + image_row * image_bytes;
    if (is_padded_) {
      std::memcpy(line_.data() + int64_t{3} * canvas_.left, in, static_cast<size_t>(image_bytes));
      in = line_.data();
    }
    Apply(in, from_, to_, out);
  }

 private:
  void Apply(const uint8_t* in, int32_t from, int32_t to, uint8_t* out) const {
    if (is_copy_) {
      std::memcpy(out + int64_t{3} * from, in + int64_t{3} * (window_.first + from),
                  size_t{3} * static_cast<size_t>(to - from));
    } else {
      ResampleRow(in, axis_, from, to, out);
    }
  }

  // Sets [from_, to_) to the output positions with at least one tap on the picture.
  void FindReach() {
    const int32_t right = canvas_.left + canvas_.image.width;
    from_ = window_.count;
    to_ = 0;
    for (int32_t i = 0; i < window_.count; ++i) {
      const AxisWeights::Taps taps =
          is_copy_ ? AxisWeights::Taps{window_.first + i, 1} : axis_.taps[static_cast<size_t>(i)];
      if (taps.first < right && taps.first + taps.count > canvas_.left) {
        from_ = std::min(from_, i);
        to_ = i + 1;
      }
    }
    from_ = std::min(from_, to_);
  }

  const Canvas& canvas_;
  const Window& window_;
  const bool is_copy_;
  const bool is_padded_;
  int32_t from_ = 0;
  int32_t to_ = 0;
  AxisWeights axis_;
  std::vector<uint8_t> line_;    // [canvas.width, 3]
  std::vector<uint8_t> border_;  // [window.count, 3]
};

}  // namespace

RgbImage Resample(const Canvas& canvas, const Window& horizontal, const Window& vertical) {
  RgbImage result{horizontal.count, vertical.count, {}};
  const int64_t row_bytes = int64_t{3} * horizontal.count;
  result.pixels.resize(static_cast<size_t>(row_bytes * vertical.count));
  RowResampler rows(canvas, horizontal);
  if (canvas.height == vertical.resized) {
    for (int32_t y = 0; y < vertical.count; ++y) {
      rows.Row(vertical.first + y, result.pixels.data() + y * row_bytes);
    }
    return result;
  }
  const AxisWeights axis = MakeWeights(canvas.height, vertical);
  // Taps move down with the output, so the rows needed are those from the first tap to the last.
  const int32_t top = axis.taps.front().first;
  const int32_t bottom = axis.taps.back().first + axis.taps.back().count;
  std::vector<uint8_t> narrowed(static_cast<size_t>(row_bytes * (bottom - top)));
  for (int32_t y = top; y < bottom; ++y) {
    rows.Row(y, narrowed.data() + (y - top) * row_bytes);
  }
  std::vector<int32_t> sums(static_cast<size_t>(row_bytes));
  for (int32_t y = 0; y < vertical.count; ++y) {
    const AxisWeights::Taps taps = axis.taps[static_cast<size_t>(y)];
    ResampleColumns(narrowed.data() + (taps.first - top) * row_bytes, row_bytes, axis.WeightsOf(y),
                    taps.count, sums.data(), result.pixels.data() + y * row_bytes);
  }
  return result;
}

}  // namespace conclave::image
