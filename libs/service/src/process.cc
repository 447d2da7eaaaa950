#include "conclave/service/process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "conclave/base/status.h"
#include "conclave/service/signals.h"

namespace conclave::service {

absl::Status PrepareProcess() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) {
      continue;
    }
    // open() takes the lowest free number, which is this one.
    if (::open("/dev/null", O_RDWR) != fd) {
      return Error(absl::StatusCode::kInternal, "internal",
                   "a standard descriptor is closed and /dev/null cannot take its place");
    }
  }
  IgnoreBrokenPipe();
  ::umask(::umask(0) | (S_IWGRP | S_IWOTH));
  return absl::OkStatus();
}

void ForbidDumps() { ::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }

int64_t RaiseOpenFilesLimit(int64_t wanted) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return 0;
  }
  const rlim_t target = std::min(limit.rlim_max, static_cast<rlim_t>(wanted));
  if (limit.rlim_cur < target) {
    const rlimit raised{target, limit.rlim_max};
    if (::setrlimit(RLIMIT_NOFILE, &raised) == 0) {
      limit.rlim_cur = target;
    }
  }
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
}

}  // namespace conclave::service
