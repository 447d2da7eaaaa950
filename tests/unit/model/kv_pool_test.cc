// Goal: KV blocks are never given to two owners, kept blocks are found by what they hold and only
// by that, and memory runs out exactly when every block is held. Method: tables, and a random walk
// against a plain model of holders.
#include "conclave/model/kv_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace conclave::model {
namespace {

constexpr int32_t kBlock = static_cast<int32_t>(kernels::kKvBlockTokens);
constexpr kernels::KvLayout kLayout{1, 16, DType::kF32};

std::vector<PositionKey> Keys(int32_t num_blocks, uint64_t first) {
  std::vector<PositionKey> keys(static_cast<size_t>(num_blocks * kBlock));
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = {first + i, -1};
  }
  return keys;
}

// Allocates and names blocks for all of `keys`.
std::vector<int32_t> Fill(KvPool& pool, const std::vector<PositionKey>& keys) {
  std::vector<int32_t> blocks;
  for (size_t at = 0; at + kBlock <= keys.size(); at += kBlock) {
    const auto block = pool.Allocate();
    EXPECT_TRUE(block.has_value());
    pool.Publish(*block, blocks.empty() ? -1 : blocks.back(), std::span(keys).subspan(at, kBlock));
    blocks.push_back(*block);
  }
  return blocks;
}

void Release(KvPool& pool, const std::vector<int32_t>& blocks) {
  for (auto it = blocks.rbegin(); it != blocks.rend(); ++it) {
    pool.Release(*it);
  }
}

TEST(KvPoolTest, GivesEveryBlockOnceAndThenNone) {
  KvPool pool(kLayout, 2, 5);
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) {
    blocks.insert(*pool.Allocate());
  }
  EXPECT_EQ(blocks.size(), 5u);
  EXPECT_FALSE(pool.Allocate().has_value());
  EXPECT_EQ(pool.num_free(), 0);
  pool.Release(*blocks.begin());
  EXPECT_EQ(pool.Allocate(), *blocks.begin());
}

TEST(KvPoolTest, FindsAKeptPrefixAndStopsAtTheFirstDifference) {
  KvPool pool(kLayout, 1, 8);
  const std::vector<PositionKey> keys = Keys(3, 100);
  const std::vector<int32_t> blocks = Fill(pool, keys);
  Release(pool, blocks);
  EXPECT_EQ(pool.num_free(), 8);

  std::vector<PositionKey> other = keys;
  other[2 * kBlock + 5].content += 1;
  const std::vector<int32_t> found = pool.AcquirePrefix(other);
  EXPECT_EQ(found, std::vector<int32_t>(blocks.begin(), blocks.begin() + 2));
  EXPECT_EQ(pool.num_free(), 6);
  Release(pool, found);
}

TEST(KvPoolTest, TheSameKeysBehindAnotherBeginningAreAnotherBlock) {
  KvPool pool(kLayout, 1, 8);
  const std::vector<PositionKey> keys = Keys(2, 100);
  Release(pool, Fill(pool, keys));
  std::vector<PositionKey> other = Keys(1, 900);
  other.insert(other.end(), keys.begin() + kBlock, keys.end());
  EXPECT_TRUE(pool.AcquirePrefix(other).empty());
}

TEST(KvPoolTest, AnImageRowIsNoToken) {
  KvPool pool(kLayout, 1, 4);
  const std::vector<PositionKey> tokens = Keys(1, 0);
  Release(pool, Fill(pool, tokens));
  std::vector<PositionKey> image = tokens;
  image[0].row = 0;
  EXPECT_TRUE(pool.AcquirePrefix(image).empty());
}

TEST(KvPoolTest, SharedBlocksStayUntilTheLastHolderLeaves) {
  KvPool pool(kLayout, 1, 2);
  const std::vector<PositionKey> keys = Keys(1, 7);
  const std::vector<int32_t> first = Fill(pool, keys);
  const std::vector<int32_t> second = pool.AcquirePrefix(keys);
  EXPECT_EQ(first, second);
  Release(pool, first);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_NE(*pool.Allocate(), second[0]);
  EXPECT_FALSE(pool.Allocate().has_value());
}

TEST(KvPoolTest, KeptBlocksAreDroppedLeastRecentlyUsedFirst) {
  KvPool pool(kLayout, 1, 2);
  const std::vector<PositionKey> old_keys = Keys(1, 1);
  const std::vector<PositionKey> new_keys = Keys(1, 1000);
  Release(pool, Fill(pool, old_keys));
  Release(pool, Fill(pool, new_keys));
  ASSERT_TRUE(pool.Allocate().has_value());
  EXPECT_TRUE(pool.AcquirePrefix(old_keys).empty());
  EXPECT_EQ(pool.AcquirePrefix(new_keys).size(), 1u);
}

TEST(KvPoolTest, LayersAndBlocksDoNotOverlap) {
  KvPool pool(kLayout, 3, 4);
  std::set<const std::byte*> starts;
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int32_t block = 0; block < 4; ++block) {
      const std::byte* start = pool.BlockMemory(layer, block);
      EXPECT_EQ(start, pool.LayerBase(layer) + static_cast<size_t>(block) * pool.block_stride());
      starts.insert(start);
    }
  }
  EXPECT_EQ(starts.size(), 12u);
  EXPECT_GE(static_cast<size_t>(*std::next(starts.begin()) - *starts.begin()),
            kLayout.block_bytes());
}

TEST(KvPoolTest, ARandomWalkNeverGivesAHeldBlockAway) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    KvPool pool(kLayout, 1, 12);
    std::vector<std::vector<int32_t>> held;
    std::map<int32_t, int> holders;
    for (int step = 0; step < 400; ++step) {
      if (random() % 2 == 0 && !held.empty()) {
        const size_t victim = random() % held.size();
        for (const int32_t block : held[victim]) {
          --holders[block];
        }
        Release(pool, held[victim]);
        held.erase(held.begin() + static_cast<ptrdiff_t>(victim));
        continue;
      }
      const std::vector<PositionKey> keys = Keys(3, (random() % 4) * 1000);
      std::vector<int32_t> blocks = pool.AcquirePrefix(keys);
      for (const int32_t block : blocks) {
        ++holders[block];
      }
      while (blocks.size() < 3) {
        const auto block = pool.Allocate();
        if (!block.has_value()) {
          break;
        }
        ASSERT_EQ(holders[*block], 0);
        ++holders[*block];
        const size_t at = blocks.size() * kBlock;
        pool.Publish(*block, blocks.empty() ? -1 : blocks.back(),
                     std::span(keys).subspan(at, kBlock));
        blocks.push_back(*block);
      }
      held.push_back(blocks);
      int num_held = 0;
      for (const auto& [block, count] : holders) {
        num_held += count > 0 ? 1 : 0;
      }
      ASSERT_EQ(pool.num_free(), 12 - num_held);
    }
  }
}

}  // namespace
}  // namespace conclave::model
