// golden_check DIR...: runs every case of folders in the layout of tests/golden/data and prints a
// table.
//
// With --router (and the three files of TLS) the experts of a case are computed by the workers of
// that cluster, which must hold the case's checkpoint in f32: tests/e2e/cluster_golden_test.py.
//
// A DIR is a whole recording (cases/, images/, tokenizers/, templates.json, gating.json, shapes/;
// whatever is there is checked) or one case folder. Exits with 0 when nothing failed, 1 otherwise,
// 2 on a usage error. What a later version will support is listed as "not yet supported" and never
// counted as passed.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/service/address.h"
#include "conclave/transport/grpc_support.h"
#include "recording.h"

namespace conclave::golden {
namespace {

void CheckRoot(const std::string& root, const CheckOptions& options, Report& report) {
  const std::string cases = root + "/cases/";
  for (const std::string& name : FoldersIn(cases)) {
    CheckCase(std::string(cases).append(name), root + "/images", options, report);
  }
  if (Exists(root + "/images/expected.json")) {
    CheckImages(root, report);
  }
  const std::string tokenizers = root + "/tokenizers/";
  for (const std::string& name : FoldersIn(tokenizers)) {
    CheckTokenizer(std::string(tokenizers).append(name), report);
  }
  if (Exists(root + "/templates.json")) {
    CheckTemplates(root, report);
  }
  if (Exists(root + "/gating.json")) {
    CheckGating(root, options, report);
  }
  if (Exists(root + "/shapes")) {
    for (const auto& entry : std::filesystem::directory_iterator(root + "/shapes")) {
      CheckShapes(entry.path().string(), report);
    }
  }
}

int Main(const std::vector<std::string>& args) {
  CheckOptions options;
  options.isa = kernels::SupportedIsas().back();
  std::vector<std::string> folders;
  std::array<std::string, 3> tls_files;
  for (size_t i = 0; i < args.size(); ++i) {
    const bool has_value = i + 1 < args.size();
    if (args[i] == "--isa" && has_value) {
      const auto isa = kernels::ResolveIsa(args[++i]);
      if (!isa.ok()) {
        std::fprintf(stderr, "error: --isa: %s\n", std::string(isa.status().message()).c_str());
        return 2;
      }
      options.isa = *isa;
    } else if (args[i] == "--workers" && has_value) {
      options.num_workers = std::atoi(args[++i].c_str());
    } else if (args[i] == "--threads" && has_value) {
      options.num_threads = std::atoi(args[++i].c_str());
    } else if (args[i] == "--router" && has_value) {
      const auto address = service::ParseAddress(args[++i]);
      if (!address.ok()) {
        std::fprintf(stderr, "error: --router: %s\n", MessageOf(address.status()).c_str());
        return 2;
      }
      options.cluster.emplace().router = {*address};
    } else if (args[i] == "--tls-cert" && has_value) {
      tls_files[0] = args[++i];
    } else if (args[i] == "--tls-key" && has_value) {
      tls_files[1] = args[++i];
    } else if (args[i] == "--tls-ca" && has_value) {
      tls_files[2] = args[++i];
    } else if (args[i].starts_with("--")) {
      folders.clear();
      break;
    } else {
      folders.push_back(args[i]);
    }
  }
  if (folders.empty() || options.num_workers < 1 || options.num_threads < 1) {
    std::fprintf(stderr,
                 "usage: golden_check [--isa auto|NAME] [--workers N] [--threads N]\n"
                 "                    [--router HOST:PORT [--tls-cert FILE --tls-key FILE "
                 "--tls-ca FILE]] DIR...\n");
    return 2;
  }
  auto tls = transport::ReadTlsFiles(tls_files[0], tls_files[1], tls_files[2]);
  if (!tls.ok()) {
    std::fprintf(stderr, "error: %s\n", MessageOf(tls.status()).c_str());
    return 2;
  }
  options.tls = *std::move(tls);
  Report report;
  for (const std::string& folder : folders) {
    if (Exists(folder + "/case.json")) {
      const std::string images =
          std::filesystem::path(folder).parent_path().parent_path() / "images";
      CheckCase(folder, images, options, report);
    } else if (std::filesystem::is_directory(folder)) {
      const int before = report.num_passed() + report.num_failed() + report.num_not_supported();
      CheckRoot(folder, options, report);
      if (report.num_passed() + report.num_failed() + report.num_not_supported() == before) {
        report.Error(folder, "", "holds no recording");
      }
    } else {
      report.Error(folder, "", "is no folder");
    }
  }
  report.Print();
  return report.num_failed() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace conclave::golden

int main(int argc, char** argv) { return conclave::golden::Main({argv + 1, argv + argc}); }
