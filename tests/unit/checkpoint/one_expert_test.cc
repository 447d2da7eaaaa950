// Goal: who needs one expert reads that expert and nothing else of the weights, however large they
// are. Method: a checkpoint whose matrices are of some hundred kilobytes, taken out of the kernel's
// cache; the kernel says which of its pages have come back (mincore) after opening it and after
// taking one expert.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/tensor_list.h"
#include "small_model.h"
#include "torch_file.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPage = 4096;

// Takes the file out of the cache, as far as the file system can.
void Evict(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  CONCLAVE_CHECK(fd >= 0);
  ::fsync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

// Bytes of the file that are in the cache, whoever read them.
int64_t CachedBytes(const fs::path& path) {
  const auto size = static_cast<size_t>(fs::file_size(path));
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  CONCLAVE_CHECK(start != MAP_FAILED);
  std::vector<unsigned char> pages((size + kPage - 1) / kPage);
  CONCLAVE_CHECK(::mincore(start, size, pages.data()) == 0);
  ::munmap(start, size);
  int64_t bytes = 0;
  for (const unsigned char page : pages) {
    bytes += (page & 1) != 0 ? kPage : 0;
  }
  return bytes;
}

// The same once it has not changed for a while: what the kernel reads ahead arrives after the read
// that it was for.
int64_t SettledCachedBytes(const fs::path& path) {
  using Time = std::chrono::steady_clock;
  int64_t bytes = CachedBytes(path);
  for (auto since = Time::now(); Time::now() - since < std::chrono::milliseconds(50);) {
    std::this_thread::yield();
    if (const int64_t now = CachedBytes(path); now != bytes) {
      bytes = now;
      since = Time::now();
    }
  }
  return bytes;
}

class OneExpertTest : public ::testing::TestWithParam<bool> {
 protected:
  OneExpertTest() {
    SmallModel model;
    model.config.Set("hidden_size", "512");
    model.config.Set("intermediate_size", "768");
    model.config.Set("vocab_size", "2048");
    model.moe.Set("moe_layers_idx", "[0, 1]");
    model.moe.Set("num_experts", "[4, 4]");
    model.WriteConfigs(folder_.path());
    const std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
    if (GetParam()) {
      file_ = folder_ / "pytorch_model.bin";
      WriteFile(file_, TorchFile(tensors));
    } else {
      file_ = folder_ / "model.safetensors";
      WriteWeights(folder_.path(), tensors);
    }
  }

  TemporaryFolder folder_;
  fs::path file_;
};

TEST_P(OneExpertTest, OpeningReadsNoWeightAndAnExpertOnlyItself) {
  Evict(file_);
  if (CachedBytes(file_) > 0) {
    GTEST_SKIP() << "this file system keeps everything in memory";
  }
  const auto opened = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  // What describes the weights, and what the kernel reads ahead of it.
  const auto file_bytes = static_cast<int64_t>(fs::file_size(file_));
  const int64_t opened_bytes = SettledCachedBytes(file_);
  EXPECT_LT(opened_bytes, file_bytes / 16);
  const std::string prefix = ExpertPrefix(checkpoint.desc().names, 1, 2);
  int64_t expert_bytes = 0;
  int64_t num_tensors = 0;
  for (const ExpectedTensor& expected : ExpectedTensors(checkpoint.desc())) {
    if (expected.name.starts_with(prefix)) {
      const auto tensor = checkpoint.Require(expected.name, expected.shape);
      ASSERT_TRUE(tensor.ok()) << tensor.status();
      ASSERT_TRUE(ToFloats(*tensor).ok());
      expert_bytes += static_cast<int64_t>(tensor->bytes.size());
      ++num_tensors;
    }
  }
  ASSERT_EQ(num_tensors, 3);
  ASSERT_GT(file_bytes, 10 * expert_bytes);
  // The kernel reads whole pages, and around them.
  constexpr int64_t kReadAhead = 64 << 10;
  const int64_t read_bytes = SettledCachedBytes(file_) - opened_bytes;
  EXPECT_GE(read_bytes, expert_bytes - num_tensors * kReadAhead);
  EXPECT_LE(read_bytes, expert_bytes + num_tensors * kReadAhead);
}

INSTANTIATE_TEST_SUITE_P(Formats, OneExpertTest, ::testing::Values(false, true),
                         [](const ::testing::TestParamInfo<bool>& row) {
                           return row.param ? "TorchSave" : "Safetensors";
                         });

}  // namespace
}  // namespace conclave::checkpoint
