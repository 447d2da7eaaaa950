#include "tls_options.h"

#include <utility>

#include "conclave/base/status.h"

namespace conclave::cli {

void AddTlsFileOptions(service::OptionSet& set, TlsFileSettings& settings,
                       const std::string& owner) {
  const auto add_file = [&set](const char* name, std::string help, std::string* target) {
    set.AddPath(
        {.name = name, .help = std::move(help), .group = "Network", .unset_means = "no TLS"},
        target, service::PathKind::kExistingFile);
  };
  add_file("tls-cert", "certificate of " + owner + ", PEM", &settings.certificate);
  add_file("tls-key", "its private key, PEM", &settings.key);
  add_file("tls-ca", "authority of all certificates of the cluster, PEM", &settings.authority);
}

absl::Status CheckTlsFiles(const TlsFileSettings& settings) {
  if (settings.certificate.empty() != settings.key.empty() ||
      settings.certificate.empty() != settings.authority.empty()) {
    return InvalidArgument("usage", "--tls-cert, --tls-key, --tls-ca: expected all three or none");
  }
  return absl::OkStatus();
}

}  // namespace conclave::cli
