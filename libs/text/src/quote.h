// Text from outside as an error message may show it.
#pragma once

#include <string>
#include <string_view>

namespace conclave::text {

// `text` in double quotes: at most 32 bytes of it, everything but printable ASCII as \xNN.
std::string Quote(std::string_view text);

}  // namespace conclave::text
