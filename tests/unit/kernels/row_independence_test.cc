// Goal: a row of MatMul has the same bits whatever shares the call: the number of rows, its
// neighbours, its place, the strides and the number of threads. Retries, batching and placement
// rest on it.
// Method: every row computed alone by one thread is the reference.
#include "conclave/kernels/matmul.h"
#include "kernel_table.h"
#include "kernels_testing.h"
#include "q8_kernels.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kRowsMax = 70;
constexpr int64_t kInputs = 131;   // Odd, and more than one widened vector.
constexpr int64_t kOutputs = 150;  // Two full panels and a part of one.

// T is the type of the rows, f32 too where they are quantized for weights of kQ8. `q8` replaces the
// path's q8 GEMM.
template <typename T>
class Fixture {
 public:
  explicit Fixture(Isa isa, DType dtype = kIsF32 ? DType::kF32 : DType::kBf16,
                   Q8Kernel q8 = nullptr)
      : isa_(isa), table_(TableFor(isa)), w_(kOutputs, kInputs, dtype) {
    if (q8 != nullptr) {
      table_.matmul_q8 = q8;
    }
    ThreadPool pool(1);
    Random random(77);
    w_.PackRows(0, HostileMatrix(random, kOutputs, kInputs).View(), pool);
    rows_ = Make(random);
    bias_ = UniformVector(random, kOutputs, -1.0f, 1.0f);
    for (int64_t m = 0; m < kRowsMax; ++m) {
      alone_.push_back(Run(pool, rows_.View().Rows(m, 1), kOutputs));
    }
  }

  // The rows [first, first + count) by `threads` threads, with gaps between the rows of x and y.
  void ExpectRows(int64_t first, int64_t count, int threads, int64_t x_gap, int64_t y_gap) {
    ThreadPool pool(threads);
    Matrix<T> x(count, kInputs, kInputs + x_gap);
    for (int64_t m = 0; m < count; ++m) {
      std::copy_n(&rows_.At(first + m, 0), kInputs, &x.At(m, 0));
    }
    const std::vector<float> y = Run(pool, std::as_const(x).View(), kOutputs + y_gap);
    for (int64_t m = 0; m < count; ++m) {
      const auto begin = y.begin() + m * (kOutputs + y_gap);
      ASSERT_TRUE(SameBytes(std::vector<float>(begin, begin + kOutputs),
                            alone_[static_cast<size_t>(first + m)]))
          << "row " << m << " of " << count << ", " << threads << " threads, gaps " << x_gap << " "
          << y_gap;
    }
  }

 private:
  static constexpr bool kIsF32 = std::is_same_v<T, float>;

  static Matrix<T> Make(Random& random) {
    Matrix<float> rows = HostileMatrix(random, kRowsMax, kInputs);
    if constexpr (kIsF32) {
      return rows;
    } else {
      return Rounded(rows);
    }
  }

  std::vector<float> Run(ThreadPool& pool, MatView<const T> x, int64_t y_stride) {
    Matrix<float> y(x.rows, kOutputs, y_stride);
    Context context(isa_, pool);
    context.table = &table_;
    if (w_.dtype() == DType::kQ8) {
      Q8Scratch scratch(x.rows, kInputs);
      MatMul(context, scratch.Quantize(context, x), w_, bias_, y.View());
    } else {
      MatMul(context, x, w_, bias_, y.View());
    }
    return y.values;
  }

  Isa isa_;
  KernelTable table_;
  PackedMatrix w_;
  Matrix<T> rows_{0, 0};
  std::vector<float> bias_;
  std::vector<std::vector<float>> alone_;
};

class RowIndependenceTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Paths, RowIndependenceTest, testing::ValuesIn(SupportedIsas()),
                         IsaTestName);

TEST_P(RowIndependenceTest, Bf16RowsKeepTheirBitsForEveryNumberOfRows) {
  Fixture<Bf16> fixture(GetParam());
  for (int64_t count = 1; count <= kRowsMax; ++count) {
    fixture.ExpectRows(0, count, 1, 0, 0);
  }
}

TEST_P(RowIndependenceTest, F32RowsKeepTheirBitsForEveryNumberOfRows) {
  Fixture<float> fixture(GetParam());
  for (int64_t count = 1; count <= kRowsMax; ++count) {
    fixture.ExpectRows(0, count, 1, 0, 0);
  }
}

TEST_P(RowIndependenceTest, Q8RowsKeepTheirBitsForEveryNumberOfRowsAndThreadsOnBothGemms) {
  for (const Q8Kernel kernel : Q8KernelsFor(GetParam())) {
    Fixture<float> fixture(GetParam(), DType::kQ8, kernel);
    for (int64_t count = 1; count <= kRowsMax; ++count) {
      fixture.ExpectRows(0, count, 1, 0, 0);
    }
    for (const int threads : {2, 3}) {
      for (const int64_t count : {1, 5, 12, 13, 64, 70}) {
        fixture.ExpectRows(0, count, threads, 1, 3);
      }
    }
    Fixture<Bf16> bf16(GetParam(), DType::kQ8, kernel);
    for (const int64_t first : {1, 2, 3, 10, 29}) {
      bf16.ExpectRows(first, 41 - first, 2, 7, 1);
    }
  }
}

TEST_P(RowIndependenceTest, RowsKeepTheirBitsForEveryThreadCount) {
  Fixture<Bf16> fixture(GetParam());
  for (const int threads : {1, 2, 3}) {
    for (const int64_t count : {1, 5, 12, 13, 64, 70}) {
      fixture.ExpectRows(0, count, threads, 0, 0);
    }
  }
}

TEST_P(RowIndependenceTest, RowsKeepTheirBitsAmongOtherNeighboursAndAtOtherStrides) {
  Fixture<Bf16> bf16(GetParam());
  Fixture<float> f32(GetParam());
  for (const int64_t first : {1, 2, 3, 10, 29}) {
    for (const int64_t gap : {0, 1, 7}) {
      bf16.ExpectRows(first, 41 - first, 2, gap, 8 - gap);
      f32.ExpectRows(first, 41 - first, 2, gap, 8 - gap);
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
