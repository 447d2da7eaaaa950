// Splitting of a command line into flags and positionals; the only place that sees CLI11.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::service {

// Flags of every command.
struct StandardFlag {
  std::string_view name;
  std::string_view value_name;
  std::string_view help;
};
inline constexpr StandardFlag kStandardFlags[] = {
    {"config", "FILE", "settings as YAML, keys as the flags"},
    {"print-config", "", "print the effective settings with their origins and exit"},
    {"check-config", "", "check settings and the files they name and exit"},
    {"help", "", "print this and exit"},
    {"version", "", "print the version and exit"},
};

struct FlagShape {
  std::string name;
  char short_name = 0;
  std::string value_name;  // empty: a switch
  bool is_list = false;
};

struct CommandLine {
  std::map<std::string, std::vector<std::string>, std::less<>>
      flags;  // a switch has "true" or what follows '='
  std::vector<std::string> positionals;
};

// Refuses, naming the flag: unknown and refused ones, one given twice, one without a value. With
// --help or --version among the arguments only these are returned. `refused` maps names to why.
absl::StatusOr<CommandLine> SplitCommandLine(
    std::span<const std::string> args, std::span<const FlagShape> shapes,
    const std::map<std::string, std::string, std::less<>>& refused, int num_positionals_max);

}  // namespace conclave::service
