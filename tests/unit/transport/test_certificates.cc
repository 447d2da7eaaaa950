#include "test_certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdlib>

namespace conclave::transport {
namespace {

constexpr long kSecondsPerDay = 24 * 3600;

void Expect(bool is_good) {
  if (!is_good) {
    std::abort();
  }
}

template <typename Write>
std::string ToPem(const Write& write) {
  BIO* bio = BIO_new(BIO_s_mem());
  Expect(write(bio) == 1);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio, &text);
  std::string pem(text, static_cast<size_t>(size));
  BIO_free(bio);
  return pem;
}

void AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  Expect(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

X509* NewCertificate(EVP_PKEY* key, const char* name, long serial, int days_left) {
  X509* certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -2 * kSecondsPerDay);
  X509_gmtime_adj(X509_getm_notAfter(certificate), days_left * kSecondsPerDay);
  X509_set_pubkey(certificate, key);
  Expect(X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                                    reinterpret_cast<const unsigned char*>(name), -1, -1, 0) == 1);
  return certificate;
}

std::string PemOf(X509* certificate) {
  return ToPem([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

std::string PemOf(EVP_PKEY* key) {
  return ToPem([&](BIO* bio) {
    return PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  });
}

}  // namespace

struct TestAuthority::Pair {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = NewCertificate(key, "test authority", 1, 1);
  ~Pair() {
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
};

TestAuthority::TestAuthority() : own_(std::make_unique<Pair>()) {
  X509* own = own_->certificate;
  X509_set_issuer_name(own, X509_get_subject_name(own));
  AddExtension(own, own, NID_basic_constraints, "critical,CA:TRUE");
  Expect(X509_sign(own, own_->key, EVP_sha256()) > 0);
}

TestAuthority::~TestAuthority() = default;

std::string TestAuthority::pem() const { return PemOf(own_->certificate); }

TlsIdentity TestAuthority::Issue(const std::string& uri, int days_left) const {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = NewCertificate(key, "test process", 2, days_left);
  X509_set_issuer_name(certificate, X509_get_subject_name(own_->certificate));
  AddExtension(certificate, own_->certificate, NID_subject_alt_name,
               "IP:127.0.0.1" + (uri.empty() ? "" : ",URI:" + uri));
  Expect(X509_sign(certificate, own_->key, EVP_sha256()) > 0);
  TlsIdentity tls{PemOf(certificate), PemOf(key), pem()};
  X509_free(certificate);
  EVP_PKEY_free(key);
  return tls;
}

}  // namespace conclave::transport
