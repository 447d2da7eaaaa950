// Goal: a call that no worker should compute, and experts that no worker should load, are refused
// with their reasons, and the worker goes on unharmed. Method: legal calls to a small worker,
// changed in one place; a copy of the checkpoint with one weight damaged.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/expert_worker/worker_core.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

using transport::WireDtype;

class WorkerBadInputTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
    worker_ = LoadWorker(*checkpoint_, {0, 1}, GetParam(), compute_, 16);
    ASSERT_NE(worker_, nullptr);
    tokens_ = RandomTokens(1, 6, Wire());
    tokens_.choices.assign(6, {{0, 0.25f}, {1, 0.75f}});
  }

  WireDtype Wire() const { return transport::WireDtypeOf(GetParam()); }

  // The reason for which the call is refused after `change`; nothing may have been written.
  template <typename Change>
  std::string Refusal(const Change& change, int32_t layer = 2) {
    const auto call = MakeCall(tokens_, AllOf(tokens_), AllExperts(), layer);
    std::memset(call->reply.rows.data(), 0x5a, call->reply.rows.size());
    change(*call);
    const absl::Status status = worker_->Execute(call->view, call->reply);
    for (const std::byte b : call->reply.rows) {
      if (!status.ok() && b != std::byte{0x5a}) {
        ADD_FAILURE() << "a refused call wrote to its reply";
        break;
      }
    }
    return ReasonOf(status);
  }

  void SetElement(OwnedCall& call, size_t index, float value) const {
    if (Wire() == WireDtype::kF32) {
      call.rows.As<float>()[index] = value;
    } else {
      call.rows.As<Bf16>()[index] = ToBf16(value);
    }
  }

  ThreadPool pool_{1};
  kernels::Context compute_{kernels::Isa::kScalar, pool_};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::unique_ptr<WorkerCore> worker_;
  Tokens tokens_;
};

TEST_P(WorkerBadInputTest, TheUnchangedCallIsLegal) {
  EXPECT_EQ(Refusal([](OwnedCall&) {}), "");
}

TEST_P(WorkerBadInputTest, D10_NonfiniteRowsAreRefusedAndTheWorkerGoesOn) {
  const auto good = MakeCall(tokens_, AllOf(tokens_), AllExperts(), 2);
  ASSERT_TRUE(worker_->Execute(good->view, good->reply).ok());
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const size_t index : {size_t{0}, size_t{kWidth + 7}, size_t{6 * kWidth - 1}}) {
      EXPECT_EQ(Refusal([&](OwnedCall& call) { SetElement(call, index, bad); }), "nonfinite_input");
    }
  }
  const auto again = MakeCall(tokens_, AllOf(tokens_), AllExperts(), 2);
  ASSERT_TRUE(worker_->Execute(again->view, again->reply).ok());
  EXPECT_EQ(std::memcmp(good->reply.rows.data(), again->reply.rows.data(), good->reply.rows.size()),
            0);
}

TEST_P(WorkerBadInputTest, D06_ExpertsOfOthersAreNotHeld) {
  tokens_.choices[3] = {{0, 0.5f}, {2, 0.5f}};
  const auto call = MakeCall(tokens_, AllOf(tokens_), AllExperts(), 2);
  const absl::Status status = worker_->Execute(call->view, call->reply);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "not_held");
}

TEST_P(WorkerBadInputTest, D06_LayersWithoutExpertsAreNoSuchLayer) {
  EXPECT_EQ(Refusal([](OwnedCall&) {}, 1), "no_such_layer");
  EXPECT_EQ(Refusal([](OwnedCall&) {}, checkpoint_->desc().num_layers), "no_such_layer");
  EXPECT_EQ(Refusal([](OwnedCall&) {}, -1), "no_such_layer");
}

TEST_P(WorkerBadInputTest, D07_ItemsAreCheckedWithoutAParserInFront) {
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.pair_rows[5] = 6; }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.pair_rows[1] = 0; }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { std::swap(c.pair_rows[1], c.pair_rows[2]); }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { std::swap(c.pair_experts[5], c.pair_experts[6]); }),
            "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.image_rows = 7; }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.num_rows = 17; }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.num_rows = 0; }), "bad_items");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.pair_weight = c.view.pair_weight.first(11); }),
            "bad_items");
}

TEST_P(WorkerBadInputTest, D07_RowsWithoutAnExpertAreRefused) {
  EXPECT_EQ(Refusal([](OwnedCall& c) {
              // Row 5 loses both of its pairs.
              c.weights = {0.5f, 0.5f, 0.5f, 0.5f, 0.5f, 0.5f};
              c.pair_rows = {0, 1, 2, 3, 4, 0};
              c.pair_experts = {0, 0, 0, 0, 0, 1};
              c.view.pair_weight = c.weights;
              c.view.pair_row = c.pair_rows;
              c.view.pair_expert = c.pair_experts;
            }),
            "bad_items");
}

