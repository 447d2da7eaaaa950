// A worker whose answer is plain to see: out[r] = sum of the row's weights, times the row. Counts
// what it is asked.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "conclave/tensor/dtype.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

class FakeHandler : public CallHandler {
 public:
  absl::Status Execute(const CallView& call, ReplyView& reply) override {
    ++num_calls;
    last_seq = call.seq;
    if (on_execute) {
      on_execute();
    }
    if (!answer.ok()) {
      return answer;
    }
    const size_t width = call.row_width;
    for (size_t r = 0; r < call.num_rows; ++r) {
      float weight = 0.0f;
      for (size_t p = 0; p < call.pair_row.size(); ++p) {
        weight += call.pair_row[p] == r ? call.pair_weight[p] : 0.0f;
      }
      for (size_t i = r * width; i < (r + 1) * width; ++i) {
        if (call.dtype == WireDtype::kF32) {
          reinterpret_cast<float*>(reply.rows.data())[i] =
              weight * reinterpret_cast<const float*>(call.rows.data())[i];
        } else {
          const Bf16 x = reinterpret_cast<const Bf16*>(call.rows.data())[i];
          reinterpret_cast<Bf16*>(reply.rows.data())[i] = ToBf16(weight * ToFloat(x));
        }
      }
    }
    return absl::OkStatus();
  }

  int num_calls = 0;
  uint64_t last_seq = 0;
  absl::Status answer;
  std::function<void()> on_execute;
};

// Fills the slot with `num_rows` rows of `value`, each with one pair of expert 1 and weight 0.5.
inline void FillCall(CallSlot& slot, uint16_t num_rows, float value) {
  CallView& call = slot.call;
  const size_t width = call.row_width;
  for (uint16_t r = 0; r < num_rows; ++r) {
    slot.pair_weight[r] = 0.5f;
    slot.pair_row[r] = r;
    slot.pair_expert[r] = 1;
    for (size_t i = r * width; i < (r + 1u) * width; ++i) {
      if (call.dtype == WireDtype::kF32) {
        reinterpret_cast<float*>(slot.rows.data())[i] = value;
      } else {
        reinterpret_cast<Bf16*>(slot.rows.data())[i] = ToBf16(value);
      }
    }
  }
  call.num_rows = num_rows;
  call.pair_weight = slot.pair_weight.first(num_rows);
  call.pair_row = slot.pair_row.first(num_rows);
  call.pair_expert = slot.pair_expert.first(num_rows);
  call.rows = slot.rows.first(num_rows * width * (call.dtype == WireDtype::kF32 ? 4 : 2));
}

}  // namespace conclave::transport
