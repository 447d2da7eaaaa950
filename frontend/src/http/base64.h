// Base64, RFC 4648 section 4 (the standard alphabet), strict.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace conclave::frontend {

// The bytes behind `text`; nullopt unless it is canonical: standard alphabet, padded to whole
// quadruples, no white space, unused bits zero.
std::optional<std::string> DecodeBase64(std::string_view text);

std::string EncodeBase64(std::string_view bytes);

}  // namespace conclave::frontend
