// Messages name places and limits, never an expert id, a weight or an element of a row: those are a
// user's data.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "call_checks.h"
#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"

namespace conclave::transport {
namespace {

absl::Status BadItems(const std::string& why) {
  return InvalidArgument("bad_items", "call: " + why);
}

// The pair arrays are as long as each other and the counts are within the limits.
absl::Status CheckItems(const CallView& call, const FrameLimits& limits) {
  std::array<uint16_t, kMaxRowsPerCall> pairs_of_row;
  std::fill_n(pairs_of_row.begin(), call.num_rows, uint16_t{0});
  for (size_t p = 0; p < call.pair_row.size(); ++p) {
    const uint16_t row = call.pair_row[p];
    const uint16_t expert = call.pair_expert[p];
    if (row >= call.num_rows) {
      return BadItems("pair " + std::to_string(p) + ": expected a row below " +
                      std::to_string(call.num_rows) + ", found " + std::to_string(row));
    }
    if (expert >= limits.num_experts_max) {
      return NotFound("not_held",
                      "call: pair " + std::to_string(p) + ": expected an expert below " +
                          std::to_string(limits.num_experts_max) + ", found a larger one");
    }
    if (p > 0) {
      const uint16_t last_expert = call.pair_expert[p - 1];
      if (expert < last_expert || (expert == last_expert && row <= call.pair_row[p - 1])) {
        return BadItems("pair " + std::to_string(p) +
                        ": expected ascending experts, and ascending rows within an expert");
      }
    }
    if (++pairs_of_row[row] > limits.top_k) {
      return BadItems("row " + std::to_string(row) + ": expected at most " +
                      std::to_string(limits.top_k) + " pairs, found more");
    }
  }
  for (size_t row = 0; row < call.num_rows; ++row) {
    if (pairs_of_row[row] == 0) {
      return BadItems("row " + std::to_string(row) + ": expected at least one pair, found none");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGate(const CallView& call, const FrameLimits& limits) {
  const float bound = limits.gate_bound * (1.0f + kGateTolerance);
  std::array<float, kMaxRowsPerCall> sum_of_row;
  std::fill_n(sum_of_row.begin(), call.num_rows, 0.0f);
  for (size_t p = 0; p < call.pair_weight.size(); ++p) {
    const float weight = call.pair_weight[p];
    if (!std::isfinite(weight) || weight < 0.0f) {
      return InvalidArgument("bad_gate",
                             "call: pair " + std::to_string(p) +
                                 ": expected a finite weight of at least 0, found another");
    }
    float& sum = sum_of_row[call.pair_row[p]];
    sum += weight;
    // Weights are not negative, so this bounds each of them as well.
    if (!(sum <= bound)) {
      return InvalidArgument("bad_gate", "call: row " + std::to_string(call.pair_row[p]) +
                                             ": expected weights that add up to at most " +
                                             std::to_string(limits.gate_bound) + ", found more");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCounts(const CallCounts& counts, const FrameLimits& limits) {
  CONCLAVE_CHECK(limits.max_rows <= kMaxRowsPerCall);
  if (counts.model >= limits.num_models) {
    return InvalidArgument("cluster_mismatch", "call: expected a model id below " +
                                                   std::to_string(limits.num_models) + ", found " +
                                                   std::to_string(counts.model));
  }
  if (counts.layer < 0 || counts.layer >= limits.num_layers) {
    return InvalidArgument("no_such_layer", "call: expected a layer below " +
                                                std::to_string(limits.num_layers) + ", found " +
                                                std::to_string(counts.layer));
  }
  if (counts.row_width != limits.row_width) {
    return InvalidArgument("shape_mismatch",
                           "call: expected rows of " + std::to_string(limits.row_width) +
                               " elements, found " + std::to_string(counts.row_width));
  }
  if (!counts.has_agreed_dtype) {
    return InvalidArgument("shape_mismatch", "call: expected the agreed dtype, found another");
  }
  if (counts.rows == 0 || counts.rows > limits.max_rows) {
    return BadItems("expected 1 to " + std::to_string(limits.max_rows) + " rows, found " +
                    std::to_string(counts.rows));
  }
  const uint64_t pairs_max = std::min<uint64_t>(limits.max_pairs, counts.rows * limits.top_k);
  if (counts.pairs < counts.rows || counts.pairs > pairs_max) {
    return BadItems("expected " + std::to_string(counts.rows) + " to " + std::to_string(pairs_max) +
                    " pairs, found " + std::to_string(counts.pairs));
  }
  if (counts.image_rows > counts.rows) {
    return BadItems("expected at most " + std::to_string(counts.rows) + " image rows, found " +
                    std::to_string(counts.image_rows));
  }
  return absl::OkStatus();
}

absl::Status ValidateCall(const CallView& call, const FrameLimits& limits) {
  CONCLAVE_RETURN_IF_ERROR(CheckCounts({.model = call.model,
                                        .layer = call.layer.value(),
                                        .row_width = call.row_width,
                                        .has_agreed_dtype = call.dtype == limits.dtype,
                                        .rows = call.num_rows,
                                        .pairs = call.pair_row.size(),
                                        .image_rows = call.image_rows},
                                       limits));
  if (call.pair_weight.size() != call.pair_row.size() ||
      call.pair_expert.size() != call.pair_row.size()) {
    return BadItems("expected three pair arrays of one length, found " +
                    std::to_string(call.pair_weight.size()) + ", " +
                    std::to_string(call.pair_row.size()) + " and " +
                    std::to_string(call.pair_expert.size()));
  }
  const uint64_t row_bytes = RowBytes(call.num_rows, call.row_width, call.dtype);
  if (call.rows.size() != row_bytes) {
    return InvalidArgument("bad_length", "call: expected " + std::to_string(row_bytes) +
                                             " bytes of rows, found " +
                                             std::to_string(call.rows.size()));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckItems(call, limits));
  return CheckGate(call, limits);
}

}  // namespace conclave::transport
