// Goal: after any crash or damage the folder gives a state that was once durable, or says that
// there is none; nothing that cannot be read is thrown away.
// Method: real folders; every truncation and every flipped bit of a small file.
#include "conclave/router_service/state_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>

#include "conclave/base/status.h"
#include "conclave/router_service/router_state.h"
#include "core_driver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

namespace fs = std::filesystem;

RouterState SampleState(uint32_t term) {
  RouterState state;
  state.term = term;
  state.epoch_n = 7;
  state.next_worker_id = 2;
  state.model = {"0123456789abcdef", 64, 2};
  state.numeric = {"bf16", "avx2", 1};
  state.layers = {{LayerId(1), 2}};
  state.names["a"] = {WorkerId(0), 5, 17, false};
  state.names["b"] = {WorkerId(1), 6, 18, true};
  WorkerRegistration member;
  member.name = "a";
  member.incarnation = 5;
  member.data_address = "127.0.0.1:1000";
  member.channels = {"grpc"};
  member.numeric = state.numeric;
  member.memory_bytes = 1 << 20;
  member.expert_bytes = 1 << 10;
  state.members[WorkerId(0)] = member;
  state.placement[Unit(1, 0)] = {WorkerId(0)};
  state.placement[Unit(1, 1)] = {};
  state.weight_hashes[Unit(1, 0)] = {1, 2, 3};
  state.canaries[{{1, 2, 3}, "bf16", "avx2"}] = 99;
  state.pins = {{Unit(1, 0), "a"}};
  state.replicas[Unit(1, 1)] = 3;
  return state;
}

class StateFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "router_state_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    path_ = root_ / "state";
  }
  void TearDown() override { fs::remove_all(root_); }

  std::unique_ptr<StateFolder> Open() {
    auto folder = StateFolder::Open(path_.string());
    EXPECT_TRUE(folder.ok()) << folder.status();
    return folder.ok() ? *std::move(folder) : nullptr;
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path_)) {
      if (entry.path().filename() != "lock") {
        files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  static void Write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  static std::string Read(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // Saves terms 1 and 2.
  void SaveTwo() {
    const auto folder = Open();
    ASSERT_TRUE(folder->Load().ok());
    ASSERT_TRUE(folder->Save(Serialize(SampleState(1)), 1).ok());
    ASSERT_TRUE(folder->Save(Serialize(SampleState(2)), 2).ok());
  }
  // The term that is loaded; 0: none.
  uint32_t LoadedTerm(StateFolder& folder) {
    loaded_ = *folder.Load();
    return loaded_.is_found ? ParseRouterState(loaded_.blob)->term : 0;
  }

  fs::path root_;
  fs::path path_;
  StoredState loaded_;
};

TEST_F(StateFileTest, WhatIsSavedIsLoaded) {
  SaveTwo();
  EXPECT_EQ(LoadedTerm(*Open()), 2u);
  EXPECT_TRUE(loaded_.refused.empty());
  EXPECT_EQ(loaded_.blob, Serialize(SampleState(2)));
  EXPECT_EQ(Serialize(*ParseRouterState(loaded_.blob)), loaded_.blob);
}

TEST_F(StateFileTest, AnEmptyFolderHasNoState) { EXPECT_EQ(LoadedTerm(*Open()), 0u); }

TEST_F(StateFileTest, ThreeGenerationsAreKept) {
  const auto folder = Open();
  for (uint32_t term = 1; term <= 6; ++term) {
    ASSERT_TRUE(folder->Save(Serialize(SampleState(term)), term).ok());
  }
  EXPECT_EQ(Files().size(), 3u);
  EXPECT_EQ(LoadedTerm(*folder), 6u);
}

TEST_F(StateFileTest, ASecondRouterIsRefusedWithThePidOfTheFirst) {
  const auto folder = Open();
  const auto second = StateFolder::Open(path_.string());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(ReasonOf(second.status()), "state_dir_locked");
  EXPECT_THAT(MessageOf(second.status()),
              ::testing::HasSubstr("pid=" + std::to_string(::getpid())));
}

TEST_F(StateFileTest, ATruncatedFileIsPassedOverAndKeptAtEveryLength) {
  SaveTwo();
  const fs::path newest = Files().back();
  const std::string bytes = Read(newest);
  for (size_t length = 0; length < bytes.size(); ++length) {
    for (const fs::path& file : Files()) {
      if (file.extension() == ".refused") {
        fs::remove(file);
      }
    }
    Write(newest, bytes.substr(0, length));
    const auto folder = Open();
    ASSERT_EQ(LoadedTerm(*folder), 1u) << length;
    ASSERT_EQ(loaded_.refused.size(), 1u);
    EXPECT_EQ(ReasonOf(loaded_.refused[0]), "state_corrupt");
    EXPECT_EQ(Read(newest.string() + ".refused"), bytes.substr(0, length)) << "kept as it was";
  }
}

TEST_F(StateFileTest, AFlippedBitIsFoundWhereverItIs) {
  const std::string bytes = EncodeStateFile(kStateVersion, Serialize(SampleState(1)));
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[at] = static_cast<char>(flipped[at] ^ 1 << bit);
      const auto decoded = DecodeStateFile(flipped, kStateVersion);
      ASSERT_FALSE(decoded.ok()) << at << ":" << bit;
    }
  }
  EXPECT_FALSE(DecodeStateFile(bytes + "x", kStateVersion).ok()) << "bytes behind the end";
}

