// Help, the effective configuration, and the search for the nearest word.
#include <algorithm>
#include <array>
#include <cstdio>

#include "command_line.h"
#include "conclave/service/options.h"
#include "option_state.h"

namespace conclave::service {
namespace {

constexpr size_t kHelpColumn = 34;

// A YAML scalar that reads back as `text`.
std::string Scalar(const std::string& text) {
  const auto is_plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '/' ||
           c == '.' || c == '_' || c == '-' || c == '+' || c == ':';
  };
  const bool is_word = !text.empty() && std::all_of(text.begin(), text.end(), is_plain) &&
                       text.front() != '-' && text.front() != ':' && text.back() != ':' &&
                       text != "null" && text != "Null" && text != "NULL";
  if (is_word) {
    return text;
  }
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      std::array<char, 8> escape;
      std::snprintf(escape.data(), escape.size(), "\\x%02x", static_cast<unsigned>(c));
      out += escape.data();
    } else {
      out += c;
    }
  }
  return out + '"';
}

template <typename Option>
std::string ValueText(const Option& option) {
  const std::vector<std::string> values = option.show();
  if (!option.is_list) {
    return Scalar(values.front());
  }
  std::string out;
  for (const std::string& value : values) {
    out += (out.empty() ? "" : ", ") + Scalar(value);
  }
  return "[" + out + "]";
}

std::string OriginText(Origin origin, const std::string& name) {
  switch (origin) {
    case Origin::kFlag:
      return "flag " + name;
    case Origin::kVariable:
      return "variable " + name;
    case Origin::kFile:
      return "file " + name;
    case Origin::kDefault:
      break;
  }
  return "default";
}

std::string HelpLine(std::string left, const std::string& right) {
  if (left.size() + 2 > kHelpColumn) {
    return left + "\n" + std::string(kHelpColumn, ' ') + right + "\n";
  }
  left.resize(kHelpColumn, ' ');
  return left + right + "\n";
}

std::string FlagColumn(char short_name, std::string_view name, std::string_view value_name) {
  std::string out = short_name == 0 ? "      " : std::string("  -") + short_name + ", ";
  out += "--" + std::string(name);
  if (!value_name.empty()) {
    out += " " + std::string(value_name);
  }
  return out;
}

}  // namespace

// An unset value has no text that could be read back.
static std::string ConfigLine(const auto& option) {
  return option.is_unset() ? "# " + option.info.name + ": (" + option.info.unset_means + ")"
                           : option.info.name + ": " + ValueText(option);
}

std::string OptionSet::State::PrintConfig() const {
  std::vector<std::pair<std::string, std::string>> lines;
  size_t width = 0;
  for (const Option& option : options) {
    const std::string left = ConfigLine(option);
    width = std::max(width, left.size());
    lines.emplace_back(left, OriginText(option.origin, option.origin_name));
  }
  std::string out = "# " + command + " " + version + "\n";
  for (auto& [left, origin] : lines) {
    left.resize(width, ' ');
    out.append(left).append("  # ").append(origin).append("\n");
  }
  return out;
}

std::string OptionSet::Summary() const {
  std::string out;
  for (const Option& option : state_->options) {
    if (!option.is_unset()) {
      out += (out.empty() ? "" : " ") + option.info.name + "=" + ValueText(option);
    }
  }
  return out;
}

std::string OptionSet::Help() const {
  const State& state = *state_;
  std::string out = "Usage: " + state.command;
  if (!state.options.empty()) {
    out += " [options]";
  }
  if (state.has_positional) {
    const Positional& positional = state.positional;
    out += positional.num_min > 0 ? " " + positional.name : " [" + positional.name + "]";
  }
  out += "\n\n" + state.summary + "\n";
  if (state.has_positional) {
    out += "\n" + HelpLine("  " + state.positional.name, state.positional.help);
  }
  std::vector<std::string> groups;
  for (const Option& option : state.options) {
    if (std::find(groups.begin(), groups.end(), option.info.group) == groups.end()) {
      groups.push_back(option.info.group);
    }
  }
  for (const std::string& group : groups) {
    out += "\n" + group + ":\n";
    for (const Option& option : state.options) {
      if (option.info.group != group) {
        continue;
      }
      std::string right = option.info.help;
      const bool has_default =
          !option.default_text.empty() && !(option.is_switch() && option.default_text == "false");
      right += has_default ? " (default: " + option.default_text + ")" : "";
      right += option.is_list ? " (may be repeated)" : "";
      right += " [" + VariableOf(option.info.name) + "]";
      out +=
          HelpLine(FlagColumn(option.info.short_name, option.info.name, option.value_name), right);
    }
  }
  out += "\nEvery command:\n";
  for (const StandardFlag& flag : kStandardFlags) {
    const std::string variable = flag.name == "config" ? " [CONCLAVE_CONFIG]" : "";
    out += HelpLine(FlagColumn(flag.name == "help" ? 'h' : char{0}, flag.name, flag.value_name),
                    std::string(flag.help) + variable);
  }
  out +=
      "\nSettings come from the flag, else the variable in brackets, else the file, else the "
      "default.\n";
  return out;
}

std::string VariableOf(std::string_view name) {
  std::string out = "CONCLAVE_";
  for (const char c : name) {
    out += c == '-' ? '_' : (c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
  }
  return out;
}

namespace {

constexpr size_t kWordBytesMax = 64;

// Optimal string alignment: edits and swaps of neighbours, no part edited twice.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    d[i][0] = i;
  }
  for (size_t j = 0; j <= b.size(); ++j) {
    d[0][j] = j;
  }
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string NearestWord(std::string_view word, std::span<const std::string> words) {
  if (word.size() > kWordBytesMax) {
    return "";
  }
  const std::string* best = nullptr;
  size_t best_distance = 0;
  for (const std::string& candidate : words) {
    const size_t distance = EditDistance(word, candidate);
    if (best == nullptr || distance < best_distance) {
      best = &candidate;
      best_distance = distance;
    }
  }
  // A third of the letters wrong is a typing error, more is another word.
  const size_t distance_max = std::max<size_t>(1, word.size() / 3);
  return best != nullptr && best_distance <= distance_max ? *best : "";
}

}  // namespace conclave::service
