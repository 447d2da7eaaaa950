// The checks of golden_check, one per kind of recording. `root` is a folder in the layout of
// tests/golden/data.
#pragma once

#include <optional>
#include <string>

#include "conclave/kernels/isa.h"
#include "membership.h"
#include "report.h"

namespace conclave::golden {

struct CheckOptions {
  kernels::Isa isa = kernels::Isa::kScalar;
  int num_threads = 1;
  int num_workers = 1;
  // A cluster whose workers hold the case's experts, in f32; no address: in this process.
  std::optional<cli::MembershipSettings> cluster;
  transport::TlsIdentity tls;
};

// One case folder: case.json, checkpoint/, expected.safetensors; pictures come from `images`.
void CheckCase(const std::string& folder, const std::string& images, const CheckOptions& options,
               Report& report);
void CheckImages(const std::string& root, Report& report);
void CheckTokenizer(const std::string& folder, Report& report);
void CheckTemplates(const std::string& root, Report& report);
void CheckGating(const std::string& root, const CheckOptions& options, Report& report);
void CheckShapes(const std::string& file, Report& report);

}  // namespace conclave::golden
