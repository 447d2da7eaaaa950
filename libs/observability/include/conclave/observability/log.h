// Logging of a process: structured lines on stderr, one event per line, as text or JSON. stdout
// belongs to results.
//
//   2026-01-31T12:00:00.123Z INFO  model loaded seconds=1.25 path=models/demo
//   {"ts":"2026-01-31T12:00:00.123Z","level":"info","message":"model
//   loaded","seconds":1.25,"path":"models/demo"}
//
// What must never be logged: prompts, images, tokens, generated text, expert ids or gate values of
// a request. There is no field type for them and no switch that turns them on. A value that came
// from a client goes through FromUser(). Values are made harmless here: CR, LF, ANSI sequences and
// other control characters are removed, invalid UTF-8 is replaced, long values are cut.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace conclave::observability {

enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kText, kJson };

// "debug", "info", "warning", "error".
std::string_view NameOf(LogLevel level);
// "warn" is taken for kWarning too; nullopt for an unknown word.
std::optional<LogLevel> ParseLogLevel(std::string_view word);

// Text of a client: cut to 64 bytes.
struct UserText {
  std::string_view text;
};
inline UserText FromUser(std::string_view text) { return UserText{text}; }

// A key and its value. Keys are literals of ours, snake_case. Views must live until Log() returns.
struct LogField {
  using Value = std::variant<std::string_view, UserText, int64_t, uint64_t, double, bool>;

  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(std::string_view(v)) {}
  LogField(std::string_view k, const std::string& v) : key(k), value(std::string_view(v)) {}
  LogField(std::string_view k, UserText v) : key(k), value(v) {}
  LogField(std::string_view k, bool v) : key(k), value(v) {}
  LogField(std::string_view k, double v) : key(k), value(v) {}
  LogField(std::string_view k, int v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, long v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, long long v) : key(k), value(int64_t{v}) {}
  LogField(std::string_view k, unsigned v) : key(k), value(uint64_t{v}) {}
  LogField(std::string_view k, unsigned long v) : key(k), value(uint64_t{v}) {}
  LogField(std::string_view k, unsigned long long v) : key(k), value(uint64_t{v}) {}

  std::string_view key;
  Value value;
};

// Sets format and level for the whole process. Call in main before threads start. Until then: text,
// kInfo.
void SetUpLogging(LogFormat format, LogLevel level);

// Any thread, at any time (SIGHUP reloads it).
void SetLogLevel(LogLevel level);
bool IsLogged(LogLevel level);

// Writes one line when `level` is enabled. `message` is a fixed sentence of ours, without values.
// Any thread; never throws, never fails: a closed or full stderr loses the line.
void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

inline void LogDebug(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kDebug, message, fields);
}
inline void LogInfo(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

// The line that Log() writes, without the newline. Pure.
std::string FormatLogLine(LogFormat format, LogLevel level,
                          std::chrono::system_clock::time_point time, std::string_view message,
                          std::span<const LogField> fields);

// `text` without control characters and ANSI sequences, invalid UTF-8 replaced by U+FFFD, at most
// `bytes_max` bytes (cut at a character, then "..."). For everything that a person's terminal or a
// log may show.
std::string Printable(std::string_view text, size_t bytes_max);

bool IsUtf8(std::string_view text);

}  // namespace conclave::observability
