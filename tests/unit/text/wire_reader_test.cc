// Goal: fields of a flat protocol buffer come out in order, and broken bytes are found and end it.
// Method: messages written byte by byte; every cut of a good one; random bytes.
#include "wire_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace conclave::text {
namespace {

std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>(value | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

std::string Tag(uint64_t number, int wire_type) {
  return Varint(number << 3 | static_cast<uint64_t>(wire_type));
}

std::vector<WireReader::Field> ReadAll(WireReader& reader) {
  std::vector<WireReader::Field> fields;
  for (WireReader::Field field; reader.Next(field);) fields.push_back(field);
  return fields;
}

void ExpectBroken(const std::string& bytes) {
  WireReader reader(bytes);
  ReadAll(reader);
  EXPECT_FALSE(reader.ok()) << testing::PrintToString(bytes);
  EXPECT_LE(reader.pos(), bytes.size());
  WireReader::Field field;
  EXPECT_FALSE(reader.Next(field)) << "a broken message stays broken";
}

// Fields end at 3, 8, 13, 22 and at the end.
std::string GoodMessage() {
  return Tag(1, 0) + Varint(300) + Tag(2, 2) + Varint(3) + "abc" + Tag(3, 5) + "\1\2\3\4" +
         Tag(4, 1) + "\1\2\3\4\5\6\7\x80" + Tag(0x1FFFFFFF, 2) + Varint(0);
}

TEST(WireReaderTest, ReadsEveryWireTypeInOrder) {
  const std::string bytes = GoodMessage();
  WireReader reader(bytes);
  const auto fields = ReadAll(reader);
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(reader.pos(), bytes.size());
  ASSERT_EQ(fields.size(), 5u);
  EXPECT_EQ(fields[0].number, 1u);
  EXPECT_EQ(fields[0].varint, 300u);
  EXPECT_EQ(fields[1].number, 2u);
  EXPECT_EQ(fields[1].bytes, "abc");
  EXPECT_EQ(fields[1].varint, 0u);
  EXPECT_EQ(fields[2].varint, 0x04030201u);
  EXPECT_EQ(fields[3].varint, 0x8007060504030201u);
  EXPECT_EQ(fields[3].bytes, "");
  EXPECT_EQ(fields[4].number, 0x1FFFFFFFu);
  EXPECT_EQ(fields[4].bytes, "");
}

TEST(WireReaderTest, NothingIsAMessageWithoutFields) {
  WireReader reader("");
  EXPECT_TRUE(ReadAll(reader).empty());
  EXPECT_TRUE(reader.ok());
}

TEST(WireReaderTest, AVarintHasUpTo64Bits) {
  const std::string bytes = Tag(1, 0) + Varint(~uint64_t{0});
  WireReader reader(bytes);
  EXPECT_EQ(ReadAll(reader).at(0).varint, ~uint64_t{0});
  ExpectBroken(Tag(1, 0) + std::string(9, '\xFF') + "\x02");   // 65 bits
  ExpectBroken(Tag(1, 0) + std::string(10, '\x80') + "\x01");  // eleven bytes
}

TEST(WireReaderTest, ACutInsideAFieldIsBroken) {
  const std::string whole = GoodMessage();
  const std::vector<size_t> ends = {0, 3, 8, 13, 22};
  for (size_t size = 0; size < whole.size(); ++size) {
    if (std::find(ends.begin(), ends.end(), size) == ends.end()) {
      ExpectBroken(whole.substr(0, size));
      continue;
    }
    WireReader reader(std::string_view(whole).substr(0, size));
    ReadAll(reader);
    EXPECT_TRUE(reader.ok()) << size;
  }
}

TEST(WireReaderTest, BadTagsAreBroken) {
  ExpectBroken(Tag(0, 0) + Varint(1));  // there is no field 0
  ExpectBroken(Tag(0x20000000, 0) + Varint(1));
  for (const int wire_type : {3, 4, 6, 7}) ExpectBroken(Tag(1, wire_type) + Varint(1));
}

TEST(WireReaderTest, ALengthBeyondTheEndIsBroken) {
  ExpectBroken(Tag(1, 2) + Varint(4) + "abc");
  ExpectBroken(Tag(1, 2) + Varint(~uint64_t{0}) + "abc");
  ExpectBroken(Tag(1, 2) + Varint(uint64_t{1} << 63));
}

TEST(WireReaderTest, RandomBytesEnd) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 64, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    WireReader reader(bytes);
    EXPECT_LE(ReadAll(reader).size(), bytes.size() / 2);
    EXPECT_LE(reader.pos(), bytes.size());
    EXPECT_TRUE(!reader.ok() || reader.pos() == bytes.size());
  }
}

}  // namespace
}  // namespace conclave::text
