#include "conclave/observability/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <array>
#include <atomic>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <memory>

namespace conclave::observability {
namespace {

constexpr size_t kValueBytesMax = 1024;
constexpr size_t kUserBytesMax = 64;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

std::atomic<LogFormat> g_format{LogFormat::kText};
std::atomic<LogLevel> g_level{LogLevel::kInfo};

// spdlog writes lines of several threads one after the other; the line itself is made here.
spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>("conclave",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_level(spdlog::level::trace);
    made->flush_on(spdlog::level::trace);
    made->set_error_handler([](const std::string&) {});
    return made;
  }();
  return *logger;
}

// Length of the valid UTF-8 character at the start of `text`, 0 when there is none (Unicode 15,
// table 3-7).
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto is_tail = [&](size_t i, unsigned low = 0x80, unsigned high = 0xbf) {
    return i < text.size() && byte(i) >= low && byte(i) <= high;
  };
  const unsigned first = byte(0);
  if (first < 0x80) {
    return 1;
  }
  if (first >= 0xc2 && first <= 0xdf) {
    return is_tail(1) ? 2 : 0;
  }
  if (first >= 0xe0 && first <= 0xef) {
    const unsigned low = first == 0xe0 ? 0xa0 : 0x80;
    const unsigned high = first == 0xed ? 0x9f : 0xbf;
    return is_tail(1, low, high) && is_tail(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const unsigned low = first == 0xf0 ? 0x90 : 0x80;
    const unsigned high = first == 0xf4 ? 0x8f : 0xbf;
    return is_tail(1, low, high) && is_tail(2) && is_tail(3) ? 4 : 0;
  }
  return 0;
}

// Length of the terminal escape sequence at the start of `text` (ECMA-48), which starts with ESC.
size_t EscapeLength(std::string_view text) {
  if (text.size() < 2) {
    return 1;
  }
  size_t i = 2;
  if (text[1] == '[') {
    while (i < text.size() && !(text[i] >= 0x40 && text[i] <= 0x7e)) {
      ++i;
    }
    return i < text.size() ? i + 1 : text.size();
  }
  if (text[1] == ']' || text[1] == 'P' || text[1] == '^' || text[1] == '_') {
    // A string up to BEL or ESC backslash.
    for (; i < text.size(); ++i) {
      if (text[i] == '\a') {
        return i + 1;
      }
      if (text[i] == '\x1b' && i + 1 < text.size() && text[i + 1] == '\\') {
        return i + 2;
      }
    }
    return text.size();
  }
  return 2;
}

// C0, DEL, C1 (U+0080..U+009F), and the characters that reorder what a person reads.
bool IsUnprintable(std::string_view character) {
  const unsigned first = static_cast<unsigned char>(character[0]);
  if (first < 0x20 || first == 0x7f) {
    return true;
  }
  if (first == 0xc2) {
    return static_cast<unsigned char>(character[1]) < 0xa0;
  }
  return character == "\xE2\x80\xA8" || character == "\xE2\x80\xA9" ||  // line, paragraph separator
         (character >= std::string_view("\xE2\x80\xAA") &&
          character <= std::string_view("\xE2\x80\xAE")) ||  // bidi embedding, override
         (character >= std::string_view("\xE2\x81\xA6") &&
          character <= std::string_view("\xE2\x81\xA9"));
}

void AppendQuoted(std::string& out, std::string_view printable) {
  out += '"';
  for (const char c : printable) {
    if (c == '"' || c == '\\') {
      out += '\\';
    }
    out += c;
  }
  out += '"';
}

std::string Number(double value) {
  std::array<char, 32> buffer;
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return error == std::errc() ? std::string(buffer.data(), end) : std::string("0");
}

bool NeedsQuotes(std::string_view text) {
  return text.empty() || text.find_first_of(" \"=\\") != std::string_view::npos;
}

struct ValueWriter {
  std::string& out;
  bool is_json;

