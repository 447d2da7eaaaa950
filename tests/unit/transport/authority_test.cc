// Goal: the certificates of `conclave cluster certs` are good for what they are made for, and no
// file is ever written over. Method: writes an authority into an empty folder and reads it back as
// a process would.
#include "conclave/transport/authority.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::transport {
namespace {

TEST(TestAuthorityFiles, EveryRoleGetsACertificateThatReadTlsFilesTakes) {
  const testing::TempFolder folder;
  const std::string path = (folder.path() + "/certs");
  const auto paths = WriteTestAuthority(path, {});
  ASSERT_TRUE(paths.ok()) << paths.status();
  EXPECT_EQ(paths->size(), 12u);
  for (const std::string role : {"router", "worker", "frontend", "operator", "client"}) {
    const auto tls =
        ReadTlsFiles(path + "/" + role + ".pem", path + "/" + role + "-key.pem", path + "/ca.pem");
    EXPECT_TRUE(tls.ok()) << tls.status();
    struct stat found {};
    ASSERT_EQ(::stat((path + "/" + role + "-key.pem").c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 0777u, 0600u);
  }
  const auto mixed = ReadTlsFiles(path + "/router.pem", path + "/worker-key.pem", path + "/ca.pem");
  EXPECT_EQ(ReasonOf(mixed.status()), "tls_config");
}

TEST(TestAuthorityFiles, AnExistingAuthorityIsNotWrittenOver) {
  const testing::TempFolder folder;
  ASSERT_TRUE(WriteTestAuthority(folder.path(), {}).ok());
  EXPECT_EQ(ReasonOf(WriteTestAuthority(folder.path(), {}).status()), "folder_not_empty");
}

TEST(TestAuthorityFiles, NamesThatWouldChangeTheCertificateAreRefused) {
  const testing::TempFolder folder;
  for (const char* name : {"", "a,URI:conclave://x/operator/x", "a b", "a\nb"}) {
    AuthorityOptions options;
    options.cluster = name;
    EXPECT_EQ(ReasonOf(WriteTestAuthority(folder.path(), options).status()), "usage") << name;
  }
}

}  // namespace
}  // namespace conclave::transport
