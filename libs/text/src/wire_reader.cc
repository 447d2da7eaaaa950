#include "wire_reader.h"

namespace conclave::text {

bool WireReader::ReadVarint(uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (pos_ == bytes_.size()) return Fail();
    const auto byte = static_cast<uint8_t>(bytes_[pos_++]);
    if (shift == 63 && byte > 1) return Fail();  // more than 64 bits
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return true;
  }
  return Fail();
}

bool WireReader::ReadFixed(size_t num_bytes, uint64_t& value) {
  if (bytes_.size() - pos_ < num_bytes) return Fail();
  value = 0;
  for (size_t i = 0; i < num_bytes; ++i)
    value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes_[pos_ + i])) << (8 * i);
  pos_ += num_bytes;
  return true;
}

bool WireReader::Next(Field& field) {
  if (!ok_ || pos_ == bytes_.size()) return false;
  uint64_t tag = 0;
  if (!ReadVarint(tag)) return false;
  if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF) return Fail();
  field = Field();
  field.number = static_cast<uint32_t>(tag >> 3);
  switch (tag & 7) {
    case 0:
      return ReadVarint(field.varint);
    case 1:
      return ReadFixed(8, field.varint);
    case 2: {
      uint64_t length = 0;
      if (!ReadVarint(length)) return false;
      if (length > bytes_.size() - pos_) return Fail();
      field.bytes = bytes_.substr(pos_, length);
      pos_ += length;
      return true;
    }
    case 5:
      return ReadFixed(4, field.varint);
    default:
      return Fail();
  }
}

}  // namespace conclave::text
