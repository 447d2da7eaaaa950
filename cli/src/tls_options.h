// The flags --tls-cert, --tls-key and --tls-ca, which the commands of a cluster have in common.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "conclave/service/options.h"

namespace conclave::cli {

// Paths of PEM files; all empty: no TLS.
struct TlsFileSettings {
  std::string certificate;
  std::string key;
  std::string authority;

  bool is_set() const { return !certificate.empty(); }
};

// `owner`: whose certificate it is, as in "this worker". The values live as long as `settings`.
void AddTlsFileOptions(service::OptionSet& set, TlsFileSettings& settings,
                       const std::string& owner);

// "usage" where only some of the three are given.
absl::Status CheckTlsFiles(const TlsFileSettings& settings);

}  // namespace conclave::cli
