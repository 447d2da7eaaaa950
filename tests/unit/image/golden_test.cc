// Goal: every recorded picture decodes, resizes and normalises to the original's bytes
// (spec 3.1, 3.2). Method: digests of expected.json for all pictures and settings, arrays of
// expected.safetensors where there are some.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <boost/json.hpp>
#include <cstring>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "digest.h"
#include "files.h"

namespace conclave::image {
namespace {

constexpr std::array kConfigs{"clip336_pad", "clip336_crop", "siglip384_pad", "siglip384_stretch",
                              "clip56_pad",  "clip56_crop",  "siglip48_pad",  "siglip48_stretch"};

constexpr std::array kDecodable{"bmp_24.bmp",
                                "bmp_32.bmp",
                                "jpeg_baseline_420.jpg",
                                "jpeg_cmyk.jpg",
                                "jpeg_exif_rotated.jpg",
                                "jpeg_gray.jpg",
                                "jpeg_odd_422.jpg",
                                "scene_300x300.jpg",
                                "jpeg_progressive_444.jpg",
                                "scene_570x380.jpg",
                                "one_pixel.png",
                                "png_1bit.png",
                                "png_gray16.png",
                                "png_gray_alpha.png",
                                "png_interlaced.png",
                                "png_palette.png",
                                "png_rgb.png",
                                "png_rgb16.png",
                                "png_rgba.png",
                                "scene_1000x667.jpg",
                                "tall_5x400.png",
                                "webp_lossless.webp",
                                "webp_lossy.webp",
                                "wide_2000x3.png"};

// wide_2000x3.png is 666:1, which a server refuses.
DecodeLimits GoldenLimits() {
  DecodeLimits limits;
  limits.aspect_ratio_max = 1000;
  return limits;
}

PreprocessSpec SpecOf(const std::string& config) {
  PreprocessSpec spec;
  const bool is_clip = config.starts_with("clip");
  const size_t digits = config.find_first_of("0123456789");
  const size_t underscore = config.find('_');
  spec.size = std::stoi(config.substr(digits, underscore - digits));
  const std::string fit = config.substr(underscore + 1);
  spec.fit = fit == "pad" ? Fit::kPad : fit == "crop" ? Fit::kCrop : Fit::kStretch;
  if (is_clip) {
    const std::array mean{0.48145466F, 0.4578275F, 0.40821073F};
    const std::array std{0.26862954F, 0.26130258F, 0.27577711F};
    std::copy(mean.begin(), mean.end(), spec.mean);
    std::copy(std.begin(), std.end(), spec.std);
  } else {
    std::fill_n(spec.mean, 3, 0.5F);
    std::fill_n(spec.std, 3, 0.5F);
  }
  return spec;
}

const boost::json::array& Recordings() {
  static const boost::json::value root = [] {
    const Bytes text = ReadFileBytes(GoldenPath("expected.json"));
    return boost::json::parse(
        boost::json::string_view(reinterpret_cast<const char*>(text.data()), text.size()));
  }();
  return root.at("images").as_array();
}

const boost::json::value* FindRecording(const std::string& file) {
  for (const boost::json::value& recording : Recordings()) {
    if (recording.at("file").as_string() == file) {
      return &recording;
    }
  }
  return nullptr;
}

std::string Text(const boost::json::value& value) {
  return boost::json::value_to<std::string>(value);
}

// The recorded arrays: key to bytes.
class RecordedArrays {
 public:
  RecordedArrays() : file_(ReadFileBytes(GoldenPath("expected.safetensors"))) {
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, file_.data(), sizeof(header_bytes));
    const auto* header = reinterpret_cast<const char*>(file_.data()) + sizeof(header_bytes);
    const auto root = boost::json::parse(boost::json::string_view(header, header_bytes));
    for (const auto& [key, value] : root.as_object()) {
      if (key != "__metadata__") {
        const boost::json::value& offsets = value.at("data_offsets");
        const auto begin = offsets.at(0).to_number<size_t>();
        const auto end = offsets.at(1).to_number<size_t>();
        arrays_[std::string(key)] =
            std::span(file_).subspan(sizeof(header_bytes) + header_bytes + begin, end - begin);
      }
    }
  }

  const std::map<std::string, std::span<const uint8_t>>& arrays() const { return arrays_; }

 private:
  Bytes file_;
  std::map<std::string, std::span<const uint8_t>> arrays_;
};

struct Case {
  std::string file;
  std::string config;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.file << " " << c.config; }

std::string NameOf(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '.'; }, '_');
  return text;
}

