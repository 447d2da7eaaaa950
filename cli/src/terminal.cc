#include "terminal.h"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>

#include "output.h"

namespace conclave::cli {
namespace {

constexpr std::string_view kEnter = "\x1b[?1049h\x1b[?25l";
constexpr std::string_view kLeave = "\x1b[0m\x1b[?25h\x1b[?1049l";
constexpr int kFatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

// For the handler of signals, which may touch nothing else.
termios g_before{};
volatile std::sig_atomic_t g_is_taken = 0;

void GiveBack() {
  if (g_is_taken != 0) {
    g_is_taken = 0;
    (void)!::write(STDOUT_FILENO, kLeave.data(), kLeave.size());
    ::tcsetattr(STDIN_FILENO, TCSANOW, &g_before);
  }
}

void GiveBackAndDie(int number) {
  GiveBack();
  std::signal(number, SIG_DFL);
  (void)std::raise(number);
}

}  // namespace

Terminal::Terminal() {
  for (const int number : kFatal) {
    struct sigaction action {};
    action.sa_handler = &GiveBackAndDie;
    ::sigaction(number, &action, nullptr);
  }
  Enter();
}

Terminal::~Terminal() {
  GiveBack();
  for (const int number : kFatal) {
    std::signal(number, SIG_DFL);
  }
}

void Terminal::Enter() {
  ::tcgetattr(STDIN_FILENO, &g_before);
  g_is_taken = 1;
  termios raw = g_before;
  raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO | ISIG | IEXTEN);
  raw.c_iflag &= ~static_cast<tcflag_t>(IXON | ICRNL);
  raw.c_cc[VMIN] = 0;
  raw.c_cc[VTIME] = 0;
  ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
  (void)WriteStdout(kEnter);
}

absl::Status Terminal::Show(std::string_view frame) {
  std::string out = "\x1b[H";
  for (const char c : frame) {
    if (c == '\n') {
      out += "\x1b[K\r\n";
    } else {
      out += c;
    }
  }
  return WriteStdout(out + "\x1b[K\x1b[J");
}

std::pair<int32_t, int32_t> Terminal::Size() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) {
    return {80, 24};
  }
  return {size.ws_col, size.ws_row};
}

void Terminal::Suspend() {
  GiveBack();
  (void)std::raise(SIGSTOP);
  Enter();
}

std::vector<KeyPress> KeyReader::Feed(std::string_view bytes) {
  std::vector<KeyPress> keys;
  for (const char c : bytes) {
    if (!escape_.empty()) {
      escape_ += c;
      if (escape_.size() == 2 && (c == '[' || c == 'O')) {
        continue;
      }
      // Parameters, as in Shift with an arrow.
      if (escape_.size() > 2 && escape_.size() < 16 && (c == ';' || (c >= '0' && c <= '9'))) {
        continue;
      }
      if (escape_.size() > 2 && c >= 'A' && c <= 'D') {
        constexpr Key kArrows[] = {Key::kUp, Key::kDown, Key::kRight, Key::kLeft};
        keys.push_back({kArrows[c - 'A'], 0});
      }
      escape_.clear();
      continue;
    }
    switch (c) {
      case '\x1b':
        escape_ = c;
        break;
      case '\x03':
      case '\x04':
        keys.push_back({Key::kEnd, 0});
        break;
      case '\x1a':
        keys.push_back({Key::kSuspend, 0});
        break;
      default:
        keys.push_back({Key::kOther, c});
    }
  }
  return keys;
}

}  // namespace conclave::cli