  void operator()(std::string_view text) const { Text(Printable(text, kValueBytesMax)); }
  void operator()(UserText user) const { Text(Printable(user.text, kUserBytesMax)); }
  void operator()(int64_t value) const { out += std::to_string(value); }
  void operator()(uint64_t value) const { out += std::to_string(value); }
  void operator()(bool value) const { out += value ? "true" : "false"; }
  void operator()(double value) const {
    if (is_json && !std::isfinite(value)) {
      out += "null";  // JSON has no NaN.
      return;
    }
    out += Number(value);
  }

  void Text(const std::string& printable) const {
    if (is_json || NeedsQuotes(printable)) {
      AppendQuoted(out, printable);
    } else {
      out += printable;
    }
  }
};

std::string Timestamp(std::chrono::system_clock::time_point time) {
  const auto since = std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch());
  const std::time_t seconds = std::chrono::floor<std::chrono::seconds>(since).count();
  const int millis = static_cast<int>((since - std::chrono::seconds(seconds)).count());
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  std::array<char, 40> buffer;
  const size_t length = std::strftime(buffer.data(), buffer.size(), "%Y-%m-%dT%H:%M:%S", &utc);
  std::array<char, 8> fraction;
  std::snprintf(fraction.data(), fraction.size(), ".%03dZ", millis);
  return std::string(buffer.data(), length) + fraction.data();
}

std::string_view PaddedName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO ";
    case LogLevel::kWarning:
      return "WARN ";
    case LogLevel::kError:
      break;
  }
  return "ERROR";
}

}  // namespace

std::string_view NameOf(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      break;
  }
  return "error";
}

std::optional<LogLevel> ParseLogLevel(std::string_view word) {
  for (const LogLevel level :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (word == NameOf(level)) {
      return level;
    }
  }
  return word == "warn" ? std::optional(LogLevel::kWarning) : std::nullopt;
}

void SetUpLogging(LogFormat format, LogLevel level) {
  g_format.store(format);
  g_level.store(level);
}

void SetLogLevel(LogLevel level) { g_level.store(level); }

bool IsLogged(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (!IsLogged(level)) {
    return;
  }
  const std::string line =
      FormatLogLine(g_format.load(std::memory_order_relaxed), level,
                    std::chrono::system_clock::now(), message, {fields.begin(), fields.size()});
  Logger().log(spdlog::level::info, line);
}

std::string FormatLogLine(LogFormat format, LogLevel level,
                          std::chrono::system_clock::time_point time, std::string_view message,
                          std::span<const LogField> fields) {
  const bool is_json = format == LogFormat::kJson;
  const std::string text = Printable(message, kValueBytesMax);
  std::string line;
  if (is_json) {
    line = R"({"ts":")" + Timestamp(time) + R"(","level":")" + std::string(NameOf(level)) +
           R"(","message":)";
    AppendQuoted(line, text);
  } else {
    line = Timestamp(time) + " " + std::string(PaddedName(level)) + " " + text;
  }
  for (const LogField& field : fields) {
    if (is_json) {
      line += ',';
      AppendQuoted(line, Printable(field.key, kValueBytesMax));
      line += ':';
    } else {
      line += ' ';
      line += field.key;
      line += '=';
    }
    std::visit(ValueWriter{line, is_json}, field.value);
  }
  if (is_json) {
    line += '}';
  }
  return line;
}

std::string Printable(std::string_view text, size_t bytes_max) {
  constexpr std::string_view kCut = "...";
  std::string out;
  // Where to cut back to when the whole does not fit.
  size_t cut = 0;
  const size_t cut_max = bytes_max > kCut.size() ? bytes_max - kCut.size() : 0;
  while (!text.empty()) {
    if (text[0] == '\x1b') {
      text.remove_prefix(EscapeLength(text));
      continue;
    }
    const size_t length = Utf8Length(text);
    const std::string_view character = length > 0 ? text.substr(0, length) : kReplacement;
    text.remove_prefix(length > 0 ? length : 1);
    if (IsUnprintable(character)) {
      continue;
    }
    if (out.size() + character.size() > bytes_max) {
      out.resize(cut);
      out += kCut.substr(0, bytes_max);
      return out;
    }
    out += character;
    if (out.size() <= cut_max) {
      cut = out.size();
    }
  }
  return out;
}

bool IsUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace conclave::observability
