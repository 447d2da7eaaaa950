// The YAML file of --config as a flat list of settings. Strict: one document, one map, values are
// scalars or lists of scalars; no anchors, aliases or tags (so nothing can expand), no tabs, no
// duplicate keys, valid UTF-8, at most 1 MiB.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::service {

struct ConfigEntry {
  std::string key;
  std::vector<std::string> values;
  bool is_list = false;
  bool is_null = false;  // "key:" without a value
  int line = 0;          // of the key, from 1
  int column = 0;
  int value_line = 0;
  int value_column = 0;
};

// "FILE:LINE:COLUMN".
std::string At(std::string_view file, int line, int column);

// `file` is for messages. Errors: "config_syntax".
absl::StatusOr<std::vector<ConfigEntry>> ParseConfig(const std::string& text,
                                                     const std::string& file);

// Errors: "config_file" when it cannot be read, is no regular file or too large; else as
// ParseConfig.
absl::StatusOr<std::vector<ConfigEntry>> ReadConfig(const std::string& file);

}  // namespace conclave::service
