// Goal: rows reach the workers of their experts once, in calls within the channel's limits, and
// what comes back is summed without a trace of how it was split. Method: handlers that answer by
// arithmetic instead of experts, behind the inproc channel with frames.
#include "conclave/frontend/dispatcher.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/transport/inproc_channel.h"

namespace conclave::frontend {
namespace {

constexpr int32_t kWidth = 8;
constexpr int32_t kExperts = 4;
constexpr uint16_t kMaxRowsPerCall = 5;

// Expert e multiplies its row by e + 1. Powers of two and small integers keep every sum exact.
class Multiplier : public transport::CallHandler {
 public:
  absl::Status Execute(const transport::CallView& call, transport::ReplyView& reply) override {
    if (!error.ok()) {
      return error;
    }
    calls.push_back({call.num_rows, call.image_rows, call.phase, call.seq});
    auto* out = reinterpret_cast<float*>(reply.rows.data());
    const auto* in = reinterpret_cast<const float*>(call.rows.data());
    std::fill_n(out, call.num_rows * kWidth, 0.0f);
    for (size_t p = 0; p < call.pair_expert.size(); ++p) {
      for (int32_t c = 0; c < kWidth; ++c) {
        const int32_t at = call.pair_row[p] * kWidth + c;
        out[at] += call.pair_weight[p] * static_cast<float>(call.pair_expert[p] + 1) * in[at];
      }
    }
    return absl::OkStatus();
  }

  struct Call {
    uint32_t num_rows;
    uint32_t image_rows;
    transport::Phase phase;
    uint64_t seq;
  };
  std::vector<Call> calls;
  absl::Status error;
};

struct Row {
  int32_t experts[2];
  float weights[2];
  bool is_image = false;
  bool is_prefill = false;
};

class DispatcherTest : public ::testing::TestWithParam<int32_t> {
 protected:
  // Experts spread over GetParam() workers.
  absl::StatusOr<std::vector<float>> Run(const std::vector<Row>& rows) {
    const int32_t num_workers = GetParam();
    std::vector<placement::ExpertUnit> units;
    for (int32_t e = 0; e < kExperts; ++e) {
      units.push_back({LayerId(1), ExpertId(e)});
    }
    const auto placement = std::make_shared<const placement::Placement>(
        placement::SpreadEvenly(Epoch(1), units, num_workers));
    transport::InprocOptions options;
    options.limits.max_rows = kMaxRowsPerCall;
    options.limits.max_pairs = 2 * kMaxRowsPerCall;
    options.limits.row_width = kWidth;
    options.limits.dtype = transport::WireDtype::kF32;
    options.num_layers = 2;
    options.num_experts_max = kExperts;
    options.top_k = 2;
    options.use_frames = true;
    handlers_ = std::vector<Multiplier>(static_cast<size_t>(num_workers));
    for (Multiplier& handler : handlers_) {
      handler.error = error_;
    }
    std::vector<std::unique_ptr<transport::ExpertChannel>> channels;
    std::vector<Dispatcher::Link> links;
    for (int32_t w = 0; w < num_workers; ++w) {
      channels.push_back(transport::MakeInprocChannel(handlers_[static_cast<size_t>(w)], options));
      links.push_back({WorkerId(w), channels.back().get()});
    }
    Dispatcher dispatcher({.compute = kernels::Context(kernels::Isa::kScalar, pool_),
                           .wire = transport::WireDtype::kF32,
                           .io_dim = kWidth,
                           .top_k = 2,
                           .max_rows = 64},
                          placement, std::move(links));
    const auto count = static_cast<int64_t>(rows.size());
    std::vector<float> n(rows.size() * kWidth), out(n.size(), -1.0f), weights;
    std::vector<int32_t> experts;
    std::vector<model::StepRow> step;
    for (size_t r = 0; r < rows.size(); ++r) {
      std::fill_n(n.begin() + static_cast<ptrdiff_t>(r * kWidth), kWidth,
                  static_cast<float>(r + 1));
      experts.insert(experts.end(), rows[r].experts, rows[r].experts + 2);
      weights.insert(weights.end(), rows[r].weights, rows[r].weights + 2);
      step.push_back({static_cast<int32_t>(r), nullptr, rows[r].is_image, rows[r].is_prefill});
    }
    const model::GateChoice choice{{experts.data(), count, 2}, {weights.data(), count, 2}};
    const absl::Status status =
        dispatcher.Run(1, {n.data(), count, kWidth}, step, choice, {out.data(), count, kWidth});
    if (!status.ok()) {
      return status;
    }
    return out;
  }

