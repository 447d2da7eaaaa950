#include "command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/service/options.h"
#include "conclave/service/units.h"

namespace conclave::service {
namespace {

// "--name" out of "--name=value". Values are never echoed: they may be secrets.
std::string FlagOf(std::string_view argument) {
  return std::string(argument.substr(0, argument.find('=')));
}

absl::Status UsageError(std::string_view flag, std::string_view why) {
  return InvalidArgument("usage", std::string(flag) + ": " + std::string(why));
}

class Splitter {
 public:
  explicit Splitter(std::span<const FlagShape> shapes) : shapes_(shapes.begin(), shapes.end()) {
    for (const StandardFlag& flag : kStandardFlags) {
      shapes_.push_back({std::string(flag.name), flag.name == "help" ? 'h' : char{0},
                         std::string(flag.value_name), false});
    }
    app_.set_help_flag();
    app_.allow_extras();
    for (const FlagShape& shape : shapes_) {
      std::string names = "--" + shape.name;
      if (shape.short_name != 0) {
        names.insert(0, {'-', shape.short_name, ','});
      }
      CLI::Option* option =
          shape.value_name.empty() ? app_.add_flag(names) : app_.add_option(names);
      // Take all, so that a second one is seen here and not overwritten there.
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
      options_.push_back(option);
    }
  }

  absl::StatusOr<CommandLine> Split(std::span<const std::string> args, int num_positionals_max) {
    // Behind "--" nothing is a flag. Positionals are not declared to CLI11, which would split "[a,
    // b]" into two.
    const auto mark = std::find(args.begin(), args.end(), "--");
    const std::vector<std::string> tail(mark == args.end() ? mark : mark + 1, args.end());
    args = args.first(static_cast<size_t>(mark - args.begin()));
    // CLI11 takes the last argument first.
    std::vector<std::string> reversed(args.rbegin(), args.rend());
    try {
      app_.parse(std::move(reversed));
    } catch (const CLI::ArgumentMismatch&) {
      // It stops so only when the arguments ran out, behind a flag that needs a value.
      return MissingValue(FlagOf(args.back()));
    } catch (const CLI::Error& error) {
      return InvalidArgument("usage", error.what());
    }
    if (IsOn("help") || IsOn("version")) {
      CommandLine only;
      only.flags[IsOn("help") ? "help" : "version"] = {"true"};
      return only;
    }
    CONCLAVE_RETURN_IF_ERROR(CheckUnknown());
    CONCLAVE_ASSIGN_OR_RETURN(CommandLine line, Collect());
    line.positionals = app_.remaining();
    line.positionals.insert(line.positionals.end(), tail.begin(), tail.end());
    if (line.positionals.size() > static_cast<size_t>(num_positionals_max)) {
      return InvalidArgument(
          "usage", "unexpected argument " +
                       Quoted(line.positionals[static_cast<size_t>(num_positionals_max)]));
    }
    return line;
  }

 private:
  const FlagShape* Find(std::string_view flag) const {
    for (const FlagShape& shape : shapes_) {
      if (flag == "--" + shape.name ||
          (shape.short_name != 0 && flag == std::string("-") + shape.short_name)) {
        return &shape;
      }
    }
    return nullptr;
  }

  bool IsOn(std::string_view name) const {
    for (size_t i = 0; i < shapes_.size(); ++i) {
      if (shapes_[i].name == name) {
        return options_[i]->count() > 0;
      }
    }
    return false;
  }

  absl::Status MissingValue(const std::string& flag) const {
    const FlagShape* shape = Find(flag);
    return UsageError(flag,
                      "has no value" + (shape == nullptr ? "" : "; expected " + shape->value_name));
  }

  absl::Status CheckUnknown() const {
    for (const std::string& rest : app_.remaining()) {
      if (rest.size() < 2 || !rest.starts_with('-')) {
        continue;  // A positional.
      }
      const std::string flag = FlagOf(rest);
      std::vector<std::string> names;
      for (const FlagShape& shape : shapes_) {
        names.push_back("--" + shape.name);
      }
      const std::string near = NearestWord(flag, names);
      return InvalidArgument("usage", "unknown flag " + Quoted(flag) +
                                          (near.empty() ? "" : "; did you mean " + near + "?"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<CommandLine> Collect() const {
    CommandLine line;
    for (size_t i = 0; i < shapes_.size(); ++i) {
      const FlagShape& shape = shapes_[i];
      const std::string flag = "--" + shape.name;
      if (options_[i]->count() == 0) {
        continue;
      }
      std::vector<std::string> values = options_[i]->results();
      if (values.size() > 1 && !shape.is_list) {
        return UsageError(flag, "given " + std::to_string(values.size()) + " times; expected once");
      }
      for (const std::string& value : values) {
        // `--listen --threads 4`: the second flag is no address.
        if (value.empty() || (!shape.value_name.empty() && value.starts_with('-') &&
                              Find(FlagOf(value)) != nullptr)) {
          return MissingValue(flag);
        }
      }
      line.flags[shape.name] = std::move(values);
    }
    return line;
  }

  std::vector<FlagShape> shapes_;
  CLI::App app_;
  std::vector<CLI::Option*> options_;
};

}  // namespace

absl::StatusOr<CommandLine> SplitCommandLine(
    std::span<const std::string> args, std::span<const FlagShape> shapes,
    const std::map<std::string, std::string, std::less<>>& refused, int num_positionals_max) {
  for (const std::string& argument : args) {
    if (argument == "--") {
      break;
    }
    if (!argument.starts_with("--")) {
      continue;
    }
    const std::string flag = FlagOf(argument);
    if (const auto found = refused.find(flag.substr(2)); found != refused.end()) {
      return UsageError(flag, found->second);
    }
    // CLI11 would take the next argument as the value.
    if (argument.size() == flag.size() + 1) {
      return UsageError(flag, "has no value after '='");
    }
  }
  return Splitter(shapes).Split(args, num_positionals_max);
}

}  // namespace conclave::service
