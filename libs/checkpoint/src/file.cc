#include "file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>

#include "conclave/base/status.h"

namespace conclave::checkpoint {
namespace {

std::string ErrnoText(int error) { return std::generic_category().message(error); }

// Empty with errno set when `path` does not resolve.
std::string Resolve(const std::string& path) {
  const std::unique_ptr<char, decltype(&std::free)> resolved(::realpath(path.c_str(), nullptr),
                                                             &std::free);
  return resolved ? std::string(resolved.get()) : std::string();
}

FileStamp StampOf(const struct stat& st) {
  return {.device = st.st_dev,
          .inode = st.st_ino,
          .size_bytes = st.st_size,
          .mtime_ns = st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec};
}

bool EndsWith(std::string_view text, std::string_view suffix) { return text.ends_with(suffix); }

// Files of /proc are "regular" and yet no files: their size is 0 and reading them can mean
// anything.
bool IsInProc(int fd) {
  struct statfs fs {};
  return ::fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

std::string KindOf(mode_t mode) {
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

absl::Status Missing(const std::string& name, const std::string& why) {
  return NotFound("model_file_missing", name + ": " + why);
}

// Opens a resolved path for reading and checks that it is a regular file. O_NONBLOCK: opening a
// FIFO must not wait for its writer; it means nothing for regular files.
absl::StatusOr<OpenedFile> OpenResolved(const std::string& name, const std::string& path) {
  OpenedFile file{
      .fd = UniqueFd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)),
      .name = name,
      .path = path,
      .stamp = {}};
  if (file.fd.get() < 0) {
    if (errno == ENXIO) {  // A socket, or a device without a driver.
      return InvalidArgument("not_a_regular_file",
                             name + ": cannot be opened; expected a regular file");
    }
    return Missing(name, "cannot be opened: " + ErrnoText(errno));
  }
  struct stat st {};
  if (::fstat(file.fd.get(), &st) != 0) {
    return Missing(name, "cannot be examined: " + ErrnoText(errno));
  }
  if (S_ISDIR(st.st_mode)) {
    return Missing(name, "is a folder; expected a file");
  }
  if (!S_ISREG(st.st_mode) || IsInProc(file.fd.get())) {
    return InvalidArgument("not_a_regular_file",
                           name + ": not a regular file; expected a file on disk, found " +
                               (S_ISREG(st.st_mode) ? "a file of /proc" : KindOf(st.st_mode)));
  }
  file.stamp = StampOf(st);
  return file;
}

}  // namespace

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) {
    ::close(fd_);
  }
}

std::string WhatChanged(const OpenedFile& file) {
  struct stat st {};
  if (::fstat(file.fd.get(), &st) != 0) {
    return "cannot be examined any more: " + ErrnoText(errno);
  }
  const FileStamp now = StampOf(st);
  if (now.size_bytes != file.stamp.size_bytes) {
    return "the size changed; expected " + std::to_string(file.stamp.size_bytes) +
           " bytes, found " + std::to_string(now.size_bytes);
  }
  if (now != file.stamp) {
    return "the file was written to";
  }
  if (::stat(file.path.c_str(), &st) != 0) {
    return "the file was removed";
  }
  return StampOf(st) == file.stamp ? std::string() : "the file was replaced";
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) {
    ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }
}

absl::StatusOr<MappedFile> MappedFile::Map(const OpenedFile& file) {
  MappedFile mapped;
  const auto size = static_cast<size_t>(file.stamp.size_bytes);
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd.get(), 0);
  if (start == MAP_FAILED) {
    return Error(absl::StatusCode::kResourceExhausted, "model_read_error",
                 file.name + ": cannot be mapped: " + ErrnoText(errno));
  }
  // Readers ask for what they need (Checkpoint::Require); what the kernel would read around it are
  // other workers' tensors.
  ::madvise(start, size, MADV_RANDOM);
  mapped.bytes_ = {static_cast<const std::byte*>(start), size};
  return mapped;
}

Populated Populate(std::span<const std::byte> bytes) {
#ifdef MADV_POPULATE_READ
  for (int i = 0; i < kReadTries; ++i) {
    if (::madvise(const_cast<std::byte*>(bytes.data()), bytes.size(), MADV_POPULATE_READ) == 0) {
      return Populated::kDone;
    }
    // Anything else, such as the EINVAL of kernels before 5.14, says nothing about the file.
    if (errno != EFAULT && errno != EIO && errno != EHWPOISON && errno != EINTR) {
      return Populated::kUnknown;
    }
  }
  return Populated::kFailed;
#else
  return Populated::kUnknown;
#endif
}

