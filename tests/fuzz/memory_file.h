// The input of a fuzz target as a file, for readers that take one.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "conclave/base/check.h"
#include "file.h"

namespace conclave::checkpoint {

// A file in memory with these bytes.
inline OpenedFile MemoryFile(const uint8_t* bytes, size_t size) {
  OpenedFile file{.fd = UniqueFd(::memfd_create("input", MFD_CLOEXEC)),
                  .name = "input",
                  .path = "input",
                  .stamp = {}};
  CONCLAVE_CHECK(file.fd.get() >= 0);
  CONCLAVE_CHECK(::write(file.fd.get(), bytes, size) == static_cast<ssize_t>(size));
  file.stamp.size_bytes = static_cast<int64_t>(size);
  return file;
}

}  // namespace conclave::checkpoint
