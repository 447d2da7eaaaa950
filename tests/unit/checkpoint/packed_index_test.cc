// Goal: nothing of a packed file's header and index that is not as packed_file.h has it is taken
// for a good one, and what is good is read back as it was written.
// Method: a small index is written, changed in one place at a time as text, and parsed.
#include "packed_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kIndexOffset = 5 * kPackedPage;

PackedIndex SmallIndex() {
  PackedIndex index;
  index.dtype = DType::kBf16;
  index.config_hash = std::string(64, 'a');
  index.manifest_hash = std::string(64, '0');
  index.tensors = {{.name = "a", .dtype = DType::kF16, .shape = {2, 3}},
                   {.name = "b", .dtype = DType::kBf16, .shape = {}}};
  PackedExpert expert{.layer = 1, .expert = 2};
  expert.hash[0] = 0x1f;
  expert.hash[31] = 0xe2;
  index.experts = {expert};
  const std::string sha(64, 'f');
  index.entries = {
      {PackedKind::kMatrix, "m", DType::kBf16, 70, 3, kPackedPage, 1000, 7, sha},
      {PackedKind::kRows, "m", DType::kBf16, 4, 8, 2 * kPackedPage, 64, 0xffffffffu, sha},
      {PackedKind::kFloats, "f", DType::kF32, 5, 1, 2 * kPackedPage + 64, 20, 9, sha},
  };
  return index;
}

// The index's text with the first `from` replaced.
std::string Changed(const std::string& from, const std::string& to) {
  std::string text = IndexText(SmallIndex());
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

void ExpectBad(const std::string& text, const std::string& part) {
  const absl::StatusOr<PackedIndex> parsed = ParseIndex(text, kIndexOffset);
  EXPECT_EQ(ReasonOf(parsed.status()), "packed_index") << text;
  EXPECT_THAT(MessageOf(parsed.status()), HasSubstr(part));
}

TEST(PackedIndexTest, IsReadAsWritten) {
  const absl::StatusOr<PackedIndex> parsed = ParseIndex(IndexText(SmallIndex()), kIndexOffset);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, SmallIndex());
}

TEST(PackedIndexTest, NoMemberMayBeMissingOrMore) {
  for (const char* key :
       {"dtype", "config", "manifest", "tensors", "experts", "entries", "name", "shape", "layer",
        "expert", "sha256", "kind", "n", "k", "offset", "bytes", "crc32c"}) {
    SCOPED_TRACE(key);
    ExpectBad(Changed("\"" + std::string(key) + "\":", "\"other\":"), "");
  }
  ExpectBad(Changed("{\"dtype\"", "{\"more\":1,\"dtype\""), "members");
  ExpectBad(Changed("{\"kind\"", "{\"more\":1,\"kind\""), "members");
}

