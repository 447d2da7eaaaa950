#include "conclave/router_service/state_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <utility>

#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "conclave/router_service/router_state.h"

namespace conclave::router_service {
namespace {

constexpr std::string_view kMagic = "CNCLVRS1";
constexpr size_t kHeaderBytes = 24;
constexpr size_t kNumDigits = 20;
constexpr size_t kGenerationsKept = 3;
// Far above any cluster's state; keeps a wrong length from taking the memory.
constexpr int64_t kFileBytesMax = int64_t{256} << 20;
constexpr std::string_view kPrefix = "state.";

std::string ErrnoText(int error) { return std::generic_category().message(error); }

// A descriptor that is closed in the end.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { Close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int Close() {
    const int result = fd_ >= 0 ? ::close(fd_) : 0;
    fd_ = -1;
    return result;
  }

 private:
  int fd_;
};

template <typename T>
void AppendLittle(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  }
}

template <typename T>
T ReadLittle(std::string_view bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<uint8_t>(bytes[at + i])) << (8 * i);
  }
  return value;
}

uint32_t Checksum(std::string_view text) {
  return Crc32c(std::as_bytes(std::span(text.data(), text.size())));
}

std::string NameOf(uint64_t generation) {
  const std::string digits = std::to_string(generation);
  return std::string(kPrefix) + std::string(kNumDigits - digits.size(), '0') + digits;
}

// 0: no generation's name.
uint64_t GenerationOf(std::string_view name) {
  if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + kNumDigits) {
    return 0;
  }
  uint64_t value = 0;
  for (const char c : name.substr(kPrefix.size())) {
    if (c < '0' || c > '9' || value > (UINT64_MAX - 9) / 10) {
      return 0;
    }
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  return value;
}

absl::Status WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      return Error(absl::StatusCode::kUnavailable, "state_write_failed",
                   "write: " + ErrnoText(written < 0 ? errno : ENOSPC));
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status WriteFailed(const char* what) {
  return Error(absl::StatusCode::kUnavailable, "state_write_failed",
               std::string(what) + ": " + ErrnoText(errno));
}