class GoldenDecodeTest : public testing::TestWithParam<const char*> {};

TEST_P(GoldenDecodeTest, GivesPillowsBytes) {
  const boost::json::value* recording = FindRecording(GetParam());
  ASSERT_NE(recording, nullptr);
  const absl::StatusOr<RgbImage> image =
      Decode(AsInput(ReadFileBytes(GoldenPath(GetParam()))), GoldenLimits());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->width, recording->at("width").as_int64());
  EXPECT_EQ(image->height, recording->at("height").as_int64());
  EXPECT_EQ(Sha256(image->pixels), Text(recording->at("rgb_sha256")));
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenDecodeTest, testing::ValuesIn(kDecodable),
                         [](const auto& param) { return NameOf(param.param); });

// A picture added to the recordings must not be left out here.
TEST(GoldenCoverageTest, EveryRecordedPictureIsTested) {
  std::vector<std::string> tested(kDecodable.begin(), kDecodable.end());
  std::vector<std::string> recorded;
  for (const boost::json::value& recording : Recordings()) {
    recorded.push_back(Text(recording.at("file")));
  }
  std::sort(tested.begin(), tested.end());
  std::sort(recorded.begin(), recorded.end());
  EXPECT_EQ(tested, recorded);
}

class GoldenPreprocessTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenPreprocessTest, GivesTheOriginalsPixelValues) {
  const boost::json::value* recording = FindRecording(GetParam().file);
  ASSERT_NE(recording, nullptr);
  const absl::StatusOr<RgbImage> image =
      Decode(AsInput(ReadFileBytes(GoldenPath(GetParam().file))), GoldenLimits());
  ASSERT_TRUE(image.ok()) << image.status();
  const PreprocessSpec spec = SpecOf(GetParam().config);
  const RgbImage resized = FitAndResize(*image, spec);
  const std::vector<float> tensor = Normalize(resized, spec);

  int num_compared = 0;
  for (const boost::json::value& result : recording->at("results").as_array()) {
    if (Text(result.at("config")) == GetParam().config) {
      EXPECT_EQ(Sha256(resized.pixels), Text(result.at("resized_u8_sha256")));
      EXPECT_EQ(Sha256(tensor), Text(result.at("float_sha256")));
      ++num_compared;
    }
  }
  EXPECT_EQ(num_compared, 1);
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* file : kDecodable) {
    for (const char* config : kConfigs) {
      cases.push_back({file, config});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenPreprocessTest, testing::ValuesIn(AllCases()),
                         [](const auto& param) {
                           return NameOf(param.param.file + "_" + param.param.config);
                         });

// Digests say that something differs; the arrays say what, so this test names the first element.
TEST(GoldenArraysTest, EqualTheRecordedArrays) {
  const RecordedArrays recorded;
  int num_u8 = 0;
  int num_f32 = 0;
  for (const auto& [key, expected] : recorded.arrays()) {
    const size_t slash = key.find('/');
    const size_t dot = key.rfind('.');
    const std::string file = key.substr(0, slash);
    if (std::find(kDecodable.begin(), kDecodable.end(), file) == kDecodable.end()) {
      continue;
    }
    const absl::StatusOr<RgbImage> image =
        Decode(AsInput(ReadFileBytes(GoldenPath(file))), GoldenLimits());
    ASSERT_TRUE(image.ok()) << image.status();
    const PreprocessSpec spec = SpecOf(key.substr(slash + 1, dot - slash - 1));
    const RgbImage resized = FitAndResize(*image, spec);
    if (key.substr(dot) == ".u8") {
      ASSERT_EQ(resized.pixels.size(), expected.size()) << key;
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_EQ(int{resized.pixels[i]}, int{expected[i]}) << key << " at " << i;
      }
      ++num_u8;
    } else {
      const std::vector<float> tensor = Normalize(resized, spec);
      ASSERT_EQ(tensor.size() * sizeof(float), expected.size()) << key;
      for (size_t i = 0; i < tensor.size(); ++i) {
        float want = 0;
        std::memcpy(&want, expected.data() + i * sizeof(float), sizeof(float));
        ASSERT_EQ(std::bit_cast<uint32_t>(tensor[i]), std::bit_cast<uint32_t>(want))
            << key << " at " << i;
      }
      ++num_f32;
    }
  }
  EXPECT_EQ(num_f32, 8);
  EXPECT_GE(num_u8, 4 * static_cast<int>(kDecodable.size()));
}

}  // namespace
}  // namespace conclave::image
