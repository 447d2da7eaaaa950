// A certificate authority for trying mutual TLS out: what `conclave cluster certs` writes. A real
// cluster takes its certificates from the operator's own authority; all that conclave asks of them
// is the URI name that RoleOfPeer reads.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::transport {

struct AuthorityOptions {
  // In the URI name of each certificate: conclave://<cluster>/<role>/<role>.
  std::string cluster = "test";
  // Names and addresses that the certificates are good for, such as "127.0.0.1" and "worker-3".
  std::vector<std::string> hosts = {"127.0.0.1", "localhost"};
  int days = 30;
};

// Writes to `folder`, which is made if need be and must not hold such files yet: ca.pem,
// ca-key.pem, and for each of router, worker, frontend, operator and client ROLE.pem and
// ROLE-key.pem (P-256; keys with mode 0600). Returns the paths. kInvalidArgument "usage" for a
// cluster or host that no certificate can hold, "folder_not_empty", "file_write_error".
absl::StatusOr<std::vector<std::string>> WriteTestAuthority(const std::string& folder,
                                                            const AuthorityOptions& options);

}  // namespace conclave::transport
