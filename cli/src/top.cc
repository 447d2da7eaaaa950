// `conclave top`: what a cluster does, on a terminal, every second.
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <optional>
#include <string>
#include <utility>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "live_source.h"
#include "live_state.h"
#include "output.h"
#include "terminal.h"
#include "tls_options.h"
#include "top_frame.h"

namespace conclave::cli {
namespace {

using service::ExitCode;
using std::chrono::milliseconds;

// A frame without a terminal has no width of its own.
constexpr int32_t kPlainWidth = 120;
// What rates of `--once` need: the next update.
constexpr milliseconds kSecondUpdate{2500};

struct TopSettings {
  std::vector<service::Address> router{{"127.0.0.1", 7000}};
  std::string url;
  bool once = false;
  bool json = false;
  milliseconds timeout{10'000};
  TlsFileSettings tls;
};

void Declare(service::OptionSet& set, TopSettings& settings) {
  set.Add({.name = "router",
           .help = "control addresses of the routers; the first one that leads is watched",
           .group = "Network"},
          &settings.router);
  set.Add({.name = "url",
           .help = "admin listener of a router or of `conclave serve` instead, http://HOST:PORT",
           .group = "Network",
           .unset_means = "none"},
          &settings.url);
  set.Add({.name = "once", .help = "print one frame without colours and end"}, &settings.once);
  set.Add({.name = "json", .help = "print the whole picture as JSON and end"}, &settings.json);
  set.Add({.name = "timeout", .help = "how long the first picture may take", .group = "Network"},
          &settings.timeout, {milliseconds(1), milliseconds(600'000)});
  AddTlsFileOptions(set, settings.tls, "the operator");
}

absl::StatusOr<std::unique_ptr<LiveSource>> SourceOf(const TopSettings& settings) {
  if (!settings.url.empty()) {
    return LiveFromUrl(settings.url);
  }
  std::vector<router_service::AdminClientOptions> routers;
  for (const service::Address& address : settings.router) {
    routers.push_back({.address = service::ToString(address),
                       .tls_certificate = settings.tls.certificate,
                       .tls_key = settings.tls.key,
                       .tls_authority = settings.tls.authority,
                       .timeout = settings.timeout});
  }
  return LiveFromRouters(routers);
}

// https://no-color.org; what a terminal can is in TERM and COLORTERM.
TopColor ColorOf(const service::Variables& variables) {
  const auto get = [&](std::string_view name) {
    const auto it = variables.find(name);
    return it == variables.end() ? std::string() : it->second;
  };
  const std::string term = get("TERM");
  if (!get("NO_COLOR").empty() || term.empty() || term == "dumb") {
    return TopColor::kNone;
  }
  const std::string deep = get("COLORTERM");
  return deep == "truecolor" || deep == "24bit" ? TopColor::kTrue : TopColor::k256;
}

absl::Status NoPicture(const TopSettings& settings) {
  return Error(absl::StatusCode::kUnavailable, "connect",
               (settings.url.empty() ? service::ToString(settings.router.front()) : settings.url) +
                   ": no picture within " + service::ToString(settings.timeout));
}

// Until `fd` is readable or `until` has come.
void Await(int fd, std::chrono::steady_clock::time_point until) {
  const auto left = std::chrono::duration_cast<milliseconds>(
      until - std::chrono::steady_clock::now() + milliseconds(1));
  pollfd ready{fd, POLLIN, 0};
  (void)::poll(&ready, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
}

int PrintOnce(const TopSettings& settings, LiveFeed& feed) {
  LiveState state;
  auto until = std::chrono::steady_clock::now() + settings.timeout;
  while (std::chrono::steady_clock::now() < until) {
    Await(feed.fd(), until);
    for (const LiveFeed::Item& item : feed.TakeAll()) {
      const bool is_first = !state.has_snapshot();
      const absl::Status status =
          item.trouble.ok() ? state.Apply(item.event, item.json) : item.trouble;
      if (!status.ok() && is_first) {
        return service::Fail(status, ExitCode::kNetwork);
      }
      if (!state.has_snapshot() || !status.ok()) {
        continue;
      }
      if (settings.json) {
        return PrintResult(item.json + "\n");
      }
      if (!is_first) {
        return PrintResult(Frame(state, kPlainWidth, 0, {}));
      }
      until = std::chrono::steady_clock::now() + kSecondUpdate;
    }
  }
  return state.has_snapshot() ? PrintResult(Frame(state, kPlainWidth, 0, {}))
                              : service::Fail(NoPicture(settings), ExitCode::kNetwork);
}

// The view of one terminal. Main thread.
class View {
 public:
  View(const TopSettings& settings, TopColor color) : settings_(settings) {
    options_.color = color;
  }

  // `signals` is readable when a blocked signal has come.
  int Run(LiveFeed& feed, int signals);

 private:
  // False: the end.
  bool TakeKeys(Terminal& terminal);
  bool TakeSignals(int signals);
  // Not OK: there has never been a picture.
  absl::Status TakeUpdates(LiveFeed& feed);
  void Press(const KeyPress& press);

  const TopSettings& settings_;
  LiveState state_;
  TopOptions options_;
  KeyReader keys_;
};

void View::Press(const KeyPress& press) {
  const auto move = [](int32_t& from, int32_t by, size_t count) {
    from = std::clamp(from + by, 0, std::max(0, static_cast<int32_t>(count) - 1));
  };
  size_t experts = 0;
  for (const LiveLayer& layer : state_.layers) {
    experts = std::max(experts, static_cast<size_t>(layer.experts));
  }
  switch (press.key) {
    case Key::kUp:
      return move(options_.first_layer, -1, state_.layers.size());
    case Key::kDown:
      return move(options_.first_layer, 1, state_.layers.size());
    case Key::kLeft:
      return move(options_.first_expert, -4, experts);
    case Key::kRight:
      return move(options_.first_expert, 4, experts);
    case Key::kEnd:
    case Key::kSuspend:
      return;
    case Key::kOther:
      break;
  }
  switch (press.letter) {
    case 'a':
      options_.modality = TopModality::kAll;
      return;
    case 't':
      options_.modality = TopModality::kText;
      return;
    case 'i':
      options_.modality = TopModality::kImage;
      return;
    case 'b':
      options_.phase = TopPhase::kBoth;
      return;
    case 'p':
      options_.phase = TopPhase::kPrefill;
      return;
    case 'd':
      options_.phase = TopPhase::kDecode;
      return;
    case '?':
      options_.is_help = !options_.is_help;
      return;
    default:
      options_.is_help = false;
  }
}

bool View::TakeKeys(Terminal& terminal) {
  char bytes[256];
  const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof(bytes));
  if (count <= 0) {
    return count < 0 && (errno == EINTR || errno == EAGAIN);  // else the terminal has gone
  }
  for (const KeyPress& press : keys_.Feed({bytes, static_cast<size_t>(count)})) {
    if (press.key == Key::kEnd || press.letter == 'q') {
      return false;
    }
    if (press.key == Key::kSuspend) {
      terminal.Suspend();
    } else {
      Press(press);
    }
  }
  return true;
}

bool View::TakeSignals(int signals) {
  signalfd_siginfo info{};
  bool goes_on = true;
  while (::read(signals, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    goes_on = goes_on && (info.ssi_signo == SIGWINCH || info.ssi_signo == SIGCONT);
  }
  return goes_on;
}

absl::Status View::TakeUpdates(LiveFeed& feed) {
  for (const LiveFeed::Item& item : feed.TakeAll()) {
    const absl::Status status =
        item.trouble.ok() ? state_.Apply(item.event, item.json) : item.trouble;
    if (status.ok()) {
      options_.trouble.clear();
      continue;
    }
    if (!state_.has_snapshot()) {
      return status;
    }
    if (item.trouble.ok()) {
      feed.Reconnect();
    }
    if (ReasonOf(status) != "live_gap") {
      options_.trouble = service::ErrorLine(status) + " - trying again";
    }
  }
  return absl::OkStatus();
}

int View::Run(LiveFeed& feed, int signals) {
  const auto until = std::chrono::steady_clock::now() + settings_.timeout;
  while (!state_.has_snapshot()) {
    if (std::chrono::steady_clock::now() >= until) {
      return service::Fail(NoPicture(settings_), ExitCode::kNetwork);
    }
    pollfd ready[] = {{feed.fd(), POLLIN, 0}, {signals, POLLIN, 0}};
    (void)::poll(ready, 2, 100);
    if (!TakeSignals(signals)) {
      return static_cast<int>(ExitCode::kDone);
    }
    if (const absl::Status status = TakeUpdates(feed); !status.ok()) {
      return service::Fail(status, ExitCode::kNetwork);
    }
  }
  Terminal terminal;
  while (true) {
    const auto [width, height] = Terminal::Size();
    if (!terminal.Show(Frame(state_, width, height, options_)).ok()) {
      return static_cast<int>(ExitCode::kDone);  // nobody looks any more
    }
    pollfd ready[] = {{STDIN_FILENO, POLLIN, 0}, {feed.fd(), POLLIN, 0}, {signals, POLLIN, 0}};
    (void)::poll(ready, 3, -1);
    const bool goes_on = TakeSignals(signals) && (ready[0].revents == 0 || TakeKeys(terminal));
    if (!goes_on) {
      return static_cast<int>(ExitCode::kDone);
    }
    (void)TakeUpdates(feed);
  }
}

// Blocked here and in the threads that are started from now on: they come through a descriptor.
int OpenSignals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT}) {
    ::sigaddset(&set, number);
  }
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

}  // namespace

int RunTop(const Invocation& invocation) {
  TopSettings settings;
  service::OptionSet set("conclave top", Version(), "Shows what a cluster does, live.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (!settings.url.empty() && set.OriginOf("router") != service::Origin::kDefault) {
    return service::Fail(InvalidArgument("usage", "--url: expected no --router beside it"),
                         ExitCode::kUsage);
  }
  auto source = SourceOf(settings);
  if (!source.ok()) {
    return service::Fail(source.status(), ExitCode::kConfig);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    return PrintResult("ok\n");
  }
  const bool is_once =
      settings.once || settings.json || ::isatty(STDIN_FILENO) == 0 || ::isatty(STDOUT_FILENO) == 0;
  if (is_once) {
    LiveFeed feed(*std::move(source));
    return PrintOnce(settings, feed);
  }
  const int signals = OpenSignals();
  if (signals < 0) {
    return service::Fail(
        Error(absl::StatusCode::kInternal, "internal", "signalfd: no descriptor left"),
        ExitCode::kInternal);
  }
  LiveFeed feed(*std::move(source));
  const int code = View(settings, ColorOf(invocation.variables)).Run(feed, signals);
  ::close(signals);
  return code;
}

}  // namespace conclave::cli
