// What every refusal must look like, and the good picture that must decode before and after it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>

#include "conclave/image/image.h"
#include "files.h"

namespace conclave::image {

// The file is refused with this reason, the code that belongs to it, and a message of one line in
// our own words.
void ExpectRefused(const Bytes& file, const std::string& reason, const DecodeLimits& limits = {});

// The file gives a picture of as many pixels as its size says.
void ExpectDecodes(const Bytes& file, const DecodeLimits& limits = {});

// Either of the two, with one of the known reasons.
void ExpectSane(const Bytes& file);

// One row of the catalogue of bad inputs: "<id>_<what>". An empty reason: decodes.
struct BadImage {
  std::string name;
  std::function<Bytes()> file;
  std::string reason;
};

void PrintTo(const BadImage& bad, std::ostream* out);

// A table of rows; each runs between two decodes of a good picture, in one process. Its one test is
// in bad_image.cc; each file of rows instantiates it.
class BadImageTest : public testing::TestWithParam<BadImage> {
 protected:
  void SetUp() override;
  void TearDown() override;
};

std::string BadImageName(const testing::TestParamInfo<BadImage>& info);

}  // namespace conclave::image
