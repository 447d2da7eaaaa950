// Goal: rows N01 to N08 of the bad-input catalogue.
// Method: files made chunk by chunk, wrong in one way each; where the picture must survive, every
// pixel is compared with what spec 3.1 says about its kind.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bad_image.h"
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

bool IsLegal(int colour, int depth) {
  const bool is_small = depth == 1 || depth == 2 || depth == 4;
  switch (colour) {
    case 0:
      return is_small || depth == 8 || depth == 16;
    case 3:
      return is_small || depth == 8;
    case 2:
    case 4:
    case 6:
      return depth == 8 || depth == 16;
    default:
      return false;
  }
}

TEST(ColourTypeTest, N03_OnlyTheLegalPairsDecode) {
  int num_legal = 0;
  for (int colour = 0; colour < 8; ++colour) {
    for (const int depth : {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 255}) {
      const PngHeader header{.width = 3,
                             .height = 2,
                             .bit_depth = static_cast<uint8_t>(depth),
                             .colour = static_cast<uint8_t>(colour)};
      SCOPED_TRACE("colour type " + std::to_string(colour) + " depth " + std::to_string(depth));
      if (IsLegal(colour, depth)) {
        ExpectDecodes(MakePng(header, PngNoise(header, 9), colour == 3 ? PngPalette(2) : Bytes()));
        ++num_legal;
      } else {
        ExpectRefused(Concat({PngSignature(), PngHeaderChunk(header), PngPalette(2),
                              PngChunk("IDAT", Deflate(Bytes(100, 0))), End()}),
                      "image_corrupt");
      }
    }
  }
  EXPECT_EQ(num_legal, 15);
}

// Spec 3.1 for one pixel of `samples`.
std::array<uint8_t, 3> Expected(const PngHeader& header, const uint16_t* samples) {
  const auto narrow = [&header](uint16_t sample) {
    return static_cast<uint8_t>(
        header.bit_depth == 16 ? sample >> 8 : sample * (255 / ((1 << header.bit_depth) - 1)));
  };
  switch (header.colour) {
    case 0: {
      const uint8_t grey = header.bit_depth == 16
                               ? static_cast<uint8_t>(std::min<uint16_t>(samples[0], 255))
                               : narrow(samples[0]);
      return {grey, grey, grey};
    }
    case 4:
      return {narrow(samples[0]), narrow(samples[0]), narrow(samples[0])};
    case 3: {
      const auto i = static_cast<uint8_t>(samples[0]);
      return {i, static_cast<uint8_t>(255 - i), static_cast<uint8_t>(7 * i)};
    }
    default:
      return {narrow(samples[0]), narrow(samples[1]), narrow(samples[2])};
  }
}

struct Kind {
  int colour;
  int depth;
};

class PixelsTest : public testing::TestWithParam<Kind> {
 protected:
  void ExpectPixels(const PngHeader& header) {
    std::vector<uint16_t> samples = PngNoise(header, header.width * 31 + header.height);
    if (header.bit_depth == 16) {
      // Both sides of Pillow's clipping at 255.
      for (size_t i = 0; i < samples.size(); i += 3) {
        samples[i] %= 300;
      }
    }
    const Bytes palette = header.colour == 3 ? PngPalette(1 << header.bit_depth) : Bytes();
    // A transparent colour changes nothing.
    const size_t num_values = header.colour == 3 ? 2 : header.colour == 0 ? 2 : 6;
    const Bytes transparency =
        header.colour == 4 || header.colour == 6 ? Bytes() : PngChunk("tRNS", Bytes(num_values, 0));
    const absl::StatusOr<RgbImage> image =
        Decode(AsInput(MakePng(header, samples, Concat({palette, transparency}))), {});
    ASSERT_TRUE(image.ok()) << image.status();
    ASSERT_EQ(image->width, static_cast<int32_t>(header.width));
    ASSERT_EQ(image->height, static_cast<int32_t>(header.height));
    const auto channels = static_cast<size_t>(PngChannels(header.colour));
    for (size_t i = 0; i < size_t{header.width} * header.height; ++i) {
      const std::array<uint8_t, 3> expected = Expected(header, samples.data() + i * channels);
      for (size_t c = 0; c < 3; ++c) {
        ASSERT_EQ(int{image->pixels[3 * i + c]}, int{expected[c]}) << "pixel " << i;
      }
    }
  }
};

TEST_P(PixelsTest, N05_EqualWhatTheSpecSays) {
  for (const uint32_t width : {1U, 2U, 3U, 7U, 8U, 9U, 33U}) {
    for (const uint32_t height : {1U, 2U, 5U, 9U}) {
      for (const uint8_t interlace : {0, 1}) {
        SCOPED_TRACE(std::to_string(width) + "x" + std::to_string(height) +
                     (interlace != 0 ? " interlaced" : ""));
        ASSERT_NO_FATAL_FAILURE(ExpectPixels({.width = width,
                                              .height = height,
                                              .bit_depth = static_cast<uint8_t>(GetParam().depth),
                                              .colour = static_cast<uint8_t>(GetParam().colour),
                                              .interlace = interlace}));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Png, PixelsTest,
                         testing::Values(Kind{0, 1}, Kind{0, 2}, Kind{0, 4}, Kind{0, 8},
                                         Kind{0, 16}, Kind{2, 8}, Kind{2, 16}, Kind{3, 1},
                                         Kind{3, 2}, Kind{3, 4}, Kind{3, 8}, Kind{4, 8},
                                         Kind{4, 16}, Kind{6, 8}, Kind{6, 16}),
                         [](const auto& param) {
                           return "Colour" + std::to_string(param.param.colour) + "Depth" +
                                  std::to_string(param.param.depth);
                         });

TEST(PaletteTest, N04_IndexBeyondThePaletteIsBlack) {
  const PngHeader header{.width = 3, .height = 1, .bit_depth = 8, .colour = 3};
  const absl::StatusOr<RgbImage> image =
      Decode(AsInput(MakePng(header, {1, 2, 255}, PngPalette(2))), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->pixels, (Bytes{1, 254, 7, 0, 0, 0, 0, 0, 0}));
}

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