TEST_F(StateFileTest, ABlobThatWasChangedUnderItsChecksumIsNoState) {
  const std::string blob = Serialize(SampleState(1));
  int num_accepted = 0;
  for (size_t length = 0; length < blob.size(); ++length) {
    EXPECT_FALSE(ParseRouterState(blob.substr(0, length)).ok()) << length;
  }
  EXPECT_FALSE(ParseRouterState(blob + "x").ok());
  // A flip may give another valid value, never a crash or a state that contradicts itself.
  for (size_t at = 0; at < blob.size(); ++at) {
    std::string flipped = blob;
    flipped[at] = static_cast<char>(~flipped[at]);
    const auto state = ParseRouterState(flipped);
    if (state.ok()) {
      ++num_accepted;
      for (const auto& [unit, workers] : state->placement) {
        for (const WorkerId worker : workers) {
          EXPECT_TRUE(state->members.contains(worker));
        }
      }
    }
  }
  EXPECT_GT(num_accepted, 0);
}

TEST_F(StateFileTest, AFileOfALaterVersionIsKeptAndNotReplaced) {
  SaveTwo();
  const fs::path newest = Files().back();
  const std::string later = EncodeStateFile(7, "what a later version writes");
  Write(newest, later);
  const auto folder = Open();
  EXPECT_EQ(LoadedTerm(*folder), 1u);
  ASSERT_EQ(loaded_.refused.size(), 1u);
  EXPECT_EQ(ReasonOf(loaded_.refused[0]), "state_version_unsupported");
  EXPECT_THAT(MessageOf(loaded_.refused[0]), ::testing::HasSubstr("found 7, max 1"));
  for (uint32_t term = 3; term < 10; ++term) {
    ASSERT_TRUE(folder->Save(Serialize(SampleState(term)), term).ok());
  }
  EXPECT_EQ(Read(newest.string() + ".refused"), later);
}

TEST_F(StateFileTest, SomethingThatIsNoFileIsPassedOver) {
  SaveTwo();
  const fs::path next = path_ / "state.00000000000000000009";
  fs::create_directory(next);
  fs::create_symlink("/dev/zero", path_ / "state.00000000000000000008");
  EXPECT_EQ(LoadedTerm(*Open()), 2u);
  EXPECT_EQ(loaded_.refused.size(), 2u);
}

TEST_F(StateFileTest, AWriteThatFailsLeavesTheOldGenerations) {
  SaveTwo();
  const auto folder = Open();
  ASSERT_EQ(LoadedTerm(*folder), 2u);
  // A file may not grow beyond 16 bytes: what a full disk does, without one.
  rlimit old_limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old_limit;
  small.rlim_cur = 16;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = folder->Save(Serialize(SampleState(3)), 3);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  (void)std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(ReasonOf(status), "state_write_failed");
  EXPECT_EQ(LoadedTerm(*folder), 2u);
  EXPECT_TRUE(folder->Save(Serialize(SampleState(3)), 3).ok()) << "once there is room again";
  EXPECT_EQ(LoadedTerm(*folder), 3u);
}

TEST_F(StateFileTest, AFolderThatCannotBeMadeIsAnError) {
  const auto folder = StateFolder::Open((root_ / "no" / "parent").string());
  EXPECT_EQ(ReasonOf(folder.status()), "state_dir");
}

TEST_F(StateFileTest, TheFilesAreTheOwnersAlone) {
  SaveTwo();
  struct stat found {};
  ASSERT_EQ(::stat(Files().back().c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u) << "they hold keys";
}

}  // namespace
}  // namespace conclave::router_service
