#include "files.h"

#include <fstream>
#include <iterator>

namespace conclave::image {

Bytes ReadFileBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

std::string GoldenPath(const std::string& name) {
  return std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/data/images/" + name;
}

}  // namespace conclave::image
