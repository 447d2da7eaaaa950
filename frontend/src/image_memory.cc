#include "image_memory.h"

#include <algorithm>
#include <span>

#include "conclave/base/check.h"

namespace conclave::frontend {

ImageNeed ImageNeedOf(const ChatRequest& request, const image::DecodeLimits& limits) {
  ImageNeed need;
  for (const Message& message : request.messages) {
    for (const ContentPart& part : message.parts) {
      if (part.kind != ContentPart::Kind::kImage) {
        continue;
      }
      need.encoded_bytes += static_cast<int64_t>(part.bytes.size());
      need.decode_bytes = std::max(
          need.decode_bytes, image::DecodeBytes(std::as_bytes(std::span(part.bytes)), limits));
    }
  }
  return need;
}

bool ImageMemory::Take(const ImageNeed& need) {
  if (!decodes_.empty()) {
    const int64_t decode_bytes = std::max(*decodes_.rbegin(), need.decode_bytes);
    if (encoded_bytes_ + need.encoded_bytes + decode_bytes > bytes_max_) {
      return false;
    }
  }
  encoded_bytes_ += need.encoded_bytes;
  decodes_.insert(need.decode_bytes);
  return true;
}

void ImageMemory::Give(const ImageNeed& need) {
  const auto held = decodes_.find(need.decode_bytes);
  CONCLAVE_CHECK(held != decodes_.end());
  decodes_.erase(held);
  encoded_bytes_ -= need.encoded_bytes;
}

int64_t ImageMemory::held_bytes() const {
  return encoded_bytes_ + (decodes_.empty() ? 0 : *decodes_.rbegin());
}

}  // namespace conclave::frontend
