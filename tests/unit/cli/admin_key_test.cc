// Goal: only a key that others cannot read opens changes, and a bad file neither closes nor widens
// what was open. Method: key files of every kind.
#include "admin_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::cli {
namespace {

using ::testing::StartsWith;

constexpr char kKey[] = "0123456789abcdef";

class AdminKeyTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& text, mode_t mode = 0600) {
    std::string file = folder_.Write("key", text);
    EXPECT_EQ(::chmod(file.c_str(), mode), 0);
    return file;
  }
  // What a server with this file says at its start.
  absl::Status Load(const std::string& text, mode_t mode = 0600) {
    return AdminKey(Write(text, mode)).Load();
  }

  testing::TempFolder folder_;
};

TEST_F(AdminKeyTest, WithoutAFileNothingMayBeChanged) {
  AdminKey key("");
  EXPECT_FALSE(key.is_set());
  EXPECT_EQ(key.Load(), absl::OkStatus());
  for (const char* authorization : {"", "Bearer ", "Bearer x"}) {
    const absl::Status status = key.Check(authorization);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
    EXPECT_EQ(ReasonOf(status), "admin_key");
  }
}

TEST_F(AdminKeyTest, TheKeyOpensAndNothingElse) {
  AdminKey key(Write(std::string(kKey) + "\r\n"));
  EXPECT_TRUE(key.is_set());
  EXPECT_EQ(key.Check(std::string("Bearer ") + kKey).code(), absl::StatusCode::kPermissionDenied)
      << "not read yet";
  ASSERT_EQ(key.Load(), absl::OkStatus());
  EXPECT_EQ(key.Check(std::string("Bearer ") + kKey), absl::OkStatus());
  for (const std::string authorization :
       {"", "Bearer", "Bearer ", "0123456789abcdef", "bearer 0123456789abcdef",
        "Bearer 0123456789abcdeF", "Bearer 0123456789abcde", "Bearer 0123456789abcdef0",
        "Bearer  0123456789abcdef", "Basic 0123456789abcdef"}) {
    const absl::Status status = key.Check(authorization);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << authorization;
    EXPECT_EQ(ReasonOf(status), "admin_key");
    EXPECT_EQ(MessageOf(status).find(kKey), std::string::npos) << "it tells nobody the key";
  }
}

TEST_F(AdminKeyTest, AKeyHas16To512PrintableCharacters) {
  for (const size_t size : {16, 17, 511, 512}) {
    EXPECT_EQ(Load(std::string(size, '~') + "\n"), absl::OkStatus()) << size;
  }
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string(15, 'x'), std::string(513, 'x'),
        std::string(5000, 'x'), std::string("0123456789 abcdef"), std::string("0123456789\tabcdef"),
        std::string("0123456789abcdef\n0123456789abcdef\n"), std::string("0123456789abcd\xC3\xA9"),
        std::string("0123456789abcdef\0x", 18)}) {
    const absl::Status status = Load(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(ReasonOf(status), "admin_key");
    EXPECT_THAT(MessageOf(status), StartsWith(folder_.path() + "/key: expected one line of 16"));
  }
}

TEST_F(AdminKeyTest, AFileThatOthersMayTouchIsRefused) {
  EXPECT_EQ(Load(kKey, 0400), absl::OkStatus());
  EXPECT_EQ(Load(kKey, 0640), absl::OkStatus());
  for (const mode_t mode : {0644, 0604, 0602, 0601, 0666}) {
    EXPECT_THAT(MessageOf(Load(kKey, mode)),
                StartsWith(folder_.path() + "/key: expected a file that others cannot read"))
        << mode;
  }
}

TEST_F(AdminKeyTest, WhatIsNoFileIsRefused) {
  EXPECT_THAT(MessageOf(AdminKey(folder_.path() + "/none").Load()),
              StartsWith(folder_.path() + "/none: expected a plain file"));
  EXPECT_FALSE(AdminKey(folder_.path()).Load().ok());
  EXPECT_FALSE(AdminKey("/dev/zero").Load().ok());
}

TEST_F(AdminKeyTest, ReadAgainANewKeyReplacesTheOldOneAndABadOneDoesNot) {
  AdminKey key(Write(kKey));
  ASSERT_EQ(key.Load(), absl::OkStatus());
  Write("short");
  EXPECT_FALSE(key.Load().ok());
  EXPECT_EQ(key.Check(std::string("Bearer ") + kKey), absl::OkStatus());
  Write("fedcba9876543210");
  EXPECT_EQ(key.Load(), absl::OkStatus());
  EXPECT_EQ(key.Check("Bearer fedcba9876543210"), absl::OkStatus());
  EXPECT_FALSE(key.Check(std::string("Bearer ") + kKey).ok());
}

}  // namespace
}  // namespace conclave::cli
