// Goal: a view addresses what it says.
// Method: a matrix with distinct values and a stride.
#include "conclave/tensor/view.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace conclave {
namespace {

TEST(MatViewTest, RowsAndColumnsAreWindowsIntoTheSameMemory) {
  std::vector<int> memory(4 * 5);
  std::iota(memory.begin(), memory.end(), 0);
  const MatView<int> view(memory.data(), 4, 3, 5);
  EXPECT_EQ(view.Row(2)[1], 11);
  EXPECT_EQ(view.RowSpan(1).size(), 3U);
  const MatView<int> window = view.Rows(1, 2).Cols(1, 2);
  EXPECT_EQ(window.rows, 2);
  EXPECT_EQ(window.cols, 2);
  EXPECT_EQ(window.Row(0)[0], 6);
  EXPECT_EQ(window.Row(1)[1], 12);
  window.Row(1)[1] = -1;
  EXPECT_EQ(memory[12], -1);
}

TEST(MatViewTest, ViewReadsAsViewOfConst) {
  std::vector<float> memory = {1, 2, 3, 4};
  const MatView<const float> view = MatView<float>(memory.data(), 2, 2);
  EXPECT_EQ(view.stride, 2);
  EXPECT_EQ(view.Row(1)[0], 3);
}

}  // namespace
}  // namespace conclave
