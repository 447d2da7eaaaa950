// Goal: rows N01 to N08 of the bad-input catalogue.
// Method: a table of files made chunk by chunk, wrong in one way each. The pixels of N03 to N05 are
// in png_pixels_test.cc.
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bad_image.h"
#include "conclave/base/cpu_time.h"
#include "peak_memory.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

constexpr PngHeader kSmall{.width = 6, .height = 5};

Bytes Data(const PngHeader& header) {
  return PngChunk("IDAT", Deflate(PngRows(header, PngNoise(header, 7))));
}

Bytes End() { return PngChunk("IEND", {}); }

// Signature and header of kSmall, then `rest`.
Bytes Small(const Bytes& rest) { return Concat({PngSignature(), PngHeaderChunk(kSmall), rest}); }

Bytes WithBadChecksum(Bytes chunk) {
  chunk.back() ^= 1;
  return chunk;
}

Bytes Good() { return Small(Concat({Data(kSmall), End()})); }

Bytes WithByte(Bytes file, size_t offset, uint8_t value) {
  file[offset] = value;
  return file;
}

PngHeader Paletted(uint8_t bit_depth) {
  return {.width = 6, .height = 5, .bit_depth = bit_depth, .colour = 3};
}

Bytes PalettedFile(const Bytes& before_data) {
  return Concat(
      {PngSignature(), PngHeaderChunk(Paletted(8)), before_data, Data(Paletted(8)), End()});
}

Bytes Raw(const Bytes& compressed) { return Small(Concat({PngChunk("IDAT", compressed), End()})); }

Bytes SmallRows() { return PngRows(kSmall, PngNoise(kSmall, 7)); }

Bytes WithFilterType(uint8_t filter) {
  Bytes rows = SmallRows();
  rows[0] = filter;
  return Raw(Deflate(rows));
}

// The compressed data one byte to a chunk, with empty chunks between.
Bytes ManyDataChunks(size_t num_empty) {
  Bytes out;
  for (const uint8_t byte : Deflate(SmallRows())) {
    out = Concat({out, PngChunk("IDAT", {byte}), PngChunk("IDAT", {})});
  }
  const Bytes empty = PngChunk("IDAT", {});
  for (size_t i = 0; i < num_empty; ++i) {
    out.insert(out.end(), empty.begin(), empty.end());
  }
  return Small(Concat({out, End()}));
}

