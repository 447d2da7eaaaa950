// The files of page/, which the build puts into the binary.
#pragma once

#include <span>
#include <string_view>

namespace conclave::cli {

struct PageFile {
  std::string_view path;  // "/index.html", "/app/main.js"
  std::string_view type;  // media type
  std::string_view bytes;
};

std::span<const PageFile> PageFiles();

}  // namespace conclave::cli