TEST_P(WorkerBadInputTest, D08_OtherShapesAreRefused) {
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.row_width = 32; }), "shape_mismatch");
  EXPECT_EQ(Refusal([](OwnedCall& c) {
              c.view.dtype = c.view.dtype == WireDtype::kF32 ? WireDtype::kBf16 : WireDtype::kF32;
            }),
            "shape_mismatch");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.view.rows = c.view.rows.first(c.view.rows.size() - 4); }),
            "bad_length");
}

TEST_P(WorkerBadInputTest, D09_WeightsNoGateGivesAreRefused) {
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.weights[2] = -0.1f; }), "bad_gate");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.weights[2] = 0.3f; }), "bad_gate");
  EXPECT_EQ(Refusal([](OwnedCall& c) { c.weights[2] = std::numeric_limits<float>::quiet_NaN(); }),
            "bad_gate");
}

TEST_P(WorkerBadInputTest, RefusedCallsAreNotCounted) {
  Refusal([](OwnedCall& c) { c.weights[2] = -0.1f; });
  Refusal([this](OwnedCall& c) { SetElement(c, 0, std::numeric_limits<float>::infinity()); });
  for (const ExpertLoad& load : worker_->Loads()) {
    EXPECT_EQ(load.rows[0][0] + load.rows[0][1] + load.rows[1][0] + load.rows[1][1], 0u);
  }
}

TEST_P(WorkerBadInputTest, AWorkerWithNothingRefusesEverything) {
  worker_ = LoadWorker(*checkpoint_, {}, GetParam(), compute_, 16);
  EXPECT_EQ(Refusal([](OwnedCall&) {}), "not_held");
}

TEST_P(WorkerBadInputTest, ExpertsThatTheModelDoesNotHaveAreNotLoaded) {
  WorkerCoreOptions options;
  options.dtype = GetParam();
  options.compute = compute_;
  const auto reason = [&](std::vector<placement::ExpertUnit> units) {
    return ReasonOf(WorkerCore::Load(*checkpoint_, std::move(units), options, nullptr).status());
  };
  const auto unit = [](int32_t layer, int32_t expert) {
    return placement::ExpertUnit{LayerId(layer), ExpertId(expert)};
  };
  EXPECT_EQ(reason({unit(0, 4)}), "placement_unknown_unit");
  EXPECT_EQ(reason({unit(0, -1)}), "placement_unknown_unit");
  EXPECT_EQ(reason({unit(1, 0)}), "placement_unknown_unit");
  EXPECT_EQ(reason({unit(99, 0)}), "placement_unknown_unit");
  EXPECT_EQ(reason({unit(0, 1), unit(2, 0), unit(0, 1)}), "placement_duplicate");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WorkerBadInputTest,
                         ::testing::Values(DType::kF32, DType::kBf16, DType::kQ8),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

// A copy of the tiny checkpoint in which one weight of expert 3 of layer 2 is not a number.
class DamagedCheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ =
        std::filesystem::temp_directory_path() / ("conclave-worker-" + std::to_string(::getpid()));
    // With the folder beside it: the tower's geometry is read from there.
    std::filesystem::copy(std::filesystem::path(kTinyCheckpoint).parent_path(), root_,
                          std::filesystem::copy_options::recursive);
    folder_ = root_ / "checkpoint";
    const auto tiny = OpenTiny();
    ASSERT_NE(tiny, nullptr);
    const auto& names = tiny->desc().names;
    const checkpoint::TensorView* tensor =
        tiny->Find(checkpoint::ExpertPrefix(names, 2, 3) + names.ffn_down + ".weight");
    ASSERT_NE(tensor, nullptr);
    ASSERT_EQ(tensor->dtype, DType::kBf16);
    const std::string path = folder_ / std::string(tensor->file);
    std::ifstream in(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const std::string_view stored(reinterpret_cast<const char*>(tensor->bytes.data()),
                                  tensor->bytes.size());
    const size_t at = bytes.find(stored);
    ASSERT_NE(at, std::string::npos);
    bytes.replace(at + stored.size() - 2, 2, "\xc0\x7f");
    std::filesystem::permissions(path, std::filesystem::perms::owner_write,
                                 std::filesystem::perm_options::add);
    std::ofstream(path, std::ios::binary) << bytes;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::filesystem::path root_;
  std::filesystem::path folder_;
};

TEST_F(DamagedCheckpointTest, OnlyTheWorkerThatHoldsTheDamagedExpertNotices) {
  const auto checkpoint = OpenTiny(folder_);
  ASSERT_NE(checkpoint, nullptr);
  ThreadPool pool(1);
  WorkerCoreOptions options;
  options.compute = kernels::Context(kernels::Isa::kScalar, pool);
  const auto others = WorkerCore::Load(*checkpoint, Units({0, 1, 2}), options, nullptr);
  EXPECT_TRUE(others.ok()) << others.status();
  const auto holder = WorkerCore::Load(*checkpoint, Units({3}), options, nullptr);
  ASSERT_FALSE(holder.ok());
  EXPECT_EQ(ReasonOf(holder.status()), "tensor_nonfinite");
  EXPECT_NE(MessageOf(holder.status()).find("experts.3.down_proj.weight"), std::string::npos)
      << holder.status();
}

}  // namespace
}  // namespace conclave::expert_worker