absl::Status ReadExactly(const OpenedFile& file, int64_t offset, std::span<char> out,
                         PreadFn pread) {
  int tries = 0;
  while (!out.empty()) {
    const ssize_t got = pread(file.fd.get(), out.data(), out.size(), offset);
    if (got > 0) {
      out = out.subspan(static_cast<size_t>(got));
      offset += got;
    } else if (got == 0) {
      return Error(absl::StatusCode::kAborted, "model_changed_during_load",
                   file.name + ": ends at byte " + std::to_string(offset) + "; expected " +
                       std::to_string(offset + static_cast<int64_t>(out.size())) + " bytes");
    } else if (errno != EINTR && ++tries >= kReadTries) {
      return Error(absl::StatusCode::kDataLoss, "model_read_error",
                   file.name + ": cannot be read at byte " + std::to_string(offset) + ", " +
                       std::to_string(kReadTries) + " tries: " + ErrnoText(errno));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadExactly(const OpenedFile& file, int64_t offset, std::span<char> out) {
  return ReadExactly(file, offset, out, &::pread);
}

absl::Status CheckFormat(const std::string& name) {
  if (EndsWith(name, ".gguf") || EndsWith(name, ".ggml") || EndsWith(name, ".onnx")) {
    return InvalidArgument("model_format_unsupported",
                           name +
                               ": a weight format that is not read; expected safetensors, found " +
                               (EndsWith(name, ".onnx") ? "ONNX" : "GGUF"));
  }
  if (EndsWith(name, ".bin") || EndsWith(name, ".pt") || EndsWith(name, ".pth") ||
      EndsWith(name, ".ckpt") || EndsWith(name, ".pkl")) {
    return InvalidArgument(
        "pickle_refused",
        name +
            ": a PyTorch file of unknown content; expected pytorch_model.bin, its shards with "
            "pytorch_model.bin.index.json, or safetensors, convert with save_pretrained(..., "
            "safe_serialization=True)");
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelFolder> ModelFolder::Open(const std::string& path) {
  const std::string resolved = Resolve(path);
  if (resolved.empty()) {
    return Missing(path, "no such model folder: " + ErrnoText(errno));
  }
  struct stat st {};
  if (::stat(resolved.c_str(), &st) != 0) {
    return Missing(path, "cannot be examined: " + ErrnoText(errno));
  }
  if (!S_ISDIR(st.st_mode)) {
    CONCLAVE_RETURN_IF_ERROR(OpenResolved(path, resolved).status());
    CONCLAVE_RETURN_IF_ERROR(CheckFormat(path));
    return Missing(path, "is a file; expected the model's folder, with config.json in it");
  }
  return ModelFolder(resolved);
}

std::string ModelFolder::base_name() const {
  return std::filesystem::path(path_).filename().string();
}

bool ModelFolder::Has(std::string_view name) const {
  struct stat st {};
  return ::lstat((path_ + "/" + std::string(name)).c_str(), &st) == 0;
}

absl::StatusOr<std::vector<std::string>> ModelFolder::List() const {
  std::vector<std::string> names;
  std::error_code ec;
  for (std::filesystem::directory_iterator it(path_, ec), end; !ec && it != end; it.increment(ec)) {
    names.push_back(it->path().filename().string());
  }
  if (ec) {
    return Missing(path_, "cannot be listed: " + ec.message());
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<OpenedFile> ModelFolder::OpenFile(const std::string& name) const {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    return InvalidArgument("model_path_escape", "file name \"" + name.substr(0, 64) +
                                                    "\": not the name of a file in the folder");
  }
  const std::string full = path_ + "/" + name;
  const std::string resolved = Resolve(full);
  if (resolved.empty()) {
    const int error = errno;
    return Missing(name, Has(name) ? "a link that leads nowhere: " + ErrnoText(error)
                                   : "missing in " + path_ + ": " + ErrnoText(error));
  }
  if (!resolved.starts_with(path_ == "/" ? path_ : path_ + "/")) {
    return InvalidArgument("model_path_escape",
                           name + ": a link that leaves the model folder; expected a file in " +
                               path_ + ", found a link to " + resolved +
                               " (copy the folder with links followed)");
  }
  return OpenResolved(name, resolved);
}

absl::StatusOr<std::string> ModelFolder::ReadText(const std::string& name, int64_t bytes_max,
                                                  std::string_view too_large_reason) const {
  CONCLAVE_ASSIGN_OR_RETURN(const OpenedFile file, OpenFile(name));
  if (file.stamp.size_bytes > bytes_max) {
    return InvalidArgument(too_large_reason, name + ": too large; expected at most " +
                                                 std::to_string(bytes_max) + " bytes, found " +
                                                 std::to_string(file.stamp.size_bytes));
  }
  std::string text(static_cast<size_t>(file.stamp.size_bytes), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, 0, text));
  return text;
}

}  // namespace conclave::checkpoint
