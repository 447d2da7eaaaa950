#include "spawned_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/units.h"

extern char** environ;

namespace conclave::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Reading a large model takes a while.
constexpr seconds kReadyWithin{600};
constexpr milliseconds kRestartMin{1'000};
constexpr milliseconds kRestartMax{60'000};
constexpr seconds kStopWithin{5};

struct Child {
  std::string what;
  std::vector<std::string> args;
  pid_t pid = -1;
  int out = -1;  // its stdout
  MonotonicTime restart_at;
  milliseconds backoff = kRestartMin;
};

absl::Status SpawnError(const std::string& what, const std::string& why) {
  return Error(absl::StatusCode::kInternal, "spawn", what + ": " + why);
}
absl::Status SpawnError(const std::string& what, int error) {
  return SpawnError(what, std::generic_category().message(error));
}

// posix_spawn and not fork: threads of gRPC may be running when a worker is started again.
absl::Status StartChild(const std::string& binary, Child& child) {
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0) {
    return SpawnError(child.what, errno);
  }
  std::vector<std::string> words = {binary, "spawned", std::to_string(::getpid())};
  words.insert(words.end(), child.args.begin(), child.args.end());
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDOUT_FILENO);
  // A group of its own: Ctrl-C in the terminal is for the parent, which drains in the right order.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  const int result =
      ::posix_spawn(&child.pid, binary.c_str(), &actions, &attributes, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  ::close(pipe_ends[1]);
  if (result != 0) {
    child.pid = -1;
    ::close(pipe_ends[0]);
    return SpawnError(child.what, result);
  }
  child.out = pipe_ends[0];
  return absl::OkStatus();
}

// The ready line, which is all that a server writes to stdout.
absl::StatusOr<std::string> ReadReadyLine(const Child& child) {
  const MonotonicTime until = Clock::Real().Now() + kReadyWithin;
  std::string line;
  while (true) {
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::Real().Now()).count();
    if (left <= 0) {
      return SpawnError(child.what, "not ready in time");
    }
    pollfd entry{child.out, POLLIN, 0};
    if (::poll(&entry, 1, static_cast<int>(left)) < 0 && errno != EINTR) {
      return SpawnError(child.what, errno);
    }
    if (entry.revents == 0) {
      continue;
    }
    char byte = 0;
    const ssize_t got = ::read(child.out, &byte, 1);
    if (got == 0) {
      return SpawnError(child.what, "ended before it was ready; its log says why");
    }
    if (got == 1) {
      if (byte == '\n') {
        return line;
      }
      line.push_back(byte);
    }
  }
}

std::optional<std::string> ValueOf(const std::string& line, const std::string& key) {
  const size_t at = line.find(" " + key + "=");
  if (at == std::string::npos) {
    return std::nullopt;
  }
  const size_t begin = at + key.size() + 2;
  return line.substr(begin, line.find(' ', begin) - begin);
}

}  // namespace

struct SpawnedCluster::State {
  ~State();
  void Supervise();
  void StopAll();

  std::string binary;
  service::Address router;
  service::Address router_admin;
  std::vector<Child> children;  // the router first; the supervisor's from its start on
  Mutex mu;
  CondVar changed;
  bool is_stopping ABSL_GUARDED_BY(mu) = false;
  std::thread supervisor;
};

