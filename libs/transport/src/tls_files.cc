#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "conclave/base/status.h"
#include "conclave/transport/grpc_support.h"
#include "key_access.h"

namespace conclave::transport {
namespace {

constexpr off_t kPemBytesMax = 1 << 20;

template <auto kFree>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<&BIO_free>>;
using Certificate = std::unique_ptr<X509, Free<&X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<&EVP_PKEY_free>>;

absl::Status TlsError(const std::string& path, const std::string& why) {
  return InvalidArgument("tls_config", path + ": " + why);
}

absl::StatusOr<std::string> ReadPem(const std::string& path, bool is_secret) {
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) {
    return TlsError(path, errno == ENOENT ? "expected a file, found none"
                                          : "expected a file, found one that cannot be reached");
  }
  if (!S_ISREG(found.st_mode) || found.st_size > kPemBytesMax) {
    return TlsError(path, "expected a plain file of at most 1 MiB, found something else");
  }
  if (is_secret) {
    const std::string why =
        WhyKeyIsUnsafe({found.st_mode, found.st_uid, found.st_gid}, Reader::Self());
    if (!why.empty()) {
      return TlsError(path, why);
    }
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) {
    return TlsError(path, "expected a file that can be read, found none");
  }
  return text.str();
}

Bio Open(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// No terminal is asked for a pass phrase.
int NoPassPhrase(char* /*buffer*/, int /*size*/, int /*is_writing*/, void* /*context*/) {
  return -1;
}

absl::StatusOr<Certificate> ParseCertificate(const std::string& path, const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(Open(pem).get(), nullptr, &NoPassPhrase, nullptr));
  if (certificate == nullptr) {
    return TlsError(path, "expected a certificate in PEM, found none");
  }
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) <= 0) {
    return TlsError(path, "expected a certificate that is good today, found one that has expired");
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) >= 0) {
    return TlsError(path, "expected a certificate that is good today, found one for later");
  }
  return certificate;
}

}  // namespace

Reader Reader::Self() {
  Reader self;
  self.user = ::geteuid();
  const int num_groups = ::getgroups(0, nullptr);
  if (num_groups > 0) {
    self.groups.resize(static_cast<size_t>(num_groups));
    self.groups.resize(
        static_cast<size_t>(std::max(0, ::getgroups(num_groups, self.groups.data()))));
  }
  self.groups.push_back(::getegid());
  return self;
}

std::string WhyKeyIsUnsafe(const KeyFileAccess& file, const Reader& reader) {
  constexpr uid_t kRoot = 0;
  const mode_t others = file.mode & (S_IRWXG | S_IRWXO);
  const bool is_of_group =
      std::find(reader.groups.begin(), reader.groups.end(), file.group) != reader.groups.end();
  const bool is_group_allowed = file.owner == kRoot && is_of_group;
  if ((file.owner == reader.user || file.owner == kRoot) &&
      (others == 0 || (others == S_IRGRP && is_group_allowed))) {
    return "";
  }
  std::ostringstream why;
  why << "expected a key of this user (" << reader.user
      << ") or of root that only its owner can read (mode 0600), or of root and read by one of "
         "this process's groups too (mode 0640); found mode 0"
      << std::oct << (file.mode & (S_IRWXU | S_IRWXG | S_IRWXO)) << std::dec << ", user "
      << file.owner << ", group " << file.group;
  return why.str();
}

absl::StatusOr<TlsIdentity> ReadTlsFiles(const std::string& certificate, const std::string& key,
                                         const std::string& authority) {
  TlsIdentity tls;
  if (certificate.empty() && key.empty() && authority.empty()) {
    return tls;
  }
  if (certificate.empty() || key.empty() || authority.empty()) {
    return InvalidArgument("tls_config",
                           "TLS: expected a certificate, a key and an authority, found only some");
  }
  CONCLAVE_ASSIGN_OR_RETURN(tls.certificate_pem, ReadPem(certificate, false));
  CONCLAVE_ASSIGN_OR_RETURN(tls.private_key_pem, ReadPem(key, true));
  CONCLAVE_ASSIGN_OR_RETURN(tls.authority_pem, ReadPem(authority, false));
  CONCLAVE_ASSIGN_OR_RETURN(const Certificate own,
                            ParseCertificate(certificate, tls.certificate_pem));
  const Key secret(
      PEM_read_bio_PrivateKey(Open(tls.private_key_pem).get(), nullptr, &NoPassPhrase, nullptr));
  if (secret == nullptr) {
    return TlsError(key, "expected a private key in PEM without a pass phrase, found none");
  }
  if (X509_check_private_key(own.get(), secret.get()) != 1) {
    return TlsError(key, "expected the key of the certificate, found another");
  }
  CONCLAVE_RETURN_IF_ERROR(ParseCertificate(authority, tls.authority_pem).status());
  return tls;
}

}  // namespace conclave::transport
