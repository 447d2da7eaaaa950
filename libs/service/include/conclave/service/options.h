// One rule for all settings of all commands. An option is declared once, with its name, type,
// default, help and group; from that follow the flag `--name VALUE`, the YAML key `name` of the
// config file and the variable CONCLAVE_NAME. Which one counts: flag, then variable, then file,
// then default. A bad value is refused wherever it stands, also where a stronger source overrides
// it.
//
//   OptionSet set("conclave serve", "0.1.0", "Serves a model.");
//   set.Add({.name = "threads", .help = "compute threads", .group = "Compute"}, &options.threads,
//   {1, 1024}); auto parsed = set.Parse(args, ProcessVariables());
//
// Every command has --help, --version, --config FILE, --print-config and --check-config without
// declaring them. The target's value at the time of Add is the default. CLI11 splits the command
// line, yaml-cpp the file; neither sees a value's meaning.
//
// Errors. Of flags and variables: reason "usage" (exit 2), "--listen: expected HOST:PORT with port
// 0..65535, found
// ...". Of files: "config_file", "config_syntax", "config_unknown_key", "config_value" (exit 3),
// "FILE:LINE:COLUMN:
// ...". An unknown flag or key names the nearest one. An empty variable counts as not set.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/service/address.h"
#include "conclave/service/units.h"

namespace conclave::service {

enum class Origin : uint8_t { kDefault, kFile, kVariable, kFlag };

struct OptionInfo {
  std::string name;  // kebab-case, without dashes
  std::string help;  // no full stop; the default is added
  std::string group = "Options";
  char short_name = 0;
  // What an unset value means ("the demo"), for options whose default is an empty string, list or a
  // zero that stands for "choose": help and --print-config show it instead.
  std::string unset_means = {};
};

template <typename T>
struct Range {
  T min;
  T max;
};

// What a path must be when it is given. All: not empty, at most 4,095 bytes, no NUL.
enum class PathKind : uint8_t { kAny, kExistingFile, kExistingFolder };

struct Positional {
  std::string name;  // "DIR"
  std::string help;
  int num_min = 0;
  int num_max = 1;
};

using Variables = std::map<std::string, std::string, std::less<>>;

// The environment of this process. Called once, in main.
Variables ProcessVariables();

class OptionSet {
 public:
  OptionSet(std::string command, std::string version, std::string summary);
  ~OptionSet();
  OptionSet(const OptionSet&) = delete;
  OptionSet& operator=(const OptionSet&) = delete;

  // Targets outlive the set. A name declared twice aborts.
  void Add(OptionInfo info, bool* target);  // --name or --name=false
  void Add(OptionInfo info, std::string* target);
  void Add(OptionInfo info, int32_t* target, Range<int64_t> range);
  void Add(OptionInfo info, int64_t* target, Range<int64_t> range);
  void Add(OptionInfo info, double* target, Range<double> range);
  void Add(OptionInfo info, ByteSize* target, Range<ByteSize> range);
  void Add(OptionInfo info, std::chrono::milliseconds* target,
           Range<std::chrono::milliseconds> range);
  void Add(OptionInfo info, Address* target);
  void Add(OptionInfo info, std::vector<Address>* target);  // HOST:PORT[,HOST:PORT...]
  void AddChoice(OptionInfo info, std::string* target, std::vector<std::string> words);
  void AddPath(OptionInfo info, std::string* target, PathKind kind);
  // May be given several times; a YAML sequence.
  void AddPaths(OptionInfo info, std::vector<std::string>* target, PathKind kind);

  // Arguments without a flag. At most one call.
  void AddPositional(Positional positional, std::vector<std::string>* target);

  // A flag that does not exist on purpose: using it fails with `why`, such as an API key on the
  // command line.
  void Refuse(std::string name, std::string why);

  enum class Action : uint8_t {
    kRun,
    kPrint,       // --help, --version, --print-config: print `output` and exit 0
    kCheckConfig  // open what the settings name, start nothing
  };
  struct Parsed {
    Action action = Action::kRun;
    std::string output;
  };

  // `args` without the program's and the command's name. May be called again with the same
  // arguments after a signal to reload the file: targets first get their defaults back.
  absl::StatusOr<Parsed> Parse(std::span<const std::string> args, const Variables& variables);

  // After Parse. `name` must be declared.
  Origin OriginOf(std::string_view name) const;

  // One "name=value" per option, for the log line at start.
  std::string Summary() const;

  std::string Help() const;

 private:
  struct Option;
  struct State;
  Option& Declare(OptionInfo info, std::string value_name);
  std::unique_ptr<State> state_;
};

// The word of `words` nearest to `word` by edits (insert, delete, replace, swap), or empty when
// none is near.
std::string NearestWord(std::string_view word, std::span<const std::string> words);

// "CONCLAVE_KV_MEMORY" for "kv-memory".
std::string VariableOf(std::string_view name);

}  // namespace conclave::service
