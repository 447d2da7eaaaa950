#include "conclave/service/options.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "command_line.h"
#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "config_file.h"
#include "option_state.h"

namespace conclave::service {
namespace {

constexpr size_t kPathBytesMax = 4095;  // PATH_MAX without its end

absl::Status OutOfRange(const std::string& expected, std::string_view found) {
  return Error(absl::StatusCode::kOutOfRange, "usage",
               "expected " + expected + ", found " + Quoted(found));
}

template <typename T>
absl::Status CheckRange(T value, Range<T> range, std::string_view text, const std::string& shown) {
  return value < range.min || value > range.max ? OutOfRange(shown, text) : absl::OkStatus();
}

std::string NumberText(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  return text.ends_with('.') ? text + "0" : text;
}

absl::Status CheckPath(std::string_view path, PathKind kind) {
  if (path.size() > kPathBytesMax) {
    return InvalidArgument("usage", "expected a path of at most 4095 bytes, found " +
                                        std::to_string(path.size()) + " bytes");
  }
  if (path.find('\0') != std::string_view::npos) {
    return InvalidArgument("usage", "expected a path, found a NUL character in it");
  }
  if (kind == PathKind::kAny) {
    return absl::OkStatus();
  }
  const bool wants_folder = kind == PathKind::kExistingFolder;
  struct stat status {};
  if (::stat(std::string(path).c_str(), &status) != 0) {
    return InvalidArgument(
        "usage", Quoted(path) + ": " + std::error_code(errno, std::generic_category()).message() +
                     "; expected an existing " + (wants_folder ? "folder" : "file"));
  }
  if (S_ISDIR(status.st_mode) != wants_folder) {
    return InvalidArgument("usage", wants_folder
                                        ? "expected a folder, found the file " + Quoted(path)
                                        : "expected a file, found the folder " + Quoted(path));
  }
  return absl::OkStatus();
}

std::string Joined(std::span<const std::string> words, std::string_view separator) {
  std::string out;
  for (const std::string& word : words) {
    out += (out.empty() ? "" : std::string(separator)) + word;
  }
  return out;
}

// An error of a value in a file has the file's reason and place.
absl::Status InFile(const absl::Status& status, std::string_view place, std::string_view key) {
  return Error(status.code(), "config_value",
               std::string(place) + ": " + std::string(key) + ": " + MessageOf(status));
}

}  // namespace

OptionSet::OptionSet(std::string command, std::string version, std::string summary)
    : state_(new State) {
  state_->command = std::move(command);
  state_->version = std::move(version);
  state_->summary = std::move(summary);
}
OptionSet::~OptionSet() = default;

OptionSet::Option& OptionSet::Declare(OptionInfo info, std::string value_name) {
  CONCLAVE_CHECK(!info.name.empty() && state_->Find(info.name) == nullptr);
  for (const StandardFlag& flag : kStandardFlags) {
    CONCLAVE_CHECK(info.name != flag.name);
  }
  Option& option = state_->options.emplace_back();
  option.info = std::move(info);
  option.value_name = std::move(value_name);
  return option;
}

namespace {

// Fills the parts that every single-valued option shares. `parse(text)` gives the checked value,
// `print` its text.
template <typename Option, typename T, typename Parse, typename Print>
void Bind(Option& option, T* target, const Parse& parse, const Print& print) {
  const T initial = *target;
  option.set = [target, parse](std::string_view text) -> absl::Status {
    CONCLAVE_ASSIGN_OR_RETURN(*target, parse(text));
    return absl::OkStatus();
  };
  option.reset = [target, initial] { *target = initial; };
  option.show = [target, print] { return std::vector<std::string>{print(*target)}; };
  option.default_text = option.info.unset_means.empty() ? print(initial) : option.info.unset_means;
}

template <typename Int>
auto IntParser(Range<int64_t> range) {
  return [range](std::string_view text) -> absl::StatusOr<Int> {
    CONCLAVE_ASSIGN_OR_RETURN(const int64_t value, ParseInt(text));
    CONCLAVE_RETURN_IF_ERROR(CheckRange(
        value, range, text, std::to_string(range.min) + ".." + std::to_string(range.max)));
    return static_cast<Int>(value);
  };
}

}  // namespace

void OptionSet::Add(OptionInfo info, bool* target) {
  Bind(Declare(std::move(info), ""), target, &ParseBool,
       [](bool value) { return std::string(value ? "true" : "false"); });
}

void OptionSet::Add(OptionInfo info, std::string* target) {
  Bind(
      Declare(std::move(info), "TEXT"), target,
      [](std::string_view text) -> absl::StatusOr<std::string> { return std::string(text); },
      [](const std::string& value) { return value; });
}

void OptionSet::Add(OptionInfo info, int32_t* target, Range<int64_t> range) {
  Bind(Declare(std::move(info), "N"), target, IntParser<int32_t>(range),
       [](int32_t value) { return std::to_string(value); });
}

void OptionSet::Add(OptionInfo info, int64_t* target, Range<int64_t> range) {
  Bind(Declare(std::move(info), "N"), target, IntParser<int64_t>(range),
       [](int64_t value) { return std::to_string(value); });
}

void OptionSet::Add(OptionInfo info, double* target, Range<double> range) {
  Bind(
      Declare(std::move(info), "NUMBER"), target,
      [range](std::string_view text) -> absl::StatusOr<double> {
        CONCLAVE_ASSIGN_OR_RETURN(const double value, ParseNumber(text));
        CONCLAVE_RETURN_IF_ERROR(
            CheckRange(value, range, text, NumberText(range.min) + ".." + NumberText(range.max)));
        return value;
      },
      &NumberText);
}

void OptionSet::Add(OptionInfo info, ByteSize* target, Range<ByteSize> range) {
  Bind(
      Declare(std::move(info), "SIZE"), target,
      [range](std::string_view text) -> absl::StatusOr<ByteSize> {
        CONCLAVE_ASSIGN_OR_RETURN(const ByteSize value, ParseByteSize(text));
        CONCLAVE_RETURN_IF_ERROR(
            CheckRange(value, range, text, ToString(range.min) + ".." + ToString(range.max)));
        return value;
      },
      [](ByteSize value) { return ToString(value); });
}

void OptionSet::Add(OptionInfo info, std::chrono::milliseconds* target,
                    Range<std::chrono::milliseconds> range) {
  Bind(
      Declare(std::move(info), "DURATION"), target,
      [range](std::string_view text) -> absl::StatusOr<std::chrono::milliseconds> {
        CONCLAVE_ASSIGN_OR_RETURN(const std::chrono::milliseconds value, ParseDuration(text));
        CONCLAVE_RETURN_IF_ERROR(
            CheckRange(value, range, text, ToString(range.min) + ".." + ToString(range.max)));
        return value;
      },
      [](std::chrono::milliseconds value) { return ToString(value); });
}

void OptionSet::Add(OptionInfo info, Address* target) {
  Bind(Declare(std::move(info), "HOST:PORT"), target, &ParseAddress,
       [](const Address& value) { return ToString(value); });
}

void OptionSet::Add(OptionInfo info, std::vector<Address>* target) {
  Bind(Declare(std::move(info), "HOST:PORT[,...]"), target, &ParseAddresses,
       [](const std::vector<Address>& value) { return ToString(value); });
}

void OptionSet::AddChoice(OptionInfo info, std::string* target, std::vector<std::string> words) {
  Bind(
      Declare(std::move(info), Joined(words, "|")), target,
      [words](std::string_view text) -> absl::StatusOr<std::string> {
        if (std::find(words.begin(), words.end(), text) != words.end()) {
          return std::string(text);
        }
        const std::string near = NearestWord(text, words);
        return InvalidArgument("usage", "expected one of " + Joined(words, ", ") + ", found " +
                                            Quoted(text) +
                                            (near.empty() ? "" : "; did you mean " + near + "?"));
      },
      [](const std::string& value) { return value; });
}

void OptionSet::AddPath(OptionInfo info, std::string* target, PathKind kind) {
  Bind(
      Declare(std::move(info), kind == PathKind::kExistingFile ? "FILE" : "DIR"), target,
      [kind](std::string_view text) -> absl::StatusOr<std::string> {
        CONCLAVE_RETURN_IF_ERROR(CheckPath(text, kind));
        return std::string(text);
      },
      [](const std::string& value) { return value; });
}

void OptionSet::AddPaths(OptionInfo info, std::vector<std::string>* target, PathKind kind) {
  Option& option = Declare(std::move(info), kind == PathKind::kExistingFile ? "FILE" : "DIR");
  option.is_list = true;
  option.default_text = option.info.unset_means;
  option.set = [target, kind](std::string_view text) -> absl::Status {
    CONCLAVE_RETURN_IF_ERROR(CheckPath(text, kind));
    target->emplace_back(text);
    return absl::OkStatus();
  };
  option.reset = [target, initial = *target] { *target = initial; };
  option.clear = [target] { target->clear(); };
  option.show = [target] { return *target; };
}

void OptionSet::AddPositional(Positional positional, std::vector<std::string>* target) {
  CONCLAVE_CHECK(!state_->has_positional);
  state_->has_positional = true;
  state_->positional = std::move(positional);
  state_->positional_target = target;
}

void OptionSet::Refuse(std::string name, std::string why) {
  state_->refused.emplace(std::move(name), std::move(why));
}

namespace {

// One source's values into an option. `name` is how that source calls it.
template <typename Option>
absl::Status Assign(Option& option, std::span<const std::string> values, Origin origin,
                    const std::string& name) {
  if (option.is_list) {
    option.clear();
  }
  for (const std::string& value : values) {
    if (value.empty()) {
      return InvalidArgument(
          "usage",
          "has no value; expected " + (option.is_switch() ? "true or false" : option.value_name));
    }
    CONCLAVE_RETURN_IF_ERROR(option.set(value));
  }
  option.origin = origin;
  option.origin_name = name;
  return absl::OkStatus();
}

template <typename State>
absl::Status ApplyFile(State& state, const std::string& file) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<ConfigEntry> entries, ReadConfig(file));
  std::vector<std::string> names;
  for (const auto& option : state.options) {
    names.push_back(option.info.name);
  }
  for (const ConfigEntry& entry : entries) {
    auto* option = state.Find(entry.key);
    if (option == nullptr) {
      const std::string near = NearestWord(entry.key, names);
      return InvalidArgument("config_unknown_key",
                             At(file, entry.line, entry.column) + ": unknown key " +
                                 Quoted(entry.key) +
                                 (near.empty() ? "" : "; did you mean " + near + "?"));
    }
    const std::string place = At(file, entry.value_line, entry.value_column);
    if (entry.is_null) {
      return InFile(InvalidArgument("usage", "has no value"), place, entry.key);
    }
    if (entry.is_list && !option->is_list) {
      return InFile(InvalidArgument("usage", "expected one value, found a list"), place, entry.key);
    }
    if (absl::Status status =
            Assign(*option, entry.values, Origin::kFile, file + ":" + std::to_string(entry.line));
        !status.ok()) {
      return InFile(status, place, entry.key);
    }
  }
  return absl::OkStatus();
}

