// Which control strings stand behind the ranks of a .tiktoken file (spec 6.2).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conclave/text/tokenizer.h"

namespace conclave::text {

struct SpecialTokens {
  int32_t first_id;                  // the others follow without a gap
  std::vector<std::string> strings;  // each begins with '<' and has its only '>' at the end
};

// For a file of `num_ranks` ranks. Arcade100k leaves one id unused between ranks and specials, Qwen
// does not.
SpecialTokens SpecialTokensOf(TiktokenFlavor flavor, int32_t num_ranks);

}  // namespace conclave::text
