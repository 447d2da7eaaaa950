// Goal: what a worker holds can change while it computes, several calls can be computed as one, and
// neither is seen in any bit. Method: the experts of a tiny checkpoint, compared byte by byte with
// a worker whose set never changes and with calls computed alone.
#include <atomic>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

#include "conclave/base/status.h"
#include "conclave/checkpoint/expert_hash.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/expert_worker/worker_core.h"
#include "conclave/testing/temp_folder.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

using placement::ExpertUnit;
using transport::WireDtype;

ExpertUnit Unit(int32_t layer, int32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

class WorkerSharingTest : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
  }
  WireDtype Wire() const { return transport::WireDtypeOf(GetParam()); }

  std::unique_ptr<WorkerCore> Empty(int64_t memory_bytes = 0) {
    WorkerCoreOptions options;
    options.dtype = GetParam();
    options.compute = compute_;
    options.max_rows = 64;
    options.max_pairs = 128;
    options.max_merged_calls = 8;
    options.max_merged_rows = 128;
    options.memory_bytes = memory_bytes;
    return WorkerCore::Create(checkpoint_->desc(), options);
  }
  static bool SameReply(const OwnedCall& a, const OwnedCall& b) {
    return a.reply.rows.size() == b.reply.rows.size() &&
           std::memcmp(a.reply.rows.data(), b.reply.rows.data(), a.reply.rows.size()) == 0;
  }

  ThreadPool pool_{1};
  kernels::Context compute_{kernels::ResolveIsa("auto").value(), pool_};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
};

TEST_P(WorkerSharingTest, WhatIsLoadedLaterGivesTheSameBits) {
  const auto fixed = LoadWorker(*checkpoint_, AllExperts(), GetParam(), compute_);
  const auto worker = Empty();
  EXPECT_TRUE(worker->Held().empty());
  for (const ExpertUnit unit : Units(AllExperts())) {
    const auto held = worker->LoadExpert(*checkpoint_, unit, {});
    ASSERT_TRUE(held.ok()) << held.status();
    EXPECT_EQ(held->unit, unit);
  }
  EXPECT_EQ(worker->weight_bytes(), fixed->weight_bytes());
  EXPECT_EQ(worker->weight_bytes(), 8 * worker->expert_bytes());
  const Tokens tokens = RandomTokens(1, 20, Wire());
  const auto a = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  const auto b = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  ASSERT_TRUE(fixed->Execute(a->view, a->reply).ok());
  ASSERT_TRUE(worker->Execute(b->view, b->reply).ok());
  EXPECT_TRUE(SameReply(*a, *b));
}

TEST_P(WorkerSharingTest, HashAndCanaryAreOfTheExpertAlone) {
  const auto one = Empty();
  const auto other = Empty();
  const auto a = one->LoadExpert(*checkpoint_, Unit(2, 1), {});
  ASSERT_TRUE(other->LoadExpert(*checkpoint_, Unit(0, 0), {}).ok());
  const auto b = other->LoadExpert(*checkpoint_, Unit(2, 1), {});
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(*a, *b);
  EXPECT_EQ(checkpoint::HashExpert(*checkpoint_, 2, 1).value(), a->weight_hash);
  std::map<WeightHash, int> hashes;
  std::map<uint32_t, int> canaries;
  for (const ExpertUnit unit : Units(AllExperts())) {
    const auto held = one->LoadExpert(*checkpoint_, unit, {});
    ASSERT_TRUE(held.ok());
    ++hashes[held->weight_hash];
    ++canaries[held->canary_checksum];
  }
  EXPECT_EQ(hashes.size(), 8u);
  EXPECT_EQ(canaries.size(), 8u);
  EXPECT_TRUE(one->RunCanary(Unit(2, 1)).ok());
  EXPECT_TRUE(one->RunCanary(Unit(5, 1)).ok());
  EXPECT_EQ(ReasonOf(checkpoint::HashExpert(*checkpoint_, 1, 0).status()),
            "placement_unknown_unit");
}

// The same weights under every path of kernels: the bits are promised to agree.
TEST_P(WorkerSharingTest, CanariesAgreeOnAllPaths) {
  std::map<uint32_t, int> canaries;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    compute_ = kernels::Context(isa, pool_);
    ++canaries[Empty()->LoadExpert(*checkpoint_, Unit(2, 3), {})->canary_checksum];
  }
  EXPECT_EQ(canaries.size(), 1u);
}

