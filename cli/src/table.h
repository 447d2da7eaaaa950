// Rows of cells in columns as wide as they need to be.
#pragma once

#include <string>
#include <vector>

namespace conclave::cli {

class Table {
 public:
  void Add(std::vector<std::string> row);
  // One line per row, two spaces between columns, none at the end. Widths are in bytes.
  std::string Text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<size_t> widths_;
};

// With so many digits behind the point.
std::string Fixed(double value, int digits);

}  // namespace conclave::cli
