// Goal: a worker allocates when it loads and never again.
// Method: this program counts every operator new; the counter must stand still over calls of many
// sizes.
#include "conclave/expert_worker/worker_core.h"
#include "conclave/testing/count_allocations.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

class WorkerAllocationTest : public ::testing::TestWithParam<DType> {};

TEST_P(WorkerAllocationTest, ExecuteAllocatesNothing) {
  const auto checkpoint = OpenTiny();
  ASSERT_NE(checkpoint, nullptr);
  const auto wire = transport::WireDtypeOf(GetParam());
  ThreadPool pool(2);
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const auto worker =
        LoadWorker(*checkpoint, AllExperts(), GetParam(), kernels::Context(isa, pool));
    for (const size_t num_rows : {1, 3, 64}) {
      const Tokens tokens = RandomTokens(num_rows, num_rows, wire);
      const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
      const int64_t before = testing::num_allocations.load();
      const bool is_ok = worker->Execute(call->view, call->reply).ok();
      const int64_t after = testing::num_allocations.load();
      ASSERT_TRUE(is_ok);
      EXPECT_EQ(after, before) << kernels::NameOf(isa) << ", " << num_rows << " rows";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WorkerAllocationTest,
                         ::testing::Values(DType::kF32, DType::kBf16, DType::kQ8),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

}  // namespace
}  // namespace conclave::expert_worker
