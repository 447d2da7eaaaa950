#include "conclave/transport/authority.h"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>

#include "conclave/base/status.h"

namespace conclave::transport {
namespace {

constexpr long kSecondsPerDay = 24L * 3600;
// Clocks of a cluster differ a little.
constexpr long kSlackSeconds = 300;

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
using Extension = std::unique_ptr<X509_EXTENSION, Free<&X509_EXTENSION_free>>;

absl::Status OpenSslError(const char* what) {
  return Error(absl::StatusCode::kInternal, "tls_config",
               std::string("OpenSSL refuses to make ") + what);
}

// Letters, digits, dots, dashes, colons: what goes into a certificate's list of names unquoted.
bool IsName(const std::string& text) {
  return !text.empty() && text.size() <= 253 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == ':' || c == '_';
  });
}

bool IsAddress(const std::string& host) {
  return host.find(':') != std::string::npos ||
         host.find_first_not_of("0123456789.") == std::string::npos;
}

struct Issued {
  Key key;
  Certificate certificate;
};

bool AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  return extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1;
}

// A certificate of `issuer` (null: of itself) over a new key; `names` is its subjectAltName, empty
// for an authority.
absl::StatusOr<Issued> Issue(const std::string& common_name, const std::string& names, int days,
                             const Issued* issuer) {
  Issued out{Key(EVP_EC_gen("P-256")), Certificate(X509_new())};
  if (out.key == nullptr || out.certificate == nullptr) {
    return OpenSslError("a key");
  }
  X509* certificate = out.certificate.get();
  uint64_t serial = 0;
  const bool has_serial =
      RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) == 1;
  const std::string not_a_ca = "critical,CA:FALSE";
  const std::string a_ca = "critical,CA:TRUE,pathlen:0";
  X509* issuer_certificate = issuer == nullptr ? certificate : issuer->certificate.get();
  const bool is_made =
      has_serial && X509_set_version(certificate, 2) == 1 &&
      ASN1_INTEGER_set_uint64(X509_get_serialNumber(certificate), serial >> 1) == 1 &&
      X509_gmtime_adj(X509_getm_notBefore(certificate), -kSlackSeconds) != nullptr &&
      X509_gmtime_adj(X509_getm_notAfter(certificate), days * kSecondsPerDay) != nullptr &&
      X509_set_pubkey(certificate, out.key.get()) == 1 &&
      X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                                 reinterpret_cast<const unsigned char*>(common_name.c_str()), -1,
                                 -1, 0) == 1 &&
      X509_set_issuer_name(certificate, X509_get_subject_name(issuer_certificate)) == 1 &&
      AddExtension(certificate, issuer_certificate, NID_basic_constraints,
                   issuer == nullptr ? a_ca : not_a_ca) &&
      AddExtension(certificate, issuer_certificate, NID_key_usage,
                   issuer == nullptr ? "critical,keyCertSign" : "critical,digitalSignature") &&
      (issuer == nullptr ||
       (AddExtension(certificate, issuer_certificate, NID_ext_key_usage, "serverAuth,clientAuth") &&
        AddExtension(certificate, issuer_certificate, NID_subject_alt_name, names))) &&
      X509_sign(certificate, issuer == nullptr ? out.key.get() : issuer->key.get(), EVP_sha256()) >
          0;
  return is_made ? absl::StatusOr<Issued>(std::move(out))
                 : absl::StatusOr<Issued>(OpenSslError("a certificate"));
}

// Never over a file that is there.
absl::Status WriteNew(const std::string& path, mode_t mode, const Bio& pem) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(pem.get(), &text);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd < 0) {
    const bool exists = errno == EEXIST;
    return InvalidArgument(
        exists ? "folder_not_empty" : "file_write_error",
        path + ": expected to write a new file, found " +
            (exists ? std::string("one there") : std::generic_category().message(errno)));
  }
  const bool is_written = size > 0 && ::write(fd, text, static_cast<size_t>(size)) == size;
  const bool is_closed = ::close(fd) == 0;
  return is_written && is_closed
             ? absl::OkStatus()
             : InvalidArgument("file_write_error",
                               path + ": " + std::generic_category().message(errno));
}

absl::Status WritePair(const std::string& folder, const std::string& name, const Issued& issued,
                       std::vector<std::string>& paths) {
  const Bio certificate(BIO_new(BIO_s_mem()));
  const Bio key(BIO_new(BIO_s_mem()));
  if (certificate == nullptr || key == nullptr ||
      PEM_write_bio_X509(certificate.get(), issued.certificate.get()) != 1 ||
      PEM_write_bio_PrivateKey(key.get(), issued.key.get(), nullptr, nullptr, 0, nullptr,
                               nullptr) != 1) {
    return OpenSslError("PEM");
  }
  const std::string base = folder + "/" + name;
  CONCLAVE_RETURN_IF_ERROR(WriteNew(base + ".pem", 0644, certificate));
  paths.push_back(base + ".pem");
  CONCLAVE_RETURN_IF_ERROR(WriteNew(base + "-key.pem", 0600, key));
  paths.push_back(base + "-key.pem");
  return absl::OkStatus();
}

// Says who the holder is; in these certificates everybody has the name of the role.
std::string UriOf(const std::string& cluster, const std::string& role) {
  return "URI:conclave://" + cluster + "/" + role + "/" + role;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> WriteTestAuthority(const std::string& folder,
                                                            const AuthorityOptions& options) {
  std::vector<std::string> words = options.hosts;
  words.push_back(options.cluster);
  for (const std::string& word : words) {
    if (!IsName(word)) {
      return InvalidArgument("usage",
                             "certificates: expected names of letters, digits, dots and dashes, "
                             "found another");
    }
  }
  if (::mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) {
    return InvalidArgument("file_write_error",
                           folder + ": " + std::generic_category().message(errno));
  }
  std::string names;
  for (const std::string& host : options.hosts) {
    names += (IsAddress(host) ? "IP:" : "DNS:") + host + ",";
  }
  std::vector<std::string> paths;
  CONCLAVE_ASSIGN_OR_RETURN(const Issued authority,
                            Issue("conclave test authority", "", options.days, nullptr));
  CONCLAVE_RETURN_IF_ERROR(WritePair(folder, "ca", authority, paths));
  for (const std::string role : {"router", "worker", "frontend", "operator", "client"}) {
    CONCLAVE_ASSIGN_OR_RETURN(
        const Issued issued,
        Issue("conclave " + role, names + UriOf(options.cluster, role), options.days, &authority));
    CONCLAVE_RETURN_IF_ERROR(WritePair(folder, role, issued, paths));
  }
  return paths;
}

}  // namespace conclave::transport
