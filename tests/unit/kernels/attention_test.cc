// Goal: Attend is softmax(q·kᵀ·scale)·v over exactly the positions of a range, and a row's bits
// depend on nothing else.
#include "attention_testing.h"

namespace conclave::kernels {
namespace {

struct Shape {
  int64_t heads, kv_heads, head_dim;
  DType dtype;
};

constexpr Shape kShapes[] = {{4, 4, 20, DType::kF32},  {4, 2, 64, DType::kBf16},
                             {7, 1, 72, DType::kBf16}, {2, 2, 80, DType::kBf16},
                             {3, 1, 80, DType::kF32},  {2, 1, 128, DType::kBf16},
                             {1, 1, 136, DType::kF32}, {2, 2, 7, DType::kBf16}};

constexpr int64_t kTokens = 150;

// Keys, values and queries of one layer, and runs of Attend over them.
class Layer {
 public:
  Layer(Isa isa, const Shape& shape, int threads, uint64_t seed = 31)
      : shape_(shape),
        pool_(threads),
        context_(isa, pool_),
        layout_{shape.kv_heads, shape.head_dim, shape.dtype},
        keys_(kTokens, shape.kv_heads * shape.head_dim),
        values_(kTokens, shape.kv_heads * shape.head_dim),
        queries_(kTokens, shape.heads * shape.head_dim) {
    Random random(seed);
    random.Fill(keys_.values, -2.0f, 2.0f);
    random.Fill(values_.values, -1.0f, 1.0f);
    random.Fill(queries_.values, -2.0f, 2.0f);
  }

  // A cache that holds positions [first, last) and `stale` bytes everywhere else.
  KvCache Cache(int64_t first, int64_t last, unsigned char stale, uint64_t table_seed = 9) {
    KvCache cache(layout_, kTokens, stale, table_seed);
    for (int64_t t = first; t < last; ++t) {
      cache.Store(context_, t, keys_.View().RowSpan(t), values_.View().RowSpan(t));
    }
    return cache;
  }

  // The queries `rows`, each over its range.
  std::vector<std::vector<float>> Run(const std::vector<int64_t>& rows,
                                      const std::vector<KvRange>& ranges) {
    const auto count = static_cast<int64_t>(rows.size());
    Matrix<float> q(count, queries_.cols);
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(&queries_.At(rows[static_cast<size_t>(r)], 0), q.cols, &q.At(r, 0));
    }
    Matrix<float> out(count, q.cols);
    std::fill(out.values.begin(), out.values.end(), NAN);  // Old contents must not matter.
    Attend(context_, layout_, shape_.heads, scale(), std::as_const(q).View(), ranges, out.View());
    std::vector<std::vector<float>> result;
    for (int64_t r = 0; r < count; ++r) {
      result.emplace_back(&out.At(r, 0), &out.At(r, 0) + q.cols);
    }
    return result;
  }

  std::vector<float> RunOne(int64_t row, const KvRange& range) { return Run({row}, {range})[0]; }

  // Compares with double arithmetic on the stored (rounded) keys and values.
  void ExpectNearReference(int64_t row, int64_t first, int64_t last,
                           const std::vector<float>& out) {
    const int64_t dim = shape_.head_dim;
    for (int64_t h = 0; h < shape_.heads; ++h) {
      const int64_t kv = h / (shape_.heads / shape_.kv_heads) * dim;
      std::vector<double> scores;
      double score_error = 0.0;
      for (int64_t t = first; t < last; ++t) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t d = 0; d < dim; ++d) {
          const double term = double{queries_.At(row, h * dim + d)} * Stored(keys_.At(t, kv + d));
          sum += term;
          magnitude += std::abs(term);
        }
        scores.push_back(sum * double{scale()});
        score_error = std::max(score_error, Gamma(dim + 3) * magnitude * double{scale()});
      }
      const double top = *std::max_element(scores.begin(), scores.end());
      double total = 0.0;
      for (double& score : scores) {
        score = std::exp(score - top);
        total += score;
      }
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t t = first; t < last; ++t) {
          const double term =
              scores[static_cast<size_t>(t - first)] / total * Stored(values_.At(t, kv + d));
          sum += term;
          magnitude += std::abs(term);
        }
        // Errors of a score enter weight and sum; then one rounding per position, and three per
        // block.
        const double tolerance =
            (2.0 * score_error + 4e-7 + 2.0 * Gamma(last - first + 20)) * magnitude + 1e-30;
        ASSERT_NEAR(out[static_cast<size_t>(h * dim + d)], sum, tolerance)
            << row << " " << h << " " << d;
      }
    }
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  const KvLayout& layout() const { return layout_; }
  const Context& context() const { return context_; }

 private:
  double Stored(float value) const {
    return shape_.dtype == DType::kBf16 ? double{ToFloat(ToBf16(value))} : double{value};
  }

  Shape shape_;
  ThreadPool pool_;
  Context context_;
  KvLayout layout_;
  Matrix<float> keys_;
  Matrix<float> values_;
  Matrix<float> queries_;
};

