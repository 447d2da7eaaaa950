// The one binary: every role and every tool is a subcommand of it.
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/process.h"

int main(int argc, char** argv) {
  using conclave::service::ExitCode;
  try {
    if (const absl::Status status = conclave::service::PrepareProcess(); !status.ok()) {
      return conclave::service::Fail(status, ExitCode::kInternal);
    }
    std::error_code error;
    const std::string binary = std::filesystem::read_symlink("/proc/self/exe", error).string();
    return conclave::cli::Dispatch({argv + (argc > 0 ? 1 : 0), argv + argc},
                                   conclave::service::ProcessVariables(), binary);
  } catch (const std::exception& error) {
    return conclave::service::Fail(
        conclave::Error(absl::StatusCode::kInternal, "internal", error.what()),
        ExitCode::kInternal);
  }
}