  static float Expected(const Row& row, size_t index) {
    return static_cast<float>(index + 1) *
           (row.weights[0] * static_cast<float>(row.experts[0] + 1) +
            row.weights[1] * static_cast<float>(row.experts[1] + 1));
  }

  ThreadPool pool_{1};
  absl::Status error_;
  std::vector<Multiplier> handlers_;
};

std::vector<Row> ManyRows() {
  std::vector<Row> rows;
  for (int32_t r = 0; r < 23; ++r) {
    rows.push_back({{r % 4, (r + 1 + r / 4 % 3) % 4}, {0.75f, 0.25f}, r >= 9 && r < 14, r >= 4});
  }
  return rows;
}

TEST_P(DispatcherTest, EveryRowIsTheWeightedSumOfItsExperts) {
  const std::vector<Row> rows = ManyRows();
  const auto out = Run(rows);
  ASSERT_TRUE(out.ok()) << out.status();
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t c = 0; c < kWidth; ++c) {
      ASSERT_EQ((*out)[r * kWidth + c], Expected(rows[r], r)) << "row " << r;
    }
  }
}

TEST_P(DispatcherTest, CallsKeepTheLimitsAndHoldOnePhase) {
  const std::vector<Row> rows = ManyRows();
  ASSERT_TRUE(Run(rows).ok());
  // The frames mode delivers every call twice; a sequence number counts once.
  uint32_t image_rows = 0;
  std::map<transport::Phase, uint32_t> by_phase;
  for (const Multiplier& handler : handlers_) {
    for (size_t i = 0; i < handler.calls.size(); i += 2) {
      ASSERT_EQ(handler.calls[i].seq, handler.calls[i + 1].seq);
      EXPECT_LE(handler.calls[i].num_rows, kMaxRowsPerCall);
      EXPECT_LE(handler.calls[i].image_rows, handler.calls[i].num_rows);
      image_rows += handler.calls[i].image_rows;
      by_phase[handler.calls[i].phase] += handler.calls[i].num_rows;
    }
  }
  // A row goes once to each worker that holds one of its experts.
  EXPECT_GE(by_phase[transport::Phase::kDecode], 4u);
  EXPECT_LE(by_phase[transport::Phase::kDecode], 8u);
  EXPECT_GE(by_phase[transport::Phase::kPrefill], 19u);
  EXPECT_LE(by_phase[transport::Phase::kPrefill], 38u);
  EXPECT_GE(image_rows, 5u);
  if (GetParam() == 1) {
    EXPECT_EQ(by_phase[transport::Phase::kDecode], 4u);
    EXPECT_EQ(by_phase[transport::Phase::kPrefill], 19u);
    EXPECT_EQ(image_rows, 5u);
  }
}

TEST_P(DispatcherTest, AnErrorOfAWorkerIsTheErrorOfTheStep) {
  error_ = Error(absl::StatusCode::kResourceExhausted, "out_of_memory", "no room");
  const auto out = Run(ManyRows());
  ASSERT_FALSE(out.ok());
  EXPECT_EQ(out.status().code(), absl::StatusCode::kResourceExhausted) << out.status();
}

INSTANTIATE_TEST_SUITE_P(Workers, DispatcherTest, ::testing::Values(1, 2, 4));

}  // namespace
}  // namespace conclave::frontend
