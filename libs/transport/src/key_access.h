// Who may read the file of a private key.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace conclave::transport {

struct KeyFileAccess {
  mode_t mode = 0;  // of stat; the permission bits count
  uid_t owner = 0;
  gid_t group = 0;
};

struct Reader {
  uid_t user = 0;  // effective
  std::vector<gid_t> groups;
  // Of this process: the effective group and the supplementary ones.
  static Reader Self();
};

// Empty where the key is safe with `reader`: a file of the reader's own or of root's that nobody
// else can read, or one of root's that one of the reader's groups can read and nobody else. The
// latter is what a system's administrator or a kubelet (a secret with defaultMode 0440 in a pod
// with fsGroup) gives to a service; a file of the reader's own needs no group. Otherwise
// "expected ..., found ...".
std::string WhyKeyIsUnsafe(const KeyFileAccess& file, const Reader& reader);

}  // namespace conclave::transport
