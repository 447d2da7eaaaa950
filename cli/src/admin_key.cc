#include "admin_key.h"

#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "conclave/base/status.h"

namespace conclave::cli {
namespace {

constexpr size_t kKeyMin = 16;
constexpr size_t kKeyMax = 512;

// In a time that does not tell how much of it was right.
bool IsEqual(std::string_view a, std::string_view b) {
  unsigned char differs = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    differs = static_cast<unsigned char>(differs | (a[i] ^ b[i]));
  }
  return differs == 0;
}

}  // namespace

absl::Status AdminKey::Load() {
  if (!is_set()) {
    return absl::OkStatus();
  }
  const auto bad = [this](const std::string& why) {
    return InvalidArgument("admin_key", file_ + ": " + why);
  };
  struct stat found {};
  if (::stat(file_.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) {
    return bad("expected a plain file, found none");
  }
  if ((found.st_mode & S_IRWXO) != 0) {
    return bad("expected a file that others cannot read (mode 0600 or 0640)");
  }
  std::ifstream file(file_, std::ios::binary);
  std::string text(kKeyMax + 2, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) {
    text.pop_back();
  }
  const bool is_plain =
      std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (text.size() < kKeyMin || text.size() > kKeyMax || !is_plain) {
    return bad("expected one line of 16 to 512 printable characters without spaces");
  }
  MutexLock lock(mu_);
  key_ = std::move(text);
  return absl::OkStatus();
}

absl::Status AdminKey::Check(std::string_view authorization) const {
  MutexLock lock(mu_);
  if (key_.empty()) {
    return Error(absl::StatusCode::kPermissionDenied, "admin_key",
                 "changes over HTTP are off: this server was started without --admin-key-file");
  }
  constexpr std::string_view kScheme = "Bearer ";
  if (!authorization.starts_with(kScheme) || !IsEqual(authorization.substr(kScheme.size()), key_)) {
    return Error(absl::StatusCode::kUnauthenticated, "admin_key",
                 "expected Authorization: Bearer with the key of --admin-key-file");
  }
  return absl::OkStatus();
}

}  // namespace conclave::cli
