#include "recording.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

absl::StatusOr<DType> DTypeOf(const std::string& word) {
  if (word == "F32") return DType::kF32;
  if (word == "I32") return DType::kI32;
  if (word == "I64") return DType::kI64;
  if (word == "U8") return DType::kU8;
  return InvalidArgument("recording", "a recording holds tensors of type " + word);
}

}  // namespace

absl::StatusOr<std::string> ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return NotFound("recording", path + ": cannot be read");
  }
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

absl::StatusOr<json::value> ReadJson(const std::string& path) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  boost::system::error_code error;
  json::value value = json::parse(bytes, error);
  if (error) {
    return InvalidArgument("recording", path + ": is no JSON");
  }
  return value;
}

absl::StatusOr<std::vector<json::value>> ReadJsonLines(const std::string& path) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  std::vector<json::value> values;
  // At line feeds only: a recorded string may hold other line separators.
  std::istringstream stream(bytes);
  std::string line;
  while (std::getline(stream, line)) {
    boost::system::error_code error;
    values.push_back(json::parse(line, error));
    if (error) {
      return InvalidArgument("recording",
                             path + ":" + std::to_string(values.size()) + ": is no JSON");
    }
  }
  return values;
}

bool Exists(const std::string& path) { return std::filesystem::exists(path); }

std::vector<std::string> FoldersIn(const std::string& path) {
  std::vector<std::string> names;
  if (Exists(path)) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.is_directory()) {
        names.push_back(entry.path().filename().string());
      }
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string Str(const json::value& value) { return std::string(value.as_string()); }

std::vector<int32_t> Ints(const json::value& array) {
  std::vector<int32_t> out;
  for (const json::value& value : array.as_array()) {
    out.push_back(value.to_number<int32_t>());
  }
  return out;
}

std::vector<float> TensorFile::Tensor::Floats() const {
  CONCLAVE_CHECK(dtype == DType::kF32);
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

std::vector<int32_t> TensorFile::Tensor::Int32s() const {
  CONCLAVE_CHECK(dtype == DType::kI32 || dtype == DType::kI64);
  const size_t width = SizeOf(dtype);
  std::vector<int32_t> out(bytes.size() / width);
  for (size_t i = 0; i < out.size(); ++i) {
    // Little endian: the low half of an i64 holds every id.
    std::memcpy(&out[i], bytes.data() + i * width, sizeof(int32_t));
  }
  return out;
}

absl::StatusOr<TensorFile> TensorFile::Open(const std::string& path) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  uint64_t header_size = 0;
  if (bytes.size() < sizeof header_size) {
    return InvalidArgument("recording", path + ": too short");
  }
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  if (header_size > bytes.size() - sizeof header_size) {
    return InvalidArgument("recording", path + ": header is longer than the file");
  }
  const size_t start = sizeof header_size + header_size;
  TensorFile file;
  const json::value header =
      json::parse(std::string_view(bytes).substr(sizeof header_size, header_size));
  for (const auto& [key, value] : header.as_object()) {
    if (key == "__metadata__") {
      continue;
    }
    const json::object& entry = value.as_object();
    Tensor tensor;
    CONCLAVE_ASSIGN_OR_RETURN(tensor.dtype, DTypeOf(Str(entry.at("dtype"))));
    for (const json::value& dim : entry.at("shape").as_array()) {
      tensor.shape.push_back(dim.to_number<int64_t>());
    }
    const auto first = entry.at("data_offsets").as_array().at(0).to_number<size_t>();
    const auto last = entry.at("data_offsets").as_array().at(1).to_number<size_t>();
    if (first > last || last > bytes.size() - start) {
      return InvalidArgument("recording",
                             path + ": tensor " + std::string(key) + " lies outside the file");
    }
    tensor.bytes = bytes.substr(start + first, last - first);
    file.tensors_.emplace(std::string(key), std::move(tensor));
  }
  return file;
}

const TensorFile::Tensor* TensorFile::Find(const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace conclave::golden
