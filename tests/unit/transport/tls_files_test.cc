// Goal: a process starts with certificate files that are right, and says what is wrong with others.
// Method: files made by OpenSSL, each broken in one way.
#include <sys/stat.h>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"
#include "conclave/transport/grpc_support.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
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
  ASSERT_EQ(::chmod(key_.c_str(), 0640), 0);
  ExpectRefused("own.key", "only its owner");
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
