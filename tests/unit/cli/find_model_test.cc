// Goal: the demo is found where it can be, in the documented order.
// Method: folders that look like an installation and like a source tree.
#include "find_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::cli {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

class FindModelTest : public ::testing::Test {
 protected:
  testing::TempFolder temp_;
};

TEST_F(FindModelTest, BesideTheBinaryWins) {
  temp_.Write("bin/models/demo/config.json", "{}");
  temp_.Write("home/models/demo/config.json", "{}");
  temp_.Write("share/conclave/models/demo/config.json", "{}");
  const auto found = FindDemoModel(temp_.path() + "/bin/conclave", temp_.path() + "/home");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(found->folder, EndsWith("/bin/models/demo"));
  EXPECT_EQ(found->where, "beside the binary");
}

TEST_F(FindModelTest, HomeBeforeTheShareFolder) {
  temp_.Write("home/models/demo/config.json", "{}");
  temp_.Write("share/conclave/models/demo/config.json", "{}");
  const auto found = FindDemoModel(temp_.path() + "/bin/conclave", temp_.path() + "/home");
  EXPECT_EQ(found->where, "in CONCLAVE_HOME");
}

TEST_F(FindModelTest, InstalledShareFolder) {
  temp_.Write("share/conclave/models/demo/config.json", "{}");
  const auto found = FindDemoModel(temp_.path() + "/bin/conclave", "");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->folder, temp_.path() + "/share/conclave/models/demo");
}

TEST_F(FindModelTest, SourceTreeOfABuildFolder) {
  temp_.Write("models/demo/config.json", "{}");
  const auto found = FindDemoModel(temp_.path() + "/build/release/conclave", "");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->folder, temp_.path() + "/models/demo");
}

TEST_F(FindModelTest, FolderWithoutConfigDoesNotCount) {
  temp_.Write("bin/models/demo/model.safetensors", "");
  EXPECT_FALSE(FindDemoModel(temp_.path() + "/bin/conclave", "").ok());
}

TEST_F(FindModelTest, NothingFoundNamesAllThatWasTried) {
  const auto found = FindDemoModel(temp_.path() + "/bin/conclave", "/some/home");
  EXPECT_EQ(ReasonOf(found.status()), "model_not_found");
  EXPECT_THAT(MessageOf(found.status()), HasSubstr("/bin/models/demo, /some/home/models/demo, "));
}

}  // namespace
}  // namespace conclave::cli
