// Goal: a process starts with certificate files that are right, and says what is wrong with others.
// Method: files made by OpenSSL, each broken in one way.
#include <sys/stat.h>
#include <unistd.h>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"
#include "conclave/transport/grpc_support.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "key_access.h"
#include "test_certificates.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

class TlsFilesTest : public ::testing::Test {
 protected:
  void Write(const TlsIdentity& tls) {
    certificate_ = folder_.Write("own.crt", tls.certificate_pem);
    key_ = folder_.Write("own.key", tls.private_key_pem);
    authority_ = folder_.Write("ca.crt", tls.authority_pem);
    ASSERT_EQ(::chmod(key_.c_str(), 0600), 0);
  }
  absl::StatusOr<TlsIdentity> Read() { return ReadTlsFiles(certificate_, key_, authority_); }
  void ExpectRefused(const std::string& file, const std::string& why) {
    const absl::StatusOr<TlsIdentity> tls = Read();
    ASSERT_FALSE(tls.ok());
    EXPECT_EQ(ReasonOf(tls.status()), "tls_config");
    EXPECT_THAT(MessageOf(tls.status()), HasSubstr(file));
    EXPECT_THAT(MessageOf(tls.status()), HasSubstr(why));
  }

  testing::TempFolder folder_;
  TestAuthority authority_of_all_;
  TlsIdentity good_ = authority_of_all_.Issue("conclave://test/worker/w0");
  std::string certificate_;
  std::string key_;
  std::string authority_;
};

TEST_F(TlsFilesTest, ReadsAllThreeOrNone) {
  Write(good_);
  const absl::StatusOr<TlsIdentity> tls = Read();
  ASSERT_TRUE(tls.ok()) << tls.status();
  EXPECT_EQ(tls->certificate_pem, good_.certificate_pem);
  EXPECT_EQ(tls->private_key_pem, good_.private_key_pem);
  EXPECT_EQ(tls->authority_pem, good_.authority_pem);
  const absl::StatusOr<TlsIdentity> none = ReadTlsFiles("", "", "");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_TRUE(none->empty());
  key_.clear();
  ExpectRefused("TLS", "found only some");
}

TEST_F(TlsFilesTest, NamesAFileThatIsMissing) {
  Write(good_);
  authority_ += ".gone";
  ExpectRefused("ca.crt.gone", "found none");
  certificate_ = folder_.path();
  ExpectRefused(folder_.path(), "found something else");
}

TEST_F(TlsFilesTest, RefusesWhatIsNoPem) {
  TlsIdentity bad = good_;
  bad.certificate_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
  Write(bad);
  ExpectRefused("own.crt", "expected a certificate in PEM");
  bad = good_;
  bad.private_key_pem = good_.certificate_pem;
  Write(bad);
  ExpectRefused("own.key", "expected a private key");
  bad = good_;
  bad.authority_pem = "";
  Write(bad);
  ExpectRefused("ca.crt", "expected a certificate in PEM");
}

TEST_F(TlsFilesTest, RefusesAKeyThatOthersCanRead) {
  Write(good_);
  ASSERT_EQ(::chmod(key_.c_str(), 0644), 0);
  ExpectRefused("own.key", "only its owner");
  ExpectRefused("own.key", "found mode 0644");
}

TEST(KeyAccessTest, AFileOfTheReadersOwnIsItsAlone) {
  const Reader reader{10001, {10001, 20000}};
  EXPECT_EQ(WhyKeyIsUnsafe({S_IFREG | 0600, 10001, 10001}, reader), "");
  EXPECT_EQ(WhyKeyIsUnsafe({S_IFREG | 0400, 10001, 30000}, reader), "");
  for (const mode_t mode : {0640, 0440, 0660, 0644, 0604, 0610, 0601}) {
    EXPECT_NE(WhyKeyIsUnsafe({S_IFREG | mode, 10001, 10001}, reader), "") << std::oct << mode;
  }
}

// A secret of Kubernetes in a pod with fsGroup: root:fsGroup, 0440.
TEST(KeyAccessTest, AFileOfRootsMayBeReadByAGroupOfTheReader) {
  const Reader reader{10001, {10001, 20000}};
  for (const mode_t mode : {0440, 0640, 0400, 0600}) {
    for (const gid_t group : {10001u, 20000u}) {
      EXPECT_EQ(WhyKeyIsUnsafe({S_IFREG | mode, 0, group}, reader), "") << std::oct << mode;
    }
  }
  for (const mode_t mode : {0660, 0644, 0444, 0650, 0642, 0641, 0460}) {
    EXPECT_NE(WhyKeyIsUnsafe({S_IFREG | mode, 0, 20000}, reader), "") << std::oct << mode;
  }
  EXPECT_NE(WhyKeyIsUnsafe({S_IFREG | 0440, 0, 30000}, reader), "") << "a group of others";
}

TEST(KeyAccessTest, AFileOfSomebodyElsesIsRefusedAndTheReasonSaysWhatItIs) {
  const Reader reader{10001, {10001}};
  EXPECT_EQ(WhyKeyIsUnsafe({S_IFREG | 0640, 1000, 10001}, reader),
            "expected a key of this user (10001) or of root that only its owner can read (mode "
            "0600), or of root and read by one of this process's groups too (mode 0640); found "
            "mode 0640, user 1000, group 10001");
  EXPECT_NE(WhyKeyIsUnsafe({S_IFREG | 0600, 1000, 10001}, reader), "");
  EXPECT_NE(WhyKeyIsUnsafe({S_IFREG | 0600, 1000, 0}, Reader{0, {0}}), "") << "root can read it";
}

TEST(KeyAccessTest, TheReaderIsThisProcess) {
  const Reader self = Reader::Self();
  EXPECT_EQ(self.user, ::geteuid());
  EXPECT_THAT(self.groups, ::testing::Contains(::getegid()));
}

TEST_F(TlsFilesTest, RefusesTheKeyOfAnotherCertificate) {
  TlsIdentity mixed = good_;
  mixed.private_key_pem = authority_of_all_.Issue("conclave://test/worker/w1").private_key_pem;
  Write(mixed);
  ExpectRefused("own.key", "the key of the certificate");
}

TEST_F(TlsFilesTest, RefusesACertificateThatHasExpired) {
  Write(authority_of_all_.Issue("conclave://test/worker/w0", -1));
  ExpectRefused("own.crt", "expired");
}

}  // namespace
}  // namespace conclave::transport
