// Admission of pictures by the memory that they will take (row X02 of docs/design/bad-inputs.md).
#pragma once

#include <cstdint>
#include <set>

#include "conclave/frontend/chat.h"
#include "conclave/image/image.h"

namespace conclave::frontend {

// What the pictures of one request take until they have become features.
struct ImageNeed {
  int64_t encoded_bytes = 0;  // of all: they wait side by side
  int64_t decode_bytes = 0;   // of the dearest: pictures are decoded one after another
};

// From the headers of the pictures; nothing is decoded.
ImageNeed ImageNeedOf(const ChatRequest& request, const image::DecodeLimits& limits);

// The sum over the requests that are admitted: all that is encoded, and the dearest decode. Not
// thread-safe: the owner locks.
class ImageMemory {
 public:
  explicit ImageMemory(int64_t bytes_max) : bytes_max_(bytes_max) {}

  // Whether there is room for `need`, which is then held. A request that finds nothing held is
  // always taken, however large: it could never be served otherwise.
  bool Take(const ImageNeed& need);
  // What Take() took.
  void Give(const ImageNeed& need);

  int64_t held_bytes() const;

 private:
  const int64_t bytes_max_;
  int64_t encoded_bytes_ = 0;
  std::multiset<int64_t> decodes_;  // one of each admitted request
};

}  // namespace conclave::frontend