void SpawnedCluster::State::StopAll() {
  for (const Child& child : children) {
    if (child.pid > 0) {
      ::kill(child.pid, SIGTERM);
    }
  }
  const MonotonicTime until = Clock::Real().Now() + kStopWithin;
  for (Child& child : children) {
    while (child.pid > 0 && ::waitpid(child.pid, nullptr, WNOHANG) == 0) {
      if (Clock::Real().Now() >= until) {
        ::kill(child.pid, SIGKILL);
        ::waitpid(child.pid, nullptr, 0);
        break;
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
    if (child.out >= 0) {
      ::close(child.out);
    }
  }
}

SpawnedCluster::State::~State() {
  {
    MutexLock lock(mu);
    is_stopping = true;
    changed.NotifyAll();
  }
  if (supervisor.joinable()) {
    supervisor.join();
  }
  StopAll();
}

// Starts what has died again, ever more slowly while it keeps dying.
void SpawnedCluster::State::Supervise() {
  while (true) {
    {
      MutexLock lock(mu);
      if (!is_stopping) {
        changed.WaitFor(mu, milliseconds(50));
      }
      if (is_stopping) {
        return;
      }
    }
    for (Child& child : children) {
      int status = 0;
      const MonotonicTime now = Clock::Real().Now();
      if (child.pid > 0 && ::waitpid(child.pid, &status, WNOHANG) == child.pid) {
        observability::LogWarning("a child process ended, it is started again",
                                  {{"what", child.what},
                                   {"exit", WIFEXITED(status) ? WEXITSTATUS(status) : -1},
                                   {"signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0},
                                   {"in", service::ToString(child.backoff)}});
        ::close(child.out);
        child.out = -1;
        child.pid = -1;
        child.restart_at = now + child.backoff;
        child.backoff = std::min(child.backoff * 2, kRestartMax);
      }
      if (child.pid < 0 && now >= child.restart_at) {
        if (const absl::Status started = StartChild(binary, child); !started.ok()) {
          observability::LogError("a child process cannot be started",
                                  {{"what", child.what}, {"why", MessageOf(started)}});
          child.restart_at = now + child.backoff;
          child.backoff = std::min(child.backoff * 2, kRestartMax);
        }
      }
    }
  }
}

absl::StatusOr<std::unique_ptr<SpawnedCluster>> SpawnedCluster::Start(
    const Invocation& invocation, const EngineSettings& engine, const LogSettings& log,
    int32_t num_workers, const std::string& admin_key_file) {
  auto state = std::make_unique<State>();
  state->binary = invocation.binary;
  CONCLAVE_ASSIGN_OR_RETURN(const std::string model, ModelFolder(engine, invocation));
  const std::vector<std::string> logging = {"--log-level", log.level, "--log-format", log.format};
  Child router;
  router.what = "router";
  router.args = {"router",      "--model",        model,
                 "--listen",    "127.0.0.1:0",    "--admin-listen",
                 "127.0.0.1:0", "--recover-time", "0ms"};
  router.args.insert(router.args.end(), logging.begin(), logging.end());
  if (!admin_key_file.empty()) {
    router.args.insert(router.args.end(), {"--admin-key-file", admin_key_file});
  }
  state->children.push_back(std::move(router));
  CONCLAVE_RETURN_IF_ERROR(StartChild(state->binary, state->children[0]));
  CONCLAVE_ASSIGN_OR_RETURN(const std::string line, ReadReadyLine(state->children[0]));
  const std::optional<std::string> control = ValueOf(line, "control");
  if (!control) {
    return SpawnError("router", "expected control= in its ready line, found none");
  }
  CONCLAVE_ASSIGN_OR_RETURN(state->router, service::ParseAddress(*control));
  constexpr std::string_view kScheme = "http://";
  const std::string admin = ValueOf(line, "admin").value_or("");
  CONCLAVE_ASSIGN_OR_RETURN(state->router_admin,
                            service::ParseAddress(std::string_view(admin).substr(
                                std::min(admin.size(), kScheme.size()))));
  // Started again it must be where everybody looks for it.
  std::vector<std::string>& args = state->children[0].args;
  *std::find(args.begin(), args.end(), "127.0.0.1:0") = *control;
  *std::find(args.begin(), args.end(), "127.0.0.1:0") = service::ToString(state->router_admin);
  for (int32_t w = 0; w < num_workers; ++w) {
    Child worker;
    worker.what = "worker-" + std::to_string(w);
    worker.args = {"worker",
                   "--router",
                   *control,
                   "--name",
                   worker.what,
                   "--model",
                   model,
                   "--listen",
                   "127.0.0.1:0",
                   "--admin-listen",
                   "127.0.0.1:0",
                   "--threads",
                   std::to_string(engine.threads),
                   "--pin",
                   engine.pin,
                   "--dtype",
                   engine.dtype,
                   "--isa",
                   engine.isa,
                   "--packed-weights",
                   engine.packed_weights};
    if (engine.verify_weights) {
      worker.args.emplace_back("--verify-weights");
    }
    worker.args.insert(worker.args.end(), logging.begin(), logging.end());
    state->children.push_back(std::move(worker));
    CONCLAVE_RETURN_IF_ERROR(StartChild(state->binary, state->children.back()));
  }
  for (size_t i = 1; i < state->children.size(); ++i) {
    CONCLAVE_RETURN_IF_ERROR(ReadReadyLine(state->children[i]).status());
  }
  // Signals are for the thread that the server sets up for them.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  state->supervisor = std::thread([s = state.get()] { s->Supervise(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return std::unique_ptr<SpawnedCluster>(new SpawnedCluster(std::move(state)));
}

SpawnedCluster::SpawnedCluster(std::unique_ptr<State> state) : state_(std::move(state)) {}
SpawnedCluster::~SpawnedCluster() = default;

const service::Address& SpawnedCluster::router() const { return state_->router; }
const service::Address& SpawnedCluster::router_admin() const { return state_->router_admin; }

int RunSpawned(const Invocation& invocation) {
  if (invocation.args.size() < 2) {
    return service::Fail(InvalidArgument("usage", "spawned: for conclave's own use"),
                         service::ExitCode::kUsage);
  }
  // The kernel's signal comes when the thread that spawned us ends. That is the supervisor, which
  // lives as long as the process; or main, for those that were started first.
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (std::to_string(::getppid()) != invocation.args[0]) {
    return service::Fail(Error(absl::StatusCode::kInternal, "spawn", "the parent is gone"),
                         service::ExitCode::kInternal);
  }
  return Dispatch({invocation.args.begin() + 1, invocation.args.end()}, invocation.variables,
                  invocation.binary);
}

}  // namespace conclave::cli
