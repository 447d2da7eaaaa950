// Numbers by code point, for loops over every character of a text: two loads and no hashing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace conclave::text {

// Code points below 0x110000 to numbers >= 0. Filled first, then immutable: any thread. A page of 1
// KiB for each 256 code points of which one is set.
class CodePointMap {
 public:
  void Set(int32_t code_point, int32_t value) {
    uint16_t& page = page_of_[PageIndex(code_point)];
    if (page == 0) {
      page = static_cast<uint16_t>(pages_.size());
      pages_.push_back(EmptyPage());
    }
    pages_[page][static_cast<size_t>(code_point) % kPageSize] = value;
  }
  // -1: not set.
  int32_t Find(int32_t code_point) const {
    return pages_[page_of_[PageIndex(code_point)]][static_cast<size_t>(code_point) % kPageSize];
  }

 private:
  static constexpr size_t kPageSize = 256;
  using Page = std::array<int32_t, kPageSize>;

  static size_t PageIndex(int32_t code_point) {
    return static_cast<size_t>(code_point) / kPageSize;
  }
  static Page EmptyPage() {
    Page page;
    page.fill(-1);
    return page;
  }

  std::array<uint16_t, 0x110000 / kPageSize> page_of_{};  // 0: the empty page
  std::vector<Page> pages_{EmptyPage()};
};

}  // namespace conclave::text
