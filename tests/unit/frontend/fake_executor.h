// Experts that compute nothing and remember what they were called with.
#pragma once

#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/model/decoder.h"
#include "gtest/gtest.h"

namespace conclave::frontend {

class FakeExecutor : public model::MoeExecutor {
 public:
  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override {
    calls.push_back({micro_batch, layer, n.data, rows.data(), choice.experts.data, out.data});
  }
  void Poll() override { ++num_polls; }
  absl::Status Finish(int32_t micro_batch) override {
    return InvalidArgument("test", std::to_string(micro_batch));
  }
  uint64_t num_resent() const override { return 7; }

  struct Call {
    int32_t micro_batch, layer;
    const float* n;
    const model::StepRow* rows;
    const int32_t* experts;
    float* out;
  };
  std::vector<Call> calls;
  int num_polls = 0;
};

// Of an executor in front of `next`: one row, and everything else that one is asked.
inline void ExpectPassesEverythingOn(model::MoeExecutor& executor, FakeExecutor& next,
                                     int32_t layer) {
  const std::vector<float> n = {1, 2};
  std::vector<float> out = {0, 0};
  const std::vector<model::StepRow> rows(1);
  const std::vector<int32_t> experts = {0};
  const std::vector<float> weights = {1};
  executor.Start(1, layer, {n.data(), 1, 2}, rows, {{experts.data(), 1, 1}, {weights.data(), 1, 1}},
                 {out.data(), 1, 2});
  ASSERT_EQ(next.calls.size(), 1u);
  EXPECT_EQ(next.calls[0].micro_batch, 1);
  EXPECT_EQ(next.calls[0].layer, layer);
  EXPECT_EQ(next.calls[0].n, n.data());
  EXPECT_EQ(next.calls[0].rows, rows.data());
  EXPECT_EQ(next.calls[0].experts, experts.data());
  EXPECT_EQ(next.calls[0].out, out.data());
  executor.Poll();
  EXPECT_EQ(next.num_polls, 1);
  EXPECT_EQ(executor.Finish(1), InvalidArgument("test", "1"));
  EXPECT_EQ(executor.num_resent(), 7u);
}

}  // namespace conclave::frontend