absl::StatusOr<std::string> ReadFile(int folder, const std::string& name) {
  const Descriptor file(
      ::openat(folder, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat found {};
  if (file.get() < 0 || ::fstat(file.get(), &found) != 0 || !S_ISREG(found.st_mode)) {
    return InvalidArgument("state_corrupt", name + ": expected a regular file");
  }
  if (found.st_size > kFileBytesMax) {
    return InvalidArgument("state_corrupt", name + ": expected at most " +
                                                std::to_string(kFileBytesMax) + " bytes, found " +
                                                std::to_string(found.st_size));
  }
  std::string bytes(static_cast<size_t>(found.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got <= 0) {
      return InvalidArgument("state_corrupt",
                             name + ": read: " + (got < 0 ? ErrnoText(errno) : "it ended early"));
    }
    done += static_cast<size_t>(got);
  }
  return bytes;
}

}  // namespace

struct StateFolder::State {
  std::string path;
  Descriptor folder;
  Descriptor lock;
  uint64_t generation = 0;  // the highest that was ever seen

  State(std::string path_in, int folder_fd, int lock_fd)
      : path(std::move(path_in)), folder(folder_fd), lock(lock_fd) {}

  // Ascending.
  absl::StatusOr<std::vector<uint64_t>> Generations() const;
  absl::Status WriteFile(const std::string& name, std::string_view bytes) const;
};

std::string EncodeStateFile(uint32_t version, std::string_view blob) {
  std::string out(kMagic);
  AppendLittle<uint32_t>(out, version);
  AppendLittle<uint32_t>(out, Checksum(blob));
  AppendLittle<uint64_t>(out, blob.size());
  out += blob;
  return out;
}

absl::StatusOr<std::string_view> DecodeStateFile(std::string_view bytes, uint32_t version_max) {
  if (bytes.size() < kHeaderBytes || !bytes.starts_with(kMagic)) {
    return InvalidArgument("state_corrupt", "expected a header that starts with CNCLVRS1, found " +
                                                std::to_string(bytes.size()) + " other bytes");
  }
  const auto version = ReadLittle<uint32_t>(bytes, 8);
  if (version > version_max) {
    return Error(absl::StatusCode::kFailedPrecondition, "state_version_unsupported",
                 "found " + std::to_string(version) + ", max " + std::to_string(version_max));
  }
  const std::string_view blob = bytes.substr(kHeaderBytes);
  if (version == 0 || ReadLittle<uint64_t>(bytes, 16) != blob.size()) {
    return InvalidArgument("state_corrupt",
                           "expected " + std::to_string(ReadLittle<uint64_t>(bytes, 16)) +
                               " bytes behind the header, found " + std::to_string(blob.size()));
  }
  if (ReadLittle<uint32_t>(bytes, 12) != Checksum(blob)) {
    return InvalidArgument("state_corrupt", "the checksum differs");
  }
  return blob;
}

absl::StatusOr<std::vector<uint64_t>> StateFolder::State::Generations() const {
  // fdopendir takes the descriptor over, so it gets one of its own.
  const int fd = ::openat(folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* listing = fd >= 0 ? ::fdopendir(fd) : nullptr;
  if (listing == nullptr) {
    const std::string why = ErrnoText(errno);
    if (fd >= 0) {
      ::close(fd);
    }
    return Error(absl::StatusCode::kUnavailable, "state_dir", path + ": " + why);
  }
  std::vector<uint64_t> found;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): the stream is this function's own
  while (const dirent* entry = ::readdir(listing)) {
    if (const uint64_t found_number = GenerationOf(entry->d_name); found_number > 0) {
      found.push_back(found_number);
    }
  }
  ::closedir(listing);
  std::sort(found.begin(), found.end());
  return found;
}

StateFolder::StateFolder(std::unique_ptr<State> state) : state_(std::move(state)) {}
StateFolder::~StateFolder() = default;

absl::StatusOr<std::unique_ptr<StateFolder>> StateFolder::Open(const std::string& path) {
  const auto refuse = [&path](const std::string& what) {
    return Error(absl::StatusCode::kUnavailable, "state_dir",
                 path + ": " + what + ": " + ErrnoText(errno));
  };
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return refuse("mkdir");
  }
  const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) {
    return refuse("open");
  }
  auto state = std::make_unique<State>(
      path, folder, ::openat(folder, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (state->lock.get() < 0) {
    return refuse("lock");
  }
  if (::flock(state->lock.get(), LOCK_EX | LOCK_NB) != 0) {
    char pid[32] = {};
    const ssize_t got = ::pread(state->lock.get(), pid, sizeof(pid) - 1, 0);
    std::string_view text(pid, got > 0 ? static_cast<size_t>(got) : 0);
    text = text.substr(0, text.find_first_not_of("0123456789"));
    return Error(absl::StatusCode::kFailedPrecondition, "state_dir_locked",
                 "pid=" + std::string(text) + ": " + path + " belongs to a router that runs");
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  // For people only: the lock counts, not what is in the file.
  if (::ftruncate(state->lock.get(), 0) == 0) {
    (void)!::pwrite(state->lock.get(), pid.data(), pid.size(), 0);
  }
  return std::unique_ptr<StateFolder>(new StateFolder(std::move(state)));
}

absl::StatusOr<StoredState> StateFolder::Load() {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<uint64_t> generations, state_->Generations());
  StoredState loaded;
  state_->generation = generations.empty() ? 0 : generations.back();
  for (auto it = generations.rbegin(); it != generations.rend(); ++it) {
    const std::string name = NameOf(*it);
    absl::StatusOr<std::string> bytes = ReadFile(state_->folder.get(), name);
    absl::Status why = bytes.status();
    if (bytes.ok()) {
      absl::StatusOr<std::string_view> blob = DecodeStateFile(*bytes, kStateVersion);
      if (blob.ok()) {
        why = ParseRouterState(*blob).status();
      } else {
        why = blob.status();
      }
      if (why.ok()) {
        loaded.is_found = true;
        loaded.blob = std::string(*blob);
        return loaded;
      }
    }
    loaded.refused.push_back(Annotate(why, state_->path + "/" + name));
    // Out of the way of what is written and cleaned up later; a folder that refuses keeps it as is.
    (void)::renameat(state_->folder.get(), name.c_str(), state_->folder.get(),
                     (name + ".refused").c_str());
  }
  return loaded;
}

absl::Status StateFolder::State::WriteFile(const std::string& name, std::string_view bytes) const {
  const std::string temporary = "writing." + name;
  Descriptor file(::openat(folder.get(), temporary.c_str(),
                           O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file.get() < 0) {
    return WriteFailed("open");
  }
  absl::Status status = WriteAll(file.get(), bytes);
  if (status.ok() && ::fsync(file.get()) != 0) {
    status = WriteFailed("fsync");
  }
  if (file.Close() != 0 && status.ok()) {
    status = WriteFailed("close");
  }
  if (status.ok() && ::renameat(folder.get(), temporary.c_str(), folder.get(), name.c_str()) != 0) {
    status = WriteFailed("rename");
  }
  if (!status.ok()) {
    (void)::unlinkat(folder.get(), temporary.c_str(), 0);
    return status;
  }
  return ::fsync(folder.get()) == 0 ? absl::OkStatus() : WriteFailed("fsync of the folder");
}

absl::Status StateFolder::Save(std::string_view blob, uint32_t /*term*/) {
  // A number is used once, also by a try that failed: nobody knows what of it reached the disk.
  const uint64_t generation = ++state_->generation;
  const absl::Status written =
      state_->WriteFile(NameOf(generation), EncodeStateFile(kStateVersion, blob));
  if (!written.ok()) {
    return Annotate(written, state_->path);
  }
  const absl::StatusOr<std::vector<uint64_t>> all = state_->Generations();
  if (all.ok() && all->size() > kGenerationsKept) {
    for (size_t i = 0; i + kGenerationsKept < all->size(); ++i) {
      (void)::unlinkat(state_->folder.get(), NameOf((*all)[i]).c_str(), 0);
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::router_service
