#include "config_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <system_error>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/units.h"

namespace conclave::service {
namespace {

constexpr size_t kFileBytesMax = size_t{1} << 20;

absl::Status SyntaxError(std::string_view file, int line, int column, std::string_view why) {
  return InvalidArgument("config_syntax", At(file, line, column) + ": " + std::string(why));
}

// Collects the entries; refuses by YAML::ParserException, which carries the place.
class Collector final : public YAML::EventHandler {
 public:
  explicit Collector(std::string_view text) : text_(text) {}

  std::vector<ConfigEntry> Take() { return std::move(entries_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    if (depth_ == Depth::kRoot) {
      return;  // An empty document.
    }
    if (depth_ == Depth::kList || !is_value_) {
      Refuse(mark, depth_ == Depth::kList ? "an empty list entry" : "an empty key");
    }
    entries_.back().is_null = true;
    Place(mark);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Refuse(mark, "aliases are not allowed");
  }
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    Refuse(mark, "anchors are not allowed");
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    CheckTag(mark, tag);
    if (tag == "!") {
      CheckQuotes(mark);
    }
    switch (depth_) {
      case Depth::kRoot:
        Refuse(mark, "expected settings as `key: value`, found a single value");
      case Depth::kMap:
        if (is_value_) {
          entries_.back().values.push_back(value);
          Place(mark);
        } else {
          StartEntry(mark, value);
        }
        break;
      case Depth::kList:
        entries_.back().values.push_back(value);
        break;
    }
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    CheckTag(mark, tag);
    if (depth_ != Depth::kMap || !is_value_) {
      Refuse(mark, "a list is not allowed here");
    }
    entries_.back().is_list = true;
    depth_ = Depth::kList;
    entries_.back().value_line = mark.line + 1;
    entries_.back().value_column = mark.column + 1;
  }
  void OnSequenceEnd() override {
    depth_ = Depth::kMap;
    is_value_ = false;
  }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    CheckTag(mark, tag);
    if (depth_ != Depth::kRoot) {
      Refuse(mark, "settings are flat: a map is not allowed as a value");
    }
    depth_ = Depth::kMap;
  }
  void OnMapEnd() override { depth_ = Depth::kRoot; }

 private:
  enum class Depth : uint8_t { kRoot, kMap, kList };

  [[noreturn]] static void Refuse(const YAML::Mark& mark, const std::string& why) {
    throw YAML::ParserException(mark, why);
  }

  // "?" is a plain and "!" a quoted scalar; others were written down.
  static void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!") {
      Refuse(mark, "tags are not allowed");
    }
  }

  // yaml-cpp takes the end of the file for a closing quote.
  void CheckQuotes(const YAML::Mark& mark) const {
    size_t at = 0;
    for (int line = 0; line < mark.line && at != std::string_view::npos; ++line) {
      at = text_.find('\n', at);
      at += at == std::string_view::npos ? 0 : 1;
    }
    // A byte order mark does not count as a column.
    const size_t skipped = mark.line == 0 && text_.starts_with("\xEF\xBB\xBF") ? 3 : 0;
    at += at == std::string_view::npos ? 0 : static_cast<size_t>(mark.column) + skipped;
    if (at >= text_.size() || (text_[at] != '"' && text_[at] != '\'')) {
      return;
    }
    const char quote = text_[at];
    for (size_t i = at + 1; i < text_.size(); ++i) {
      const bool is_doubled = quote == '\'' && text_.substr(i).starts_with("''");
      const bool is_escaped = quote == '"' && text_[i] == '\\';
      if (is_doubled || is_escaped) {
        ++i;
      } else if (text_[i] == quote) {
        return;
      }
    }
    Refuse(mark, "a quoted text has no end");
  }

  void StartEntry(const YAML::Mark& mark, const std::string& key) {
    for (const ConfigEntry& other : entries_) {
      if (other.key == key) {
        Refuse(mark,
               "duplicate key " + Quoted(key) + ", first in line " + std::to_string(other.line));
      }
    }
    ConfigEntry& entry = entries_.emplace_back();
    entry.key = key;
    entry.line = mark.line + 1;
    entry.column = mark.column + 1;
    is_value_ = true;
  }

  void Place(const YAML::Mark& mark) {
    entries_.back().value_line = mark.line + 1;
    entries_.back().value_column = mark.column + 1;
    is_value_ = false;
  }

  const std::string_view text_;
  std::vector<ConfigEntry> entries_;
  Depth depth_ = Depth::kRoot;
  bool is_value_ = false;
};