TEST_P(WorkerSharingTest, WhatIsNotAsExpectedIsNotHeld) {
  const auto worker = Empty();
  ExpectedExpert expected;
  expected.weight_hash.emplace();
  EXPECT_EQ(ReasonOf(worker->LoadExpert(*checkpoint_, Unit(0, 0), expected).status()),
            "wrong_weights");
  const auto about = Empty()->LoadExpert(*checkpoint_, Unit(0, 0), {});
  ASSERT_TRUE(about.ok());
  expected.weight_hash = about->weight_hash;
  expected.canary_checksum = about->canary_checksum + 1;
  EXPECT_EQ(ReasonOf(worker->LoadExpert(*checkpoint_, Unit(0, 0), expected).status()),
            "canary_mismatch");
  EXPECT_TRUE(worker->Held().empty());
  expected.canary_checksum = about->canary_checksum;
  EXPECT_TRUE(worker->LoadExpert(*checkpoint_, Unit(0, 0), expected).ok());
  expected.weight_hash->at(0) ^= 1;
  EXPECT_EQ(ReasonOf(worker->LoadExpert(*checkpoint_, Unit(0, 0), expected).status()),
            "wrong_weights");
  EXPECT_EQ(ReasonOf(worker->LoadExpert(*checkpoint_, Unit(1, 0), {}).status()),
            "placement_unknown_unit");
  EXPECT_EQ(ReasonOf(worker->LoadExpert(*checkpoint_, Unit(0, 9), {}).status()),
            "placement_unknown_unit");
}

TEST_P(WorkerSharingTest, TheBudgetIsKeptAndRetiringGivesRoom) {
  const auto bytes = static_cast<int64_t>(Empty()->expert_bytes());
  const auto worker = Empty(2 * bytes);
  ASSERT_TRUE(worker->LoadExpert(*checkpoint_, Unit(0, 0), {}).ok());
  ASSERT_TRUE(worker->LoadExpert(*checkpoint_, Unit(0, 1), {}).ok());
  const absl::Status full = worker->LoadExpert(*checkpoint_, Unit(0, 2), {}).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), "worker_memory");
  const std::vector<ExpertUnit> retired = {Unit(0, 1), Unit(2, 2)};
  EXPECT_EQ(worker->RetireExperts(retired), bytes);
  EXPECT_EQ(worker->weight_bytes(), static_cast<size_t>(bytes));
  EXPECT_EQ(worker->RetireExperts(retired), 0);
  EXPECT_TRUE(worker->LoadExpert(*checkpoint_, Unit(0, 2), {}).ok());
}

TEST_P(WorkerSharingTest, ACallForWhatWasRetiredIsRefusedAndCountsStay) {
  const auto worker = Empty();
  ASSERT_TRUE(worker->LoadExpert(*checkpoint_, Unit(2, 0), {}).ok());
  Tokens tokens = RandomTokens(3, 4, Wire());
  tokens.choices.assign(4, {{0, 1.0f}});
  const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  ASSERT_TRUE(worker->Execute(call->view, call->reply).ok());
  const ExpertUnit unit = Unit(2, 0);
  worker->RetireExperts({&unit, 1});
  EXPECT_EQ(ReasonOf(worker->Execute(call->view, call->reply)), "not_held");
  const auto loads = worker->Loads();
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].rows[0][0], 4u);
}

TEST_P(WorkerSharingTest, MergedCallsHaveTheBitsOfCallsAlone) {
  const auto worker = Empty();
  for (const ExpertUnit unit : Units(AllExperts())) {
    ASSERT_TRUE(worker->LoadExpert(*checkpoint_, unit, {}).ok());
  }
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::vector<std::unique_ptr<OwnedCall>> alone;
    std::vector<std::unique_ptr<OwnedCall>> together;
    std::vector<MergedCall> merged;
    const size_t num_calls = 2 + random() % 6;
    for (size_t i = 0; i < num_calls; ++i) {
      const Tokens tokens = RandomTokens(100 * seed + i, 1 + random() % 15, Wire());
      const auto phase = random() % 2 == 0 ? transport::Phase::kDecode : transport::Phase::kPrefill;
      for (auto* calls : {&alone, &together}) {
        calls->push_back(MakeCall(tokens, AllOf(tokens), AllExperts(), 2));
        calls->back()->view.phase = phase;
      }
      ASSERT_TRUE(worker->Execute(alone[i]->view, alone[i]->reply).ok());
      merged.push_back({&together[i]->view, &together[i]->reply, absl::OkStatus()});
    }
    const auto before = worker->Loads();
    worker->ExecuteMerged(merged);
    const auto after = worker->Loads();
    uint64_t counted = 0;
    uint64_t pairs = 0;
    for (size_t i = 0; i < num_calls; ++i) {
      EXPECT_TRUE(merged[i].status.ok()) << merged[i].status;
      EXPECT_TRUE(SameReply(*alone[i], *together[i])) << "call " << i;
      pairs += together[i]->view.pair_row.size();
    }
    for (size_t u = 0; u < after.size(); ++u) {
      for (const int phase : {0, 1}) {
        counted += after[u].rows[phase][0] - before[u].rows[phase][0];
      }
    }
    EXPECT_EQ(counted, pairs);
  }
}

