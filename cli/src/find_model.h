// Where the shipped demo model is when no --model is given.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::cli {

struct FoundModel {
  std::string folder;
  std::string where;  // "beside the binary", ...: said to the user
};

// The first of these that holds a config.json: models/demo beside the binary; models/demo in `home`
// ($CONCLAVE_HOME, may be empty); the installed share folder (<prefix>/share/conclave/models/demo
// for <prefix>/bin/conclave); ../../ models/demo of the binary, which is the source tree's for a
// binary in its build/<preset>. kNotFound
// ("model_not_found") names all that were tried.
absl::StatusOr<FoundModel> FindDemoModel(const std::string& binary, const std::string& home);

}  // namespace conclave::cli
