// What an OptionSet holds; shared by parsing (options.cc) and printing (options_text.cc).
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/service/options.h"

namespace conclave::service {

struct OptionSet::Option {
  OptionInfo info;
  std::string value_name;  // "HOST:PORT"; empty for a switch
  bool is_list = false;
  std::string default_text;  // for help; empty: none to show

  // Parses and assigns; a list appends. Errors carry no name.
  std::function<absl::Status(std::string_view)> set;
  std::function<void()> reset;  // back to the default
  std::function<void()> clear;  // lists only: before a stronger source fills it
  // The value as texts that `set` takes; a list has several.
  std::function<std::vector<std::string>()> show;

  Origin origin = Origin::kDefault;
  std::string origin_name;  // "--listen", "CONCLAVE_LISTEN", "FILE:3"

  bool is_switch() const { return value_name.empty(); }
  // Whether the value is the default that help describes by `unset_means`.
  bool is_unset() const { return origin == Origin::kDefault && !info.unset_means.empty(); }
};

struct OptionSet::State {
  std::string command;
  std::string version;
  std::string summary;
  std::deque<Option> options;  // in order of declaration
  std::map<std::string, std::string, std::less<>> refused;
  bool has_positional = false;
  Positional positional;
  std::vector<std::string>* positional_target = nullptr;

  Option* Find(std::string_view name) {
    for (Option& option : options) {
      if (option.info.name == name) {
        return &option;
      }
    }
    return nullptr;
  }
  std::string PrintConfig() const;
};

}  // namespace conclave::service
