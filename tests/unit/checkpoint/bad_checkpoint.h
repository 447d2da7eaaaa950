// The fixture of the bad-input tests: a good small model in a folder, to be broken by the test.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "small_model.h"

namespace conclave::checkpoint {

inline constexpr char kWeights[] = "model.safetensors";
inline constexpr char kIndex[] = "model.safetensors.index.json";

inline absl::Status Open(const std::string& folder) { return Checkpoint::Open(folder).status(); }

inline void ExpectRefused(const absl::Status& status, const std::string& reason,
                          const std::vector<std::string>& words) {
  ASSERT_FALSE(status.ok()) << "was taken for good; expected " << reason;
  EXPECT_EQ(ReasonOf(status), reason) << MessageOf(status);
  for (const std::string& word : words) {
    EXPECT_THAT(MessageOf(status), ::testing::HasSubstr(word));
  }
  EXPECT_EQ(MessageOf(status).find('\n'), std::string::npos) << "a message is one line";
}

class BadCheckpoint : public ::testing::Test {
 protected:
  BadCheckpoint() {
    SmallModel().Write(folder_.path());
    EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
  }
  // The same process opens a good model after the bad one.
  ~BadCheckpoint() override {
    const TemporaryFolder good;
    SmallModel().Write(good.path());
    EXPECT_TRUE(Open(good.path()).ok());
  }

  void ExpectRefusedWith(const std::string& reason, const std::vector<std::string>& words) {
    ExpectRefused(Open(folder_.path()), reason, words);
  }

  TemporaryFolder folder_;
};

}  // namespace conclave::checkpoint
