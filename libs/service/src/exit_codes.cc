#include "conclave/service/exit_codes.h"

#include <cstdio>
#include <string_view>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::service {
namespace {

constexpr size_t kLineBytesMax = 2048;

constexpr std::pair<std::string_view, ExitCode> kCodes[] = {
    {"usage", ExitCode::kUsage},
    {"config_file", ExitCode::kConfig},
    {"config_syntax", ExitCode::kConfig},
    {"config_unknown_key", ExitCode::kConfig},
    {"config_value", ExitCode::kConfig},
    {"bind", ExitCode::kNetwork},
    {"connect", ExitCode::kNetwork},
    {"http", ExitCode::kNetwork},
    {"tls_config", ExitCode::kConfig},
    {"state_dir", ExitCode::kState},
    {"state_dir_locked", ExitCode::kState},
    {"state_write_failed", ExitCode::kState},
    {"state_corrupt", ExitCode::kState},
    {"internal", ExitCode::kInternal},
};

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status, ExitCode otherwise) {
  if (status.ok()) {
    return ExitCode::kDone;
  }
  const std::string reason = ReasonOf(status);
  for (const auto& [word, code] : kCodes) {
    if (reason == word) {
      return code;
    }
  }
  return otherwise;
}

std::string ErrorLine(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  return "error: " + (reason.empty() ? std::string("internal") : reason) + ": " +
         observability::Printable(MessageOf(status), kLineBytesMax);
}

int Fail(const absl::Status& status, ExitCode otherwise) {
  std::fprintf(stderr, "%s\n", ErrorLine(status).c_str());
  return static_cast<int>(ExitCodeOf(status, otherwise));
}

}  // namespace conclave::service
