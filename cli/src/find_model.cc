#include "find_model.h"

#include <filesystem>
#include <system_error>

#include "conclave/base/status.h"

namespace conclave::cli {

absl::StatusOr<FoundModel> FindDemoModel(const std::string& binary, const std::string& home) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(binary).parent_path();
  std::vector<FoundModel> candidates;
  if (!binary.empty()) {
    candidates.push_back({(folder / "models/demo").string(), "beside the binary"});
  }
  if (!home.empty()) {
    candidates.push_back({(fs::path(home) / "models/demo").string(), "in CONCLAVE_HOME"});
  }
  if (!binary.empty()) {
    candidates.push_back({(folder / "../share/conclave/models/demo").lexically_normal().string(),
                          "in the installed share folder"});
    candidates.push_back(
        {(folder / "../../models/demo").lexically_normal().string(), "in the source tree"});
  }
  std::string tried;
  for (FoundModel& candidate : candidates) {
    std::error_code error;
    if (fs::is_regular_file(fs::path(candidate.folder) / "config.json", error)) {
      return std::move(candidate);
    }
    tried += (tried.empty() ? "" : ", ") + candidate.folder;
  }
  return NotFound("model_not_found", "no --model, and the demo model is in none of " + tried);
}

}  // namespace conclave::cli
