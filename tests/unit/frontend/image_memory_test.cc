// Goal: row X02 of the bad-input catalogue: the pictures of all requests in preparation stay within
// their memory. Method: the bookkeeping alone, with needs of round numbers.
#include "image_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace conclave::frontend {
namespace {

TEST(ImageMemoryTest, EncodedPicturesAddUpAndOnlyTheDearestDecodeCounts) {
  ImageMemory memory(1000);
  EXPECT_TRUE(memory.Take({.encoded_bytes = 100, .decode_bytes = 500}));
  EXPECT_TRUE(memory.Take({.encoded_bytes = 100, .decode_bytes = 600}));
  EXPECT_EQ(memory.held_bytes(), 800);
  EXPECT_TRUE(memory.Take({.encoded_bytes = 200, .decode_bytes = 10}));
  EXPECT_EQ(memory.held_bytes(), 1000);
  EXPECT_FALSE(memory.Take({.encoded_bytes = 1, .decode_bytes = 1}));
}

TEST(ImageMemoryTest, ADearerDecodeMustFitBesideWhatWaits) {
  ImageMemory memory(1000);
  EXPECT_TRUE(memory.Take({.encoded_bytes = 600, .decode_bytes = 100}));
  EXPECT_FALSE(memory.Take({.encoded_bytes = 10, .decode_bytes = 400}));
  EXPECT_TRUE(memory.Take({.encoded_bytes = 10, .decode_bytes = 390}));
}

TEST(ImageMemoryTest, WhatIsGivenBackIsFree) {
  ImageMemory memory(1000);
  const ImageNeed need{.encoded_bytes = 300, .decode_bytes = 700};
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(memory.Take(need));
    EXPECT_FALSE(memory.Take(need));
    memory.Give(need);
    EXPECT_EQ(memory.held_bytes(), 0);
  }
}

TEST(ImageMemoryTest, ARequestAloneIsAlwaysTaken) {
  ImageMemory memory(1);
  const ImageNeed large{.encoded_bytes = 1 << 20, .decode_bytes = 1 << 30};
  EXPECT_TRUE(memory.Take(large));
  EXPECT_FALSE(memory.Take({}));
  memory.Give(large);
  EXPECT_TRUE(memory.Take({}));
}

TEST(ImageMemoryTest, X02_AHundredOfTheLargestPictures) {
  ImageMemory memory(int64_t{512} << 20);
  const ImageNeed need{.encoded_bytes = int64_t{10} << 20, .decode_bytes = 9 * 32'000'000};
  int num_taken = 0;
  for (int i = 0; i < 100; ++i) {
    num_taken += memory.Take(need) ? 1 : 0;
    EXPECT_LE(memory.held_bytes(), int64_t{512} << 20);
  }
  EXPECT_EQ(num_taken, 23);
}

TEST(ImageNeedTest, SumsTheFilesAndTakesTheLargestDecode) {
  // The first bytes of a PNG of 300 times 200, which is all that is looked at.
  std::string png("\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\x2c\0\0\0\xc8", 24);
  ChatRequest request;
  request.messages.resize(2);
  request.messages[0].parts = {{ContentPart::Kind::kText, std::string(5000, 'x'), ""},
                               {ContentPart::Kind::kImage, png + std::string(76, '\0'), ""}};
  png[19] = 1;  // 1 times 200
  png[18] = 0;
  request.messages[1].parts = {{ContentPart::Kind::kImage, png, ""}};
  const ImageNeed need = ImageNeedOf(request, {});
  EXPECT_EQ(need.encoded_bytes, 124);
  EXPECT_EQ(need.decode_bytes, 3 * 300 * 200);
  EXPECT_EQ(ImageNeedOf(ChatRequest(), {}).decode_bytes, 0);
}

}  // namespace
}  // namespace conclave::frontend