// NOLINTNEXTLINE(readability-function-size): a table.
const std::vector<BadImage>& Rows() {
  static const std::vector<BadImage> rows{
      {"N01_SignatureAsText", [] { return WithByte(Good(), 4, '\n'); }, "image_corrupt"},
      {"N01_SignatureEnd", [] { return WithByte(Good(), 7, 0); }, "image_corrupt"},
      {"N01_HeaderNotFirst",
       [] {
         return Concat({PngSignature(), PngChunk("gAMA", {0, 0, 177, 143}), PngHeaderChunk(kSmall),
                        Data(kSmall), End()});
       },
       "image_corrupt"},
      {"N01_HeaderMissing",
       [] {
         return Concat({PngSignature(), Data(kSmall), End()});
       },
       "image_corrupt"},
      {"N01_HeaderOf12Bytes",
       [] {
         return Concat({PngSignature(), PngChunk("IHDR", Bytes(12, 1)), End()});
       },
       "image_corrupt"},
      {"N01_HeaderOf14Bytes",
       [] {
         return Concat({PngSignature(), PngChunk("IHDR", Bytes(14, 1)), End()});
       },
       "image_corrupt"},
      {"N01_HeaderOfHugeLength",
       [] {
         return Concat({PngSignature(), BigEndian32(0xFFFFFFFF), Bytes{'I', 'H', 'D', 'R'}});
       },
       "image_corrupt"},
      {"N01_TwoHeaders",
       [] {
         return Small(Concat({PngHeaderChunk(kSmall), Data(kSmall), End()}));
       },
       "image_corrupt"},
      {"N02_HeaderChecksum",
       [] {
         return Concat(
             {PngSignature(), WithBadChecksum(PngHeaderChunk(kSmall)), Data(kSmall), End()});
       },
       "image_corrupt"},
      {"N02_DataChecksum",
       [] {
         return Small(Concat({WithBadChecksum(Data(kSmall)), End()}));
       },
       "image_corrupt"},
      {"N02_EndChecksum",
       [] {
         return Small(Concat({Data(kSmall), WithBadChecksum(End())}));
       },
       "image_corrupt"},
      {"N02_PaletteChecksum", [] { return PalettedFile(WithBadChecksum(PngPalette(256))); },
       "image_corrupt"},
      {"N02_AncillaryChecksum",
       [] {
         return Small(
             Concat({WithBadChecksum(PngChunk("tEXt", {'k', 0, 'v'})), Data(kSmall), End()}));
       },
       ""},
      {"N02_UnknownCriticalChunk",
       [] {
         return Small(Concat({PngChunk("ABCD", {1}), Data(kSmall), End()}));
       },
       "image_corrupt"},
      {"N02_UnknownAncillaryChunk",
       [] {
         return Small(Concat({PngChunk("abCD", {1}), Data(kSmall), End()}));
       },
       ""},
      {"N02_ChunkTypeNotLetters",
       [] {
         return Small(Concat({PngChunk("t\x01Xt", {1}), Data(kSmall), End()}));
       },
       "image_corrupt"},
      {"N03_CompressionMethod",
       [] {
         PngHeader header = kSmall;
         header.compression = 1;
         return MakePng(header, PngNoise(header, 7));
       },
       "image_corrupt"},
      {"N03_FilterMethod",
       [] {
         PngHeader header = kSmall;
         header.filter = 64;
         return MakePng(header, PngNoise(header, 7));
       },
       "image_corrupt"},
      {"N03_InterlaceMethod",
       [] {
         PngHeader header = kSmall;
         header.interlace = 2;
         return Concat({PngSignature(), PngHeaderChunk(header), Data(kSmall), End()});
       },
       "image_corrupt"},
      {"N04_PaletteMissing", [] { return PalettedFile({}); }, "image_corrupt"},
      {"N04_PaletteEmpty", [] { return PalettedFile(PngPalette(0)); }, "image_corrupt"},
      {"N04_PaletteOf257", [] { return PalettedFile(PngPalette(257)); }, "image_corrupt"},
      {"N04_PaletteNotThirds", [] { return PalettedFile(PngChunk("PLTE", Bytes(31, 9))); },
       "image_corrupt"},
      {"N04_PaletteTwice",
       [] {
         return PalettedFile(Concat({PngPalette(256), PngPalette(256)}));
       },
       "image_corrupt"},
      {"N04_PaletteAfterData",
       [] {
         return Concat({PngSignature(), PngHeaderChunk(Paletted(8)), Data(Paletted(8)),
                        PngPalette(256), End()});
       },
       "image_corrupt"},
      {"N04_MorePaletteThanTheDepthCanIndex",
       [] {
         return Concat({PngSignature(), PngHeaderChunk(Paletted(2)), PngPalette(256),
                        Data(Paletted(2)), End()});
       },
       ""},
      {"N04_TransparencyLongerThanPalette",
       [] {
         return PalettedFile(Concat({PngPalette(256), PngChunk("tRNS", Bytes(300, 0))}));
       },
       ""},
      {"N04_PaletteInGrey",
       [] {
         const PngHeader grey{.width = 6, .height = 5, .bit_depth = 8, .colour = 0};
         return MakePng(grey, PngNoise(grey, 8), PngPalette(4));
       },
       ""},
      {"N06_DataMissing", [] { return Small(End()); }, "image_corrupt"},
      {"N06_DataEmpty", [] { return Raw({}); }, "image_corrupt"},
      {"N06_BadZlibHeader",
       [] {
         return Raw({0x00, 0x00, 0x00, 0x00});
       },
       "image_corrupt"},
      {"N06_TooLittleData", [] { return Raw(Deflate(Bytes(20, 0))); }, "image_corrupt"},
      {"N06_WindowTooLarge",
       [] {
         Bytes data = Deflate(SmallRows());
         data[0] = 0xF8;
         data[1] = 0x01 + (31 - 0xF801 % 31) % 31;
         return Raw(data);
       },
       "image_corrupt"},
      {"N06_UnknownRowFilter", [] { return WithFilterType(5); }, "image_corrupt"},
      {"N06_DataInTwoPlaces",
       [] {
         const Bytes data = Deflate(SmallRows());
         const auto half = data.begin() + static_cast<ptrdiff_t>(data.size() / 2);
         return Small(
             Concat({PngChunk("IDAT", Bytes(data.begin(), half)), PngChunk("tEXt", {'k', 0, 'v'}),
                     PngChunk("IDAT", Bytes(half, data.end())), End()}));
       },
       "image_corrupt"},
      {"N06_OneByteChunks", [] { return ManyDataChunks(0); }, ""},
      {"N06_HundredThousandEmptyChunks", [] { return ManyDataChunks(100000); }, ""},
      {"N06_SurplusData",
       [] {
         return Raw(Deflate(Concat({SmallRows(), Bytes(5000, 0)})));
       },
       ""},
      {"N06_EndWithContent",
       [] {
         return Small(Concat({Data(kSmall), PngChunk("IEND", {1})}));
       },
       "image_corrupt"},
      {"N06_EndMissing", [] { return Small(Data(kSmall)); }, "image_truncated"},
  };
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Png, BadImageTest, testing::ValuesIn(Rows()), BadImageName);