struct Window {
  int64_t first, last;
};
// Inside one block, at its borders, over several, and starting in the middle as a sliding window
// does.
constexpr Window kWindows[] = {{0, 1}, {0, 31},  {0, 32},   {0, 33}, {0, 150},
                               {5, 6}, {31, 33}, {40, 150}, {64, 96}};

class AttentionTest : public testing::TestWithParam<Isa> {};
INSTANTIATE_TEST_SUITE_P(Paths, AttentionTest, testing::ValuesIn(SupportedIsas()), IsaTestName);

TEST_P(AttentionTest, AgreesWithDoubleArithmetic) {
  for (const Shape& shape : kShapes) {
    Layer layer(GetParam(), shape, 2);
    const KvCache cache = layer.Cache(0, kTokens, 0);
    for (const auto& [first, last] : kWindows) {
      layer.ExpectNearReference(last - 1, first, last,
                                layer.RunOne(last - 1, cache.Range(first, last)));
    }
  }
}

TEST_P(AttentionTest, StaleMemoryOutsideTheRangeNeverReachesTheResult) {
  for (const Shape& shape : kShapes) {
    Layer layer(GetParam(), shape, 1);
    for (const auto& [first, last] : kWindows) {
      const KvCache clean = layer.Cache(first, last, 0);
      const KvCache dirty = layer.Cache(first, last, 0xff);
      const std::vector<float> expected = layer.RunOne(last - 1, clean.Range(first, last));
      ASSERT_TRUE(SameBytes(layer.RunOne(last - 1, dirty.Range(first, last)), expected));
      ASSERT_FALSE(std::isnan(expected[0]));
    }
  }
}

// A prompt: row r sees [0, r + 1). Rows of one call share blocks that are whole for some and
// partial for others.
TEST_P(AttentionTest, RowsOfOneCallHaveTheBitsOfRowsAlone) {
  for (const Shape& shape : kShapes) {
    Layer layer(GetParam(), shape, 2);
    const KvCache cache = layer.Cache(0, kTokens, 0xff);
    std::vector<int64_t> rows(50);
    std::iota(rows.begin(), rows.end(), 88);
    std::vector<KvRange> ranges;
    ranges.reserve(rows.size());
    for (const int64_t row : rows) {
      ranges.push_back(cache.Range(row % 7 == 0 ? row - 70 : 0, row + 1));
    }
    const std::vector<std::vector<float>> together = layer.Run(rows, ranges);
    for (size_t r = 0; r < rows.size(); ++r) {
      ASSERT_TRUE(SameBytes(together[r], layer.RunOne(rows[r], ranges[r])))
          << "row " << rows[r] << ", head dim " << shape.head_dim;
    }
  }
}

// While the later rows of a prompt are not stored yet, the earlier ones have their final bits:
// chunks of any length agree.
TEST_P(AttentionTest, ChunkingThePromptChangesNothing) {
  Layer layer(GetParam(), kShapes[3], 2);
  const KvCache whole = layer.Cache(0, kTokens, 0xff);
  const KvCache chunk = layer.Cache(0, 45, 0xff);
  EXPECT_TRUE(
      SameBytes(layer.RunOne(44, chunk.Range(0, 45)), layer.RunOne(44, whole.Range(0, 45))));
}

TEST_P(AttentionTest, SequencesOfOneBatchDoNotMeet) {
  Layer layer(GetParam(), kShapes[1], 2);
  const KvCache first = layer.Cache(0, 100, 0xff, 1);
  const KvCache second = layer.Cache(0, 60, 0xff, 2);
  const std::vector<std::vector<float>> both =
      layer.Run({99, 59, 99}, {first.Range(0, 100), second.Range(0, 60), first.Range(0, 100)});
  EXPECT_TRUE(SameBytes(both[0], layer.RunOne(99, first.Range(0, 100))));
  EXPECT_TRUE(SameBytes(both[1], layer.RunOne(59, second.Range(0, 60))));
  EXPECT_TRUE(SameBytes(both[2], both[0]));
}

// As in a server: one memory holds the blocks of all sequences, only the block tables differ.
TEST_P(AttentionTest, RowsWithDifferentTablesOverOneMemoryReadTheirOwnBlocks) {
  Layer layer(GetParam(), kShapes[1], 2);
  const KvCache cache = layer.Cache(0, kTokens, 0);
  const KvRange first = cache.Range(0, 100);
  const std::vector<int32_t> other_table(first.block_table + 1, first.block_table + 5);
  KvRange second = first;
  second.block_table = other_table.data();
  const std::vector<std::vector<float>> both =
      layer.Run({99, 99, 99, 99}, {first, second, first, second});
  EXPECT_TRUE(SameBytes(both[0], layer.RunOne(99, first)));
  EXPECT_TRUE(SameBytes(both[1], layer.RunOne(99, second)));
  EXPECT_TRUE(SameBytes(both[3], both[1]));
  EXPECT_FALSE(SameBytes(both[1], both[0]));
}