TEST_P(WorkerSharingTest, ARefusedCallDoesNotTouchTheOthers) {
  const auto worker = Empty();
  for (const int32_t expert : {0, 1}) {
    ASSERT_TRUE(worker->LoadExpert(*checkpoint_, Unit(2, expert), {}).ok());
  }
  Tokens tokens = RandomTokens(5, 6, Wire());
  tokens.choices.assign(6, {{0, 0.5f}, {1, 0.5f}});
  Tokens elsewhere = tokens;
  elsewhere.choices.assign(6, {{0, 0.5f}, {3, 0.5f}});
  const auto alone = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  ASSERT_TRUE(worker->Execute(alone->view, alone->reply).ok());
  const auto not_held = MakeCall(elsewhere, AllOf(elsewhere), AllExperts(), 2);
  const auto good = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  const auto broken = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  broken->view.pair_weight = broken->view.pair_weight.first(1);
  std::memset(not_held->reply.rows.data(), 0x5a, not_held->reply.rows.size());
  MergedCall merged[] = {{&not_held->view, &not_held->reply, absl::OkStatus()},
                         {&good->view, &good->reply, absl::OkStatus()},
                         {&broken->view, &broken->reply, absl::OkStatus()}};
  worker->ExecuteMerged(merged);
  EXPECT_EQ(ReasonOf(merged[0].status), "not_held");
  EXPECT_TRUE(merged[1].status.ok());
  EXPECT_EQ(ReasonOf(merged[2].status), "bad_items");
  EXPECT_TRUE(SameReply(*alone, *good));
  for (const std::byte b : not_held->reply.rows) {
    ASSERT_EQ(b, std::byte{0x5a});
  }
}

// Experts come and go on one thread while another computes: every answer is either the right one or
// "not_held".
TEST_P(WorkerSharingTest, LoadsAndRetiresBesideCalls) {
  const auto worker = Empty();
  for (const ExpertUnit unit : Units(AllExperts())) {
    ASSERT_TRUE(worker->LoadExpert(*checkpoint_, unit, {}).ok());
  }
  const Tokens tokens = RandomTokens(9, 8, Wire());
  const auto want = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  ASSERT_TRUE(worker->Execute(want->view, want->reply).ok());
  std::atomic<bool> is_done{false};
  std::thread loader([&] {
    for (int i = 0; i < 60; ++i) {
      const ExpertUnit unit = Unit(2, i % 4);
      EXPECT_EQ(worker->RetireExperts({&unit, 1}), static_cast<int64_t>(worker->expert_bytes()));
      EXPECT_TRUE(worker->LoadExpert(*checkpoint_, unit, {}).ok());
      EXPECT_TRUE(worker->RunCanary(unit).ok());
    }
    is_done.store(true);
  });
  int num_ok = 0;
  int num_refused = 0;
  while (!is_done.load() || num_ok == 0) {
    const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
    const absl::Status status = worker->Execute(call->view, call->reply);
    if (status.ok()) {
      ++num_ok;
      ASSERT_TRUE(SameReply(*want, *call));
    } else {
      ++num_refused;
      ASSERT_EQ(ReasonOf(status), "not_held");
    }
  }
  loader.join();
  EXPECT_GT(num_ok, 0);
}

// F32: a file that changed under the mapping is an error of the load and of nothing else.
TEST_P(WorkerSharingTest, AChangedFileIsRefused) {
  const testing::TempFolder folder;
  // With the folder beside it: the tower's geometry is read from there.
  std::filesystem::copy(
      std::filesystem::path(kTinyCheckpoint).parent_path(), folder.path(),
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  const auto copy = OpenTiny(folder.path() + "/checkpoint");
  ASSERT_NE(copy, nullptr);
  const auto worker = Empty();
  ASSERT_TRUE(worker->LoadExpert(*copy, Unit(0, 0), {}).ok());
  const auto& names = copy->desc().names;
  const checkpoint::TensorView* tensor =
      copy->Find(checkpoint::ExpertPrefix(names, 2, 3) + names.ffn_down + ".weight");
  ASSERT_NE(tensor, nullptr);
  std::filesystem::resize_file(folder.path() + "/checkpoint/" + std::string(tensor->file), 4096);
  const absl::Status status = worker->LoadExpert(*copy, Unit(2, 3), {}).status();
  EXPECT_EQ(ReasonOf(status), "model_changed_during_load");
  EXPECT_EQ(worker->Held().size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WorkerSharingTest,
                         ::testing::Values(DType::kF32, DType::kBf16, DType::kQ8),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

}  // namespace
}  // namespace conclave::expert_worker
