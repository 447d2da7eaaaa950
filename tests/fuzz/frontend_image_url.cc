// Base64 and data URIs.
//
// Promises: only canonical base64 is accepted, so that encoding what was decoded gives the text
// back, and whatever is encoded can be decoded; a picture that a URL gives is not empty, within its
// limit, and what stands behind the comma of a data URI; a refusal has a reason.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "http/base64.h"
#include "http/image_url.h"

namespace conclave::frontend {
namespace {

constexpr int64_t kImageBytesMax = 1024;

void Check(std::string_view text) {
  const std::optional<std::string> decoded = DecodeBase64(text);
  CONCLAVE_CHECK(!decoded || EncodeBase64(*decoded) == text);
  const std::string encoded = EncodeBase64(text);
  CONCLAVE_CHECK(DecodeBase64(encoded) == text);

  const absl::StatusOr<UrlPicture> picture = DecodeImageUrl(text, kImageBytesMax);
  if (!picture.ok()) {
    CONCLAVE_CHECK(!ReasonOf(picture.status()).empty());
    return;
  }
  CONCLAVE_CHECK(!picture->bytes.empty() &&
                 static_cast<int64_t>(picture->bytes.size()) <= kImageBytesMax);
  const size_t comma = text.find(',');
  CONCLAVE_CHECK(comma != std::string_view::npos);
  CONCLAVE_CHECK(EncodeBase64(picture->bytes) == text.substr(comma + 1));
}

}  // namespace
}  // namespace conclave::frontend

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::frontend::Check({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