TEST_P(AttentionTest, PhysicalOrderOfBlocksAndThreadsChangeNothing) {
  for (const Shape& shape : kShapes) {
    Layer one(GetParam(), shape, 1);
    const std::vector<float> expected =
        one.RunOne(149, one.Cache(0, kTokens, 0, 1).Range(0, kTokens));
    for (const int threads : {2, 3}) {
      Layer layer(GetParam(), shape, threads);
      const KvCache cache = layer.Cache(0, kTokens, 0, 100 + static_cast<uint64_t>(threads));
      ASSERT_TRUE(SameBytes(layer.RunOne(149, cache.Range(0, kTokens)), expected));
    }
  }
}

TEST_P(AttentionTest, ASinglePositionGivesItsValue) {
  const KvLayout layout{1, 20, DType::kF32};
  ThreadPool pool(1);
  const Context context(GetParam(), pool);
  Random random(4);
  const Matrix<float> rows = UniformMatrix(random, 3, 20);
  KvCache cache(layout, 64, 0xff);
  cache.Store(context, 40, rows.View().RowSpan(0), rows.View().RowSpan(1));
  Matrix<float> out(1, 20);
  const KvRange range = cache.Range(40, 41);
  Attend(context, layout, 1, 0.3f, rows.View().Rows(2, 1), {&range, 1}, out.View());
  EXPECT_TRUE(SameBytes(out.values, std::vector<float>(&rows.At(1, 0), &rows.At(1, 0) + 20)));
}

TEST_P(AttentionTest, NoRowsAreNoWork) {
  ThreadPool pool(1);
  Matrix<float> out(0, 20);
  Attend(Context(GetParam(), pool), KvLayout{1, 20, DType::kF32}, 1, 1.0f,
         std::as_const(out).View(), {}, out.View());
  EXPECT_TRUE(out.values.empty());
}

TEST(StoreKvTest, KeysAreTransposedValuesAreNotAndThePaddingIsZero) {
  const KvLayout layout{2, 20, DType::kBf16};
  EXPECT_EQ(layout.value_stride(), 32);
  ThreadPool pool(1);
  const Context context(Isa::kScalar, pool);
  Random random(4);
  const std::vector<float> key = UniformVector(random, 40, -1.0f, 1.0f);
  const std::vector<float> value = UniformVector(random, 40, -1.0f, 1.0f);
  KvCache cache(layout, 32, 0xff);
  cache.Store(context, 7, key, value);
  const auto* block = reinterpret_cast<const Bf16*>(cache.Block(0));
  for (int64_t h = 0; h < 2; ++h) {
    const Bf16* head = block + h * layout.head_elements();
    for (int64_t d = 0; d < 32; ++d) {
      const Bf16 v = head[20 * kKvBlockTokens + 7 * layout.value_stride() + d];
      EXPECT_EQ(v, d < 20 ? ToBf16(value[static_cast<size_t>(h * 20 + d)]) : Bf16{})
          << h << " " << d;
    }
    for (int64_t d = 0; d < 20; ++d) {
      EXPECT_EQ(head[d * kKvBlockTokens + 7], ToBf16(key[static_cast<size_t>(h * 20 + d)]));
      EXPECT_EQ(head[d * kKvBlockTokens + 8], Bf16{0xffff}) << "the neighbour stays";
    }
  }
}

TEST(AttentionDeathTest, ShapesThatDoNotFitAbort) {
  const KvLayout layout{2, 20, DType::kF32};
  ThreadPool pool(1);
  const Context context(Isa::kScalar, pool);
  KvCache cache(layout, 32, 0);
  const Matrix<float> q(1, 60);
  Matrix<float> out(1, 60);
  const KvRange good = cache.Range(0, 1);
  const KvRange empty = cache.Range(3, 3);
  EXPECT_DEATH(Attend(context, layout, 3, 1.0f, q.View(), {&good, 1}, out.View()), "num_kv_heads");
  EXPECT_DEATH(Attend(context, layout, 4, 1.0f, q.View(), {&good, 1}, out.View()), "head_dim");
  EXPECT_DEATH(
      Attend(context, layout, 2, 1.0f, q.View().Cols(0, 40), {&empty, 1}, out.View().Cols(0, 40)),
      "range.first");
  const std::vector<float> row(40);
  EXPECT_DEATH(StoreKv(context, layout, row, row, 32, cache.Block(0)), "slot");
  EXPECT_DEATH(StoreKv(context, layout, std::span(row).first(39), row, 0, cache.Block(0)), "width");
}

}  // namespace
}  // namespace conclave::kernels