// 64 MiB of zeros, compressed a thousandfold, in each chunk that some decoders inflate.
TEST(AncillaryBombTest, N07_IsNotInflated) {
  const Bytes bomb = Deflate(Bytes(64 << 20, 0));
  const auto text = [&bomb](const std::string& type, const Bytes& head) {
    return PngChunk(type, Concat({head, bomb}));
  };
  const Bytes file = Small(Concat({text("iCCP", {'p', 0, 0}), text("zTXt", {'k', 0, 0}),
                                   text("iTXt", {'k', 0, 1, 0, 0, 0}), Data(kSmall), End()}));
  const std::optional<int64_t> growth = PeakGrowthBytes([&file] { ExpectDecodes(file); });
  if (!growth) {
    GTEST_SKIP() << "this kernel does not let a process reset its peak";
  }
  EXPECT_LT(*growth, 1 << 20);
}

// A zlib stream of zeros, a megabyte each time: after a full flush the same input gives the same
// bytes again, so that only one is compressed.
Bytes DeflatedMegabytes(int num_megabytes) {
  Bytes zeros(1 << 20, 0);
  z_stream stream{};
  EXPECT_EQ(deflateInit(&stream, Z_BEST_COMPRESSION), Z_OK);
  const auto run = [&](size_t num_bytes, int flush) {
    Bytes out(1 << 16);
    stream.next_in = zeros.data();
    stream.avail_in = static_cast<uInt>(num_bytes);
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    EXPECT_NE(deflate(&stream, flush), Z_STREAM_ERROR);
    EXPECT_GT(stream.avail_out, 0U);
    return Bytes(out.data(), stream.next_out);
  };
  Bytes all = run(zeros.size(), Z_FULL_FLUSH);  // with the head of the stream
  const Bytes again = run(zeros.size(), Z_FULL_FLUSH);
  for (int i = 1; i < num_megabytes; ++i) {
    all.insert(all.end(), again.begin(), again.end());
  }
  deflateEnd(&stream);
  return all;
}

// What a reader that does not stop would spend.
std::chrono::nanoseconds InflateTime(Bytes data) {
  Bytes out(1 << 20);
  z_stream stream{};
  EXPECT_EQ(inflateInit(&stream), Z_OK);
  stream.next_in = data.data();
  stream.avail_in = static_cast<uInt>(data.size());
  const std::chrono::nanoseconds begin = ThreadCpuTime();
  while (stream.avail_in > 0) {
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    EXPECT_EQ(inflate(&stream, Z_NO_FLUSH), Z_OK);
  }
  inflateEnd(&stream);
  return ThreadCpuTime() - begin;
}

// Nor what follows the last row, of which a file of the allowed size could hold 10 GiB. Some of it
// is, as much as 16 KiB of the file hold for each row: here a twentieth.
TEST(SurplusBombTest, N06_IsNotInflated) {
  const Bytes data = DeflatedMegabytes(512);
  const Bytes file = Raw(data);
  const std::chrono::nanoseconds whole = InflateTime(data);
  const std::chrono::nanoseconds begin = ThreadCpuTime();
  ExpectRefused(file, "image_corrupt");
  EXPECT_LT(ThreadCpuTime() - begin, whole / 4);
}

TEST(AnimationTest, N08_OnlyTheDefaultPictureIsDecoded) {
  Bytes frames;
  const Bytes control = PngChunk("fcTL", Bytes(26, 0));
  const Bytes frame = PngChunk("fdAT", Bytes(8, 0xEE));
  for (int i = 0; i < 100000; ++i) {
    frames.insert(frames.end(), control.begin(), control.end());
    frames.insert(frames.end(), frame.begin(), frame.end());
  }
  const Bytes file = Small(Concat(
      {PngChunk("acTL", {0, 1, 0x86, 0xA0, 0, 0, 0, 0}), control, Data(kSmall), frames, End()}));
  const absl::StatusOr<RgbImage> image = Decode(AsInput(file), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->pixels, Decode(AsInput(Good()), {})->pixels);
}

}  // namespace
}  // namespace conclave::image