template <typename State>
absl::Status ApplyVariables(State& state, const Variables& variables) {
  for (auto& option : state.options) {
    const std::string name = VariableOf(option.info.name);
    const auto found = variables.find(name);
    if (found == variables.end() || found->second.empty()) {
      continue;
    }
    CONCLAVE_RETURN_IF_ERROR(
        Annotate(Assign(option, {&found->second, 1}, Origin::kVariable, name), name));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OptionSet::Parsed> OptionSet::Parse(std::span<const std::string> args,
                                                   const Variables& variables) {
  State& state = *state_;
  std::vector<FlagShape> shapes;
  for (Option& option : state.options) {
    option.reset();
    option.origin = Origin::kDefault;
    option.origin_name.clear();
    shapes.push_back({option.info.name, option.info.short_name, option.value_name, option.is_list});
  }
  CONCLAVE_ASSIGN_OR_RETURN(const CommandLine line,
                            SplitCommandLine(args, shapes, state.refused,
                                             state.has_positional ? state.positional.num_max : 0));
  const auto is_on = [&](std::string_view name) {
    return line.flags.find(name) != line.flags.end();
  };
  if (is_on("help")) {
    return Parsed{Action::kPrint, Help()};
  }
  if (is_on("version")) {
    return Parsed{Action::kPrint, "conclave " + state.version + "\n"};
  }

  std::string file;
  if (const auto flag = line.flags.find("config"); flag != line.flags.end()) {
    file = flag->second.front();
    CONCLAVE_RETURN_IF_ERROR(Annotate(CheckPath(file, PathKind::kAny), "--config"));
  } else if (const auto found = variables.find("CONCLAVE_CONFIG"); found != variables.end()) {
    file = found->second;
  }
  if (!file.empty()) {
    CONCLAVE_RETURN_IF_ERROR(ApplyFile(state, file));
  }
  CONCLAVE_RETURN_IF_ERROR(ApplyVariables(state, variables));
  for (Option& option : state.options) {
    if (const auto flag = line.flags.find(option.info.name); flag != line.flags.end()) {
      const std::string name = "--" + option.info.name;
      CONCLAVE_RETURN_IF_ERROR(Annotate(Assign(option, flag->second, Origin::kFlag, name), name));
    }
  }
  if (is_on("print-config")) {
    return Parsed{Action::kPrint, state.PrintConfig()};
  }
  const bool is_check = is_on("check-config");
  if (state.has_positional) {
    if (!is_check && static_cast<int>(line.positionals.size()) < state.positional.num_min) {
      return InvalidArgument(
          "usage", state.positional.name + " is missing; see " + state.command + " --help");
    }
    *state.positional_target = line.positionals;
  }
  return Parsed{is_check ? Action::kCheckConfig : Action::kRun, ""};
}

Origin OptionSet::OriginOf(std::string_view name) const {
  const Option* option = state_->Find(name);
  CONCLAVE_CHECK(option != nullptr);
  return option->origin;
}

Variables ProcessVariables() {
  Variables variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t split = text.find('=');
    if (split != std::string_view::npos) {
      variables.emplace(text.substr(0, split), text.substr(split + 1));
    }
  }
  return variables;
}

}  // namespace conclave::service
