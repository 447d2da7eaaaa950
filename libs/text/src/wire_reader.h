// The wire format of protocol buffers, as far as a flat message needs it.
#pragma once

#include <cstdint>
#include <string_view>

namespace conclave::text {

// Fields of one message, in order. Groups (wire types 3 and 4) count as broken: nothing that is
// read here has them.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  struct Field {
    uint32_t number = 0;
    uint64_t varint = 0;     // wire type 0, and the bits of types 1 and 5
    std::string_view bytes;  // wire type 2
  };

  // False at the end, and when the bytes are broken: then ok() is false and pos() is where.
  bool Next(Field& field);
  bool ok() const { return ok_; }
  size_t pos() const { return pos_; }

 private:
  bool ReadVarint(uint64_t& value);
  bool ReadFixed(size_t num_bytes, uint64_t& value);
  bool Fail() {
    ok_ = false;
    return false;
  }

  std::string_view bytes_;
  size_t pos_ = 0;
  bool ok_ = true;
};

}  // namespace conclave::text
