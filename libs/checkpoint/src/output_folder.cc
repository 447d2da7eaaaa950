#include "output_folder.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <system_error>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

// Room for the text files, headers and the file system's own blocks.
constexpr int64_t kSpareBytes = 16 << 20;

absl::Status CannotWrite(const fs::path& path, const std::string& why) {
  return Error(absl::StatusCode::kResourceExhausted, "file_write_error",
               path.string() + ": cannot be written: " + why);
}

absl::Status CheckTarget(const fs::path& target) {
  std::error_code ec;
  if (!fs::exists(fs::symlink_status(target, ec))) {
    return absl::OkStatus();
  }
  if (fs::is_directory(target, ec) && fs::is_empty(target, ec) && !ec) {
    return absl::OkStatus();
  }
  return Error(
      absl::StatusCode::kAlreadyExists, "folder_not_empty",
      target.string() + ": exists and is never overwritten; expected a new or empty folder");
}

}  // namespace

absl::StatusOr<OutputFolder> OutputFolder::Create(const std::string& target) {
  std::error_code ec;
  OutputFolder folder;
  folder.target_ = fs::absolute(target, ec).lexically_normal();
  if (!folder.target_.has_filename()) {  // A slash at the end.
    folder.target_ = folder.target_.parent_path();
  }
  if (target.empty() || ec) {
    return InvalidArgument("folder_invalid",
                           "no folder to write to; expected a path, found \"" + target + "\"");
  }
  CONCLAVE_RETURN_IF_ERROR(CheckTarget(folder.target_));
  fs::create_directories(folder.target_.parent_path(), ec);
  const fs::path path = folder.target_.string() + ".partial-" + std::to_string(::getpid());
  if (ec || !fs::create_directory(path, ec) || ec) {
    return CannotWrite(path, ec ? ec.message() : "it exists");
  }
  folder.path_ = path;
  return folder;
}

OutputFolder::~OutputFolder() {
  if (!path_.empty()) {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
}

OutputFolder::OutputFolder(OutputFolder&& other) noexcept
    : path_(std::move(other.path_)), target_(std::move(other.target_)) {
  other.path_.clear();
}

absl::Status OutputFolder::Keep() {
  std::error_code ec;
  fs::rename(path_, target_, ec);  // Replaces an empty folder and refuses a filled one.
  if (ec) {
    return CannotWrite(target_, ec.message());
  }
  path_.clear();
  return absl::OkStatus();
}

absl::Status WriteText(const fs::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  return out ? absl::OkStatus() : CannotWrite(path, std::generic_category().message(errno));
}

absl::Status CheckFreeSpace(const std::string& path, int64_t bytes) {
  struct statvfs fs {};
  if (::statvfs(path.c_str(), &fs) != 0) {
    return CannotWrite(path, std::generic_category().message(errno));
  }
  const auto free_bytes = static_cast<int64_t>(fs.f_bavail * fs.f_frsize);
  if (free_bytes - kSpareBytes < bytes) {
    return Error(absl::StatusCode::kResourceExhausted, "disk_full",
                 path + ": not enough free space; expected " + std::to_string(bytes) +
                     " bytes, found " + std::to_string(free_bytes - kSpareBytes));
  }
  return absl::OkStatus();
}

}  // namespace conclave::checkpoint