TEST(PackedIndexTest, TypesAndRangesAreChecked) {
  struct Case {
    const char* from;
    const char* to;
    const char* part;
  };
  const Case cases[] = {
      {"\"dtype\":\"bf16\"", "\"dtype\":\"i8\"", "f32, bf16 or q8"},
      {"\"dtype\":\"bf16\"", "\"dtype\":\"b\"", "a dtype"},
      {"\"config\":\"aa", "\"config\":\"a", "64 hex digits"},
      {"\"config\":\"aa", "\"config\":\"aA", "64 hex digits"},
      {"\"config\":\"aa", "\"config\":\"ag", "64 hex digits"},
      {"\"manifest\":\"", "\"manifest\":7,\"m\":\"", "a text"},
      {"\"shape\":[2,3]", "\"shape\":[2,-3]", "sizes"},
      {"\"shape\":[2,3]", "\"shape\":[2,3.5]", "sizes"},
      {"\"shape\":[2,3]", "\"shape\":[4611686018427387904,4]", "counted"},
      {"\"shape\":[2,3]",
       "\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "axes"},
      {"\"dtype\":\"f16\"", "\"dtype\":\"q8\"", "q8 is no dtype"},
      {"\"layer\":1", "\"layer\":-1", "a number"},
      {"\"layer\":1", "\"layer\":4294967296", "a number"},
      {"\"kind\":\"matrix\"", "\"kind\":\"maze\"", "matrix, rows or floats"},
      {"\"n\":70", "\"n\":2147483648", "a number"},
      {"\"n\":70", "\"n\":7e1", "a number"},
      {"\"n\":4", "\"n\":5", "those of its shape"},
      {"\"n\":5", "\"n\":4", "those of its shape"},
      {"\"offset\":4096", "\"offset\":0", "behind the header"},
      {"\"offset\":4096", "\"offset\":4160", "a multiple of 4096"},
      {"\"offset\":8256", "\"offset\":8260", "a multiple of 64"},
      {"\"offset\":4096", "\"offset\":24576", "a number"},
      {"\"offset\":4096", "\"offset\":20480", "before the index"},
      {"\"bytes\":1000", "\"bytes\":16385", "before the index"},
      {"\"bytes\":1000", "\"bytes\":9223372036854775807", "a number"},
      {"\"bytes\":1000", "\"bytes\":4097", "overlaps"},
      {"\"offset\":8256", "\"offset\":8192", "overlaps"},
      {"\"crc32c\":7", "\"crc32c\":4294967296", "a number"},
      {"\"sha256\":\"ffff", "\"sha256\":\"fff", "64 hex digits"},
      {"\"name\":\"b\"", "\"name\":\"a\"", "tensors[1]"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.to);
    ExpectBad(Changed(c.from, c.to), c.part);
  }
}

TEST(PackedIndexTest, NothingStandsTwice) {
  PackedIndex index = SmallIndex();
  index.entries[1].kind = PackedKind::kMatrix;  // "m" again
  ExpectBad(IndexText(index), "entries[1]");
  index = SmallIndex();
  index.experts.push_back(index.experts[0]);
  ExpectBad(IndexText(index), "experts[1]");
}

TEST(PackedIndexTest, NotEvenJson) {
  for (const char* text : {"", "{", "[]", "null", "{\"dtype\":\"bf16\",\"dtype\":\"bf16\"}"}) {
    ExpectBad(text, "");
  }
}

constexpr int64_t kFileBytes = 3 * kPackedPage + 100;

PackedHeader SmallHeader() {
  return {.panel_revision = 3,
          .index_offset = 3 * kPackedPage,
          .index_bytes = 100,
          .file_bytes = kFileBytes,
          .index_crc = 17};
}

void ExpectBadHeader(const std::string& text, const std::string& reason, int64_t file_bytes) {
  EXPECT_EQ(ReasonOf(ParseHeader(text, file_bytes).status()), reason);
}

TEST(PackedHeaderTest, IsReadAsWritten) {
  const absl::StatusOr<PackedHeader> parsed = ParseHeader(HeaderText(SmallHeader()), kFileBytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->panel_revision, 3);
  EXPECT_EQ(parsed->index_offset, 3 * kPackedPage);
  EXPECT_EQ(parsed->index_bytes, 100);
  EXPECT_EQ(parsed->index_crc, 17u);
}

TEST(PackedHeaderTest, EveryByteCounts) {
  const std::string good = HeaderText(SmallHeader());
  for (size_t at = 0; at < 56; ++at) {
    std::string text = good;
    text[at] = static_cast<char>(text[at] ^ 0x10);
    const std::string reason = at >= 16 && at < 20 ? "packed_version" : "packed_header";
    EXPECT_EQ(ReasonOf(ParseHeader(text, kFileBytes).status()), reason) << at;
  }
}

TEST(PackedHeaderTest, FileIsAsLongAsWritten) {
  const std::string good = HeaderText(SmallHeader());
  ExpectBadHeader(good, "packed_truncated", kFileBytes - 1);
  ExpectBadHeader(good, "packed_truncated", kFileBytes + 1);
  ExpectBadHeader(good.substr(0, 100), "packed_truncated", 100);
  ExpectBadHeader("", "packed_header", 0);
}

TEST(PackedHeaderTest, IndexEndsTheFile) {
  PackedHeader header = SmallHeader();
  header.index_bytes = 99;
  ExpectBadHeader(HeaderText(header), "packed_header", kFileBytes);
  header = SmallHeader();
  header.index_offset = 0;
  header.index_bytes = kFileBytes;
  ExpectBadHeader(HeaderText(header), "packed_header", kFileBytes);
  header = SmallHeader();
  header.index_offset = -1;
  header.index_bytes = kFileBytes + 1;
  ExpectBadHeader(HeaderText(header), "packed_header", kFileBytes);
  const int64_t large = int64_t{65} << 20;
  header = {.panel_revision = 1,
            .index_offset = kPackedPage,
            .index_bytes = large,
            .file_bytes = kPackedPage + large,
            .index_crc = 0};
  ExpectBadHeader(HeaderText(header), "packed_header", kPackedPage + large);
}

}  // namespace
}  // namespace conclave::checkpoint
