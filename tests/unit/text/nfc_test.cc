// Goal: NFC equals the normal form of the Unicode library, in linear time where the library's is
// quadratic. Method: random text and every code point against utf8proc_NFC; a long run of marks
// against its known order.
#include "nfc.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <cstdlib>
#include <random>
#include <string>

#include "text_test_support.h"
#include "utf8.h"

namespace conclave::text {
namespace {

std::string LibraryNfc(const std::string& text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  EXPECT_GE(size, 0);
  std::string result(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
  std::free(out);  // NOLINT(cppcoreguidelines-no-malloc): allocated by the library with malloc.
  return result;
}

class NfcSeedTest : public testing::TestWithParam<uint64_t> {};

TEST_P(NfcSeedTest, RandomTextAgreesWithTheLibrary) {
  SCOPED_TRACE("seed " + std::to_string(GetParam()));
  std::mt19937_64 random(GetParam());
  for (int i = 0; i < 50; ++i) {
    const std::string text = RandomText(random, random() % 40);
    EXPECT_EQ(ToNfc(text), LibraryNfc(text)) << testing::PrintToString(text);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, NfcSeedTest, testing::Range<uint64_t>(1, 11));

TEST(NfcTest, EveryCodePointAgreesWithTheLibraryAloneAndBeforeAMark) {
  for (int32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point == 0xD800) code_point = 0xE000;
    std::string text = "e";
    AppendUtf8(code_point, text);
    text += "\xCC\x81";
    ASSERT_EQ(ToNfc(text), LibraryNfc(text)) << std::hex << code_point;
  }
}

TEST(NfcTest, ComposesAcrossTheBorderOfPlainText) {
  EXPECT_EQ(ToNfc("cafe\xCC\x81s"), "caf\xC3\xA9s");
  EXPECT_EQ(ToNfc("\xC3\xA9\xCC\xA3"), "\xE1\xBA\xB9\xCC\x81");
  EXPECT_EQ(ToNfc(""), "");
}

// T05: alternating marks of two classes, the worst case of an exchange sort.
TEST(NfcTest, T05_LongRunOfMarksIsSortedStably) {
  constexpr int kNumPairs = 500'000;
  std::string text = "x";
  for (int i = 0; i < kNumPairs; ++i) text += "\xCC\x81\xCC\xA3";
  // There is no x with a dot below or an acute to compose.
  std::string expected = "x";
  for (int i = 0; i < kNumPairs; ++i) expected += "\xCC\xA3";
  for (int i = 0; i < kNumPairs; ++i) expected += "\xCC\x81";
  EXPECT_EQ(ToNfc(text), expected);
}

}  // namespace
}  // namespace conclave::text
