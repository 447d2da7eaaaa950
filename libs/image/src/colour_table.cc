#include "colour_table.h"

#include <algorithm>

namespace conclave::image {

ColourTable GreyTable() {
  ColourTable table{};
  for (size_t i = 0; i < table.size(); ++i) {
    table[i].fill(static_cast<uint8_t>(i));
  }
  return table;
}

ColourTable TableOf(std::span<const uint8_t> entries) {
  ColourTable grey = GreyTable();
  ColourTable table{};
  const size_t num_entries = std::min(entries.size() / 3, table.size());
  for (size_t i = 0; i < num_entries; ++i) {
    std::copy_n(entries.begin() + static_cast<ptrdiff_t>(3 * i), 3, table[i].begin());
  }
  const auto end = static_cast<ptrdiff_t>(num_entries);
  return std::equal(table.begin(), table.begin() + end, grey.begin()) ? grey : table;
}

}  // namespace conclave::image
