// The palette of a GIF or a BMP, as Pillow understands it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave::image {

// Index to red, green, blue.
using ColourTable = std::array<std::array<uint8_t, 3>, 256>;

// The index is the grey value: what a picture without a palette means.
ColourTable GreyTable();

// `entries` holds [num_entries, 3] bytes; at most 256 entries count. Indices beyond them are black,
// except where each entry is the grey of its own index: Pillow takes such a picture for one without
// a palette, in which every index is a grey.
ColourTable TableOf(std::span<const uint8_t> entries);

}  // namespace conclave::image
