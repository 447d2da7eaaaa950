// Recorded pictures: what they decode to and their pixel values under eight processor settings, by
// SHA-256.
#include <openssl/sha.h>

#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

std::string Sha256Hex(const void* bytes, size_t size) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(static_cast<const unsigned char*>(bytes), size, digest);
  std::string hex;
  for (const unsigned char byte : digest) {
    constexpr char kDigits[] = "0123456789abcdef";
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

// "clip336_pad" and so on: processor, edge, fit.
image::PreprocessSpec SpecOf(const std::string& config) {
  image::PreprocessSpec spec;
  const bool is_clip = config.starts_with("clip");
  const size_t underscore = config.find('_');
  spec.size = std::stoi(config.substr(is_clip ? 4 : 6, underscore));
  const std::string fit = config.substr(underscore + 1);
  spec.fit = fit == "pad"    ? image::Fit::kPad
             : fit == "crop" ? image::Fit::kCrop
                             : image::Fit::kStretch;
  const float clip_mean[] = {0.48145466f, 0.4578275f, 0.40821073f};
  const float clip_std[] = {0.26862954f, 0.26130258f, 0.27577711f};
  for (int c = 0; c < 3; ++c) {
    spec.mean[c] = is_clip ? clip_mean[c] : 0.5f;
    spec.std[c] = is_clip ? clip_std[c] : 0.5f;
  }
  return spec;
}

void CheckPicture(const std::string& root, const json::object& expected, Report& report) {
  const std::string file = Str(expected.at("file"));
  const std::string name = "images/" + file;
  const absl::StatusOr<std::string> bytes = ReadBytes(root + "/images/" + file);
  if (!bytes.ok()) {
    report.Error(name, "read", MessageOf(bytes.status()));
    return;
  }
  if (image::DetectFormat(std::as_bytes(std::span(*bytes))) == image::ImageFormat::kUnknown) {
    report.NotSupported(name, "format " + Str(expected.at("format")));
    return;
  }
  image::DecodeLimits limits;
  limits.aspect_ratio_max = 10'000;  // The recordings hold extreme shapes on purpose.
  const absl::StatusOr<image::RgbImage> picture =
      image::Decode(std::as_bytes(std::span(*bytes)), limits);
  if (!picture.ok()) {
    report.Error(name, "decode", MessageOf(picture.status()));
    return;
  }
  report.Exact(
      name, "decoded RGB",
      Sha256Hex(picture->pixels.data(), picture->pixels.size()) == Str(expected.at("rgb_sha256")),
      "bytes differ");
  for (const json::value& value : expected.at("results").as_array()) {
    const json::object& result = value.as_object();
    const std::string config = Str(result.at("config"));
    const image::PreprocessSpec spec = SpecOf(config);
    const image::RgbImage resized = image::FitAndResize(*picture, spec);
    const std::vector<float> pixels = image::Normalize(resized, spec);
    const bool is_equal =
        Sha256Hex(resized.pixels.data(), resized.pixels.size()) ==
            Str(result.at("resized_u8_sha256")) &&
        Sha256Hex(pixels.data(), pixels.size() * sizeof(float)) == Str(result.at("float_sha256"));
    report.Exact(name, config + ": u8 and f32 pixels", is_equal, "pixels differ");
  }
}

}  // namespace

void CheckImages(const std::string& root, Report& report) {
  const absl::StatusOr<json::value> expected = ReadJson(root + "/images/expected.json");
  if (!expected.ok()) {
    report.Error("images", "expected.json", MessageOf(expected.status()));
    return;
  }
  for (const json::value& picture : expected->as_object().at("images").as_array()) {
    CheckPicture(root, picture.as_object(), report);
  }
}

}  // namespace conclave::golden
