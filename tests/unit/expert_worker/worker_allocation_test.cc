// Goal: a worker allocates when it loads and never again.
// Method: this program counts every operator new; the counter must stand still over calls of many
// sizes.
#include <atomic>
#include <cstdlib>
#include <new>

#include "conclave/expert_worker/worker_core.h"
#include "tiny_experts.h"

namespace {
std::atomic<int64_t> num_allocations{0};
}  // namespace

// Not inlined: g++ would see malloc and free without their operators and call them mismatched.
[[gnu::noinline]] void* operator new(size_t size) {
  num_allocations.fetch_add(1);
  void* memory = std::malloc(size);
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace conclave::expert_worker {
namespace {

class WorkerAllocationTest : public ::testing::TestWithParam<DType> {};

TEST_P(WorkerAllocationTest, ExecuteAllocatesNothing) {
  const auto checkpoint = OpenTiny();
  ASSERT_NE(checkpoint, nullptr);
  const auto wire =
      GetParam() == DType::kF32 ? transport::WireDtype::kF32 : transport::WireDtype::kBf16;
  ThreadPool pool(2);
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    const auto worker =
        LoadWorker(*checkpoint, AllExperts(), GetParam(), kernels::Context(isa, pool));
    for (const size_t num_rows : {1, 3, 64}) {
      const Tokens tokens = RandomTokens(num_rows, num_rows, wire);
      const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
      const int64_t before = num_allocations.load();
      const bool is_ok = worker->Execute(call->view, call->reply).ok();
      const int64_t after = num_allocations.load();
      ASSERT_TRUE(is_ok);
      EXPECT_EQ(after, before) << kernels::NameOf(isa) << ", " << num_rows << " rows";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WorkerAllocationTest, ::testing::Values(DType::kF32, DType::kBf16),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

}  // namespace
}  // namespace conclave::expert_worker
