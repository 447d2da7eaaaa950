// The key that allows operators to change a cluster over HTTP (--admin-key-file).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "conclave/base/mutex.h"

namespace conclave::cli {

// Any thread.
class AdminKey {
 public:
  // `file` empty: there is no key, and nothing may be changed.
  explicit AdminKey(std::string file) : file_(std::move(file)) {}

  bool is_set() const { return !file_.empty(); }

  // Reads the file: one line of 16 to 512 printable characters, which others cannot read. Again
  // after SIGHUP; what was read before stays when it fails. "admin_key".
  absl::Status Load();

  // `authorization`: "Bearer KEY". kPermissionDenied ("admin_key") where there is no key,
  // kUnauthenticated ("admin_key") for another one or none.
  absl::Status Check(std::string_view authorization) const;

 private:
  const std::string file_;
  mutable Mutex mu_;
  std::string key_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::cli
