#include "bmp_samples.h"

#include <cstdlib>

namespace conclave::image {
namespace {

void Append(Bytes& out, uint32_t value, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) {
    out.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
}

// Everything from the size of the header to its end, masks of a short one included.
Bytes Header(const BmpSpec& spec) {
  Bytes out;
  Append(out, spec.header_bytes, 4);
  if (spec.header_bytes == 12) {
    Append(out, static_cast<uint32_t>(spec.width), 2);
    Append(out, static_cast<uint32_t>(spec.height), 2);
    Append(out, 1, 2);
    Append(out, spec.bits, 2);
    return out;
  }
  Append(out, static_cast<uint32_t>(spec.width), 4);
  Append(out, static_cast<uint32_t>(spec.height), 4);
  Append(out, 1, 2);
  Append(out, spec.bits, 2);
  Append(out, spec.compression, 4);
  out.resize(32);  // size of the pixels, resolution: nobody looks
  Append(out, spec.num_colours, 4);
  Append(out, 0, 4);
  for (const uint32_t mask : spec.masks) {
    Append(out, mask, 4);
  }
  if (spec.header_bytes != 40) {
    out.resize(spec.header_bytes);
  }
  return out;
}

}  // namespace

Bytes MakeBmp(const BmpSpec& spec) {
  const Bytes header = Header(spec);
  Bytes out{'B', 'M'};
  out.resize(10);
  const size_t begin = 14 + header.size() + spec.palette.size();
  Append(out, spec.offset.value_or(static_cast<uint32_t>(begin)), 4);
  out.insert(out.end(), header.begin(), header.end());
  out.insert(out.end(), spec.palette.begin(), spec.palette.end());
  const int64_t row_bytes = (int64_t{spec.width} * spec.bits + 31) / 32 * 4;
  // The one height without an absolute value has no rows either.
  const int32_t height = spec.height == INT32_MIN ? 0 : std::abs(spec.height);
  const int64_t num_rows = spec.num_rows.value_or(height);
  for (int64_t i = 0; i < row_bytes * num_rows; ++i) {
    out.push_back(spec.rows.empty() ? static_cast<uint8_t>(7 * i)
                                    : spec.rows[static_cast<size_t>(i) % spec.rows.size()]);
  }
  return out;
}

}  // namespace conclave::image
