// Reading recordings: JSON files and the tensors beside them.
#pragma once

#include <boost/json.hpp>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/tensor/dtype.h"

namespace conclave::golden {

absl::StatusOr<boost::json::value> ReadJson(const std::string& path);
// One value per line.
absl::StatusOr<std::vector<boost::json::value>> ReadJsonLines(const std::string& path);
absl::StatusOr<std::string> ReadBytes(const std::string& path);

bool Exists(const std::string& path);
// Names of the folders in `path`, sorted.
std::vector<std::string> FoldersIn(const std::string& path);

std::string Str(const boost::json::value& value);
std::vector<int32_t> Ints(const boost::json::value& array);

// A safetensors file, copied into memory.
class TensorFile {
 public:
  static absl::StatusOr<TensorFile> Open(const std::string& path);

  struct Tensor {
    DType dtype = DType::kF32;
    std::vector<int64_t> shape;
    std::string bytes;

    // Of an f32 tensor.
    std::vector<float> Floats() const;
    // Of an i32 or i64 tensor.
    std::vector<int32_t> Int32s() const;
  };

  // Null when absent: recordings may lack tensors.
  const Tensor* Find(const std::string& name) const;

 private:
  std::map<std::string, Tensor> tensors_;
};

}  // namespace conclave::golden
