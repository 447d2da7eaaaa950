// The .tiktoken rank file: one "<base64 of the token's bytes> <rank>" per line.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::text {

// The tokens of `file` in the order of their ranks: distinct, none empty, every single byte among
// them. Lines may come in any order, end in LF or CRLF, and be empty. Errors as LoadTiktoken
// (tokenizer.h).
absl::StatusOr<std::vector<std::string>> ReadTiktokenFile(const std::string& file);

}  // namespace conclave::text
