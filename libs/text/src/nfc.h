// Unicode normal form C in linear time.
#pragma once

#include <string>
#include <string_view>

namespace conclave::text {

// NFC (Unicode 15) of `text`, which is valid UTF-8. Linear whatever the text: utf8proc's own
// ordering of combining marks is a bubble sort, which a long run of marks makes quadratic, so only
// its tables and its composition are used.
std::string ToNfc(std::string_view text);

}  // namespace conclave::text
