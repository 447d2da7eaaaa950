// Names and shapes of all tensors at the published sizes, against what the published config.json of
// that name (data/configs) implies.
#include <unistd.h>

#include <filesystem>
#include <map>

#include "checks.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/tensor_list.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

// Beside the sources, not in the checked folder: recordings do not hold them.
const fs::path& Configs() {
  static const fs::path folder = fs::path(CONCLAVE_SOURCE_DIR) / "tests/golden/data/configs";
  return folder;
}

// A folder that goes with the scope.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "conclave-shapes-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data()) == nullptr ? "" : pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

void CheckShapes(const std::string& file, Report& report) {
  const std::string stem = fs::path(file).stem().string();
  const std::string name = "shapes/" + stem;
  const fs::path config = Configs() / (stem + ".json");
  if (!fs::exists(config)) {
    report.NotSupported(name, "no published config of that name");
    return;
  }
  const absl::StatusOr<json::value> recording = ReadJson(file);
  if (!recording.ok()) {
    report.Error(name, "read", std::string(recording.status().message()));
    return;
  }
  const TemporaryFolder folder;
  fs::copy_file(config, folder.path() + "/config.json");
  const absl::StatusOr<checkpoint::ModelDesc> desc = checkpoint::ReadModelDesc(folder.path());
  if (!desc.ok()) {
    report.Error(name, "config", desc.status().ToString());
    return;
  }
  std::map<std::string, std::vector<int64_t>> found;
  int64_t parameters = 0;
  for (const checkpoint::ExpectedTensor& tensor : checkpoint::ExpectedTensors(*desc)) {
    found[tensor.name] = tensor.shape;
    parameters += tensor.num_elements();
  }
  const json::object& expected = recording->as_object();
  std::string difference;
  for (const auto& [key, shape] : expected.at("shapes").as_object()) {
    std::vector<int64_t> dims;
    for (const json::value& dim : shape.as_array()) {
      dims.push_back(dim.to_number<int64_t>());
    }
    const auto it = found.find(std::string(key));
    if (difference.empty() && (it == found.end() || it->second != dims)) {
      difference = std::string(key);
    }
  }
  const size_t count = expected.at("shapes").as_object().size();
  report.Exact(name, "names and shapes (" + std::to_string(count) + ")",
               difference.empty() && found.size() == count,
               "first: " + difference + ", found " + std::to_string(found.size()) + " tensors");
  report.Exact(name, "parameters", parameters == expected.at("parameters").to_number<int64_t>(),
               "found " + std::to_string(parameters));
}

}  // namespace conclave::golden
