// The one rule of UTF-8 that everything which writes or checks text needs.
#pragma once

#include <cstddef>
#include <string_view>

namespace conclave {

// Length of the well-formed sequence at the start of `bytes` (Unicode 15, table 3-7: no overlong
// forms, no surrogates), 0 when there is none. `bytes` is not empty.
size_t Utf8SequenceBytes(std::string_view bytes);

}  // namespace conclave
