#include "conclave/service/signals.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::service {
namespace {

absl::Status SystemError(std::string_view what) {
  return Error(
      absl::StatusCode::kInternal, "internal",
      std::string(what) + ": " + std::error_code(errno, std::generic_category()).message());
}

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

struct SignalWatcher::State {
  State(SignalActions a, const sigset_t& signals, const sigset_t& before)
      : actions(std::move(a)),
        mask_before(before),
        signal_fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK)),
        end_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  void Run() {
    pollfd fds[2] = {{signal_fd.get(), POLLIN, 0}, {end_fd.get(), POLLIN, 0}};
    while (true) {
      if (::poll(fds, 2, -1) < 0 && errno != EINTR) {
        return;
      }
      if ((fds[1].revents & POLLIN) != 0) {
        return;
      }
      signalfd_siginfo taken{};
      while (::read(signal_fd.get(), &taken, sizeof(taken)) ==
             static_cast<ssize_t>(sizeof(taken))) {
        Handle(static_cast<int>(taken.ssi_signo));
      }
    }
  }

  void Handle(int signal) {
    if (signal == SIGHUP) {
      if (actions.on_reload) {
        actions.on_reload();
      }
      return;
    }
    if (!std::exchange(is_stopping, true)) {
      if (actions.on_stop) {
        actions.on_stop(signal);
      }
      return;
    }
    if (actions.on_stop_again) {
      actions.on_stop_again(signal);
    } else {
      // No destructors: the user asked twice, and threads are still at work.
      std::_Exit(128 + signal);
    }
  }

  const SignalActions actions;
  const sigset_t mask_before;
  const Fd signal_fd;
  const Fd end_fd;
  bool is_stopping = false;  // The signal thread's.
  std::thread thread;
};

SignalWatcher::SignalWatcher(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<SignalWatcher>> SignalWatcher::Start(SignalActions actions) {
  IgnoreBrokenPipe();
  sigset_t signals;
  sigset_t before;
  ::sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    ::sigaddset(&signals, signal);
  }
  if (const int rc = ::pthread_sigmask(SIG_BLOCK, &signals, &before); rc != 0) {
    errno = rc;
    return SystemError("pthread_sigmask");
  }
  auto state = std::make_unique<State>(std::move(actions), signals, before);
  if (state->signal_fd.get() < 0 || state->end_fd.get() < 0) {
    const absl::Status status = SystemError("signalfd");
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return status;
  }
  State* raw = state.get();
  raw->thread = std::thread([raw] { raw->Run(); });
  ::pthread_setname_np(raw->thread.native_handle(), "signals");
  return std::unique_ptr<SignalWatcher>(new SignalWatcher(std::move(state)));
}

SignalWatcher::~SignalWatcher() {
  const uint64_t one = 1;
  // The counter of a fresh eventfd has room: this cannot fail.
  [[maybe_unused]] const ssize_t written = ::write(state_->end_fd.get(), &one, sizeof(one));
  state_->thread.join();
  ::pthread_sigmask(SIG_SETMASK, &state_->mask_before, nullptr);
}

void IgnoreBrokenPipe() {
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, nullptr);
}

}  // namespace conclave::service
