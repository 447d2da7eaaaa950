// What `conclave top` shows, as text. Pure: the same state and size give the same bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "live_state.h"

namespace conclave::cli {

enum class TopColor : uint8_t { kNone, k256, kTrue };
enum class TopModality : uint8_t { kAll, kText, kImage };
enum class TopPhase : uint8_t { kBoth, kPrefill, kDecode };

struct TopOptions {
  TopColor color = TopColor::kNone;
  TopModality modality = TopModality::kAll;
  TopPhase phase = TopPhase::kBoth;
  // First layer and expert of the heat map; beyond the last ones as far as it goes.
  int32_t first_layer = 0;
  int32_t first_expert = 0;
  bool is_help = false;
  // What is wrong with the connection; shown at the bottom instead of the keys.
  std::string trouble;
};

// Lines end in LF and are at most `width` columns wide; there are exactly `height` of them (the
// last without its LF), or as many as there is to say, without the keys, where `height` is 0. With
// colour, lines hold SGR sequences and end with colours reset; else printable ASCII alone. Widths
// below 20 and heights below 6 show one line that says so.
//
// Rates, percentiles and the heat map are of the last 10 seconds, as far as the state goes back;
// before a second moment has come there are no rates, and the map is of everything since the start.
// A cell of the map is the expert's part of its layer's rows over a fair part: 1 is fair.
std::string Frame(const LiveState& state, int32_t width, int32_t height, const TopOptions& options);

// Seconds below which `share` of the counts lie, linear within a bucket; below 0: no counts. A
// value in the last bucket, which has no upper bound, gives the last bound.
double Percentile(const std::vector<double>& counts, const std::vector<double>& bounds,
                  double share);

}  // namespace conclave::cli