// What yaml-cpp lets through or reports poorly: tabs that indent, bytes that are no text.
absl::Status CheckText(const std::string& text, const std::string& file) {
  int line = 1;
  size_t line_start = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] != '\n') {
      continue;
    }
    const std::string_view row = std::string_view(text).substr(line_start, i - line_start);
    const size_t content = row.find_first_not_of(' ');
    if (content != std::string_view::npos && row[content] == '\t' &&
        row.find_first_not_of(" \t\r") != std::string_view::npos) {
      return SyntaxError(file, line, static_cast<int>(content) + 1,
                         "a tab indents this line; expected spaces");
    }
    for (size_t column = 0; column < row.size(); ++column) {
      const unsigned char c = static_cast<unsigned char>(row[column]);
      if ((c < 0x20 && c != '\t' && c != '\r') || c == 0x7f) {
        return SyntaxError(file, line, static_cast<int>(column) + 1,
                           "a control character; expected text");
      }
    }
    if (!observability::IsUtf8(row)) {
      return SyntaxError(file, line, 1, "this line is not valid UTF-8");
    }
    ++line;
    line_start = i + 1;
  }
  return absl::OkStatus();
}

}  // namespace

std::string At(std::string_view file, int line, int column) {
  return std::string(file) + ":" + std::to_string(line) + ":" + std::to_string(column);
}

absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(const std::string& text,
                                                     const std::string& file) {
  CONCLAVE_RETURN_IF_ERROR(CheckText(text, file));
  Collector collector(text);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    if (parser.HandleNextDocument(collector)) {
      Collector second(text);
      if (parser.HandleNextDocument(second)) {
        return InvalidArgument("config_syntax", file + ": a second document; expected one");
      }
    }
  } catch (const YAML::Exception& error) {
    return SyntaxError(file, error.mark.line + 1, error.mark.column + 1, error.msg);
  } catch (const std::exception&) {
    return InvalidArgument("config_syntax", file + ": not a YAML document");
  }
  return collector.Take();
}

absl::StatusOr<std::vector<ConfigEntry>> ReadConfig(const std::string& file) {
  const auto failed = [&](std::string_view why) {
    return NotFound("config_file", file + ": " + std::string(why));
  };
  const auto system_error = [&](int error) {
    return failed(std::error_code(error, std::generic_category()).message());
  };
  // O_NONBLOCK: opening a pipe must not wait for a writer.
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return system_error(errno);
  }
  const auto close_fd = [](const int* f) { ::close(*f); };
  const std::unique_ptr<const int, decltype(close_fd)> closer(&fd, close_fd);
  struct stat status {};
  if (::fstat(fd, &status) != 0) {
    return system_error(errno);
  }
  if (!S_ISREG(status.st_mode)) {
    return failed("expected a regular file, found something else");
  }
  std::string text;
  text.resize(kFileBytesMax + 1);
  size_t length = 0;
  while (length < text.size()) {
    const ssize_t got = ::read(fd, text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return system_error(errno);
    }
    if (got == 0) {
      break;
    }
    length += static_cast<size_t>(got);
  }
  if (length > kFileBytesMax) {
    return failed("too large; expected at most 1MiB");
  }
  text.resize(length);
  return ParseConfig(text, file);
}

}  // namespace conclave::service
