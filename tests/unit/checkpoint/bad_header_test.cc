// Goal: no safetensors header, however broken, is taken for a good one or crashes the reader.
// Method: rows C02 to C07 of the bad-input catalogue as raw bytes in place of a small model's
// weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "bad_checkpoint.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/safetensors_writer.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

TEST_F(BadCheckpoint, C02_shorter_than_its_length_field) {
  for (const size_t size : {0, 1, 7}) {
    WriteFile(folder_ / kWeights, std::string(size, '\x01'));
    ExpectRefusedWith("safetensors_truncated",
                      {kWeights, "header length needs 8 bytes", std::to_string(size)});
  }
}

TEST_F(BadCheckpoint, C02_eight_bytes) {
  WriteFile(folder_ / kWeights, std::string(8, '\0'));
  ExpectRefusedWith("safetensors_header_json", {kWeights});
}

TEST_F(BadCheckpoint, C03_header_length) {
  for (const uint64_t length :
       {uint64_t{3}, uint64_t{100'000'001}, uint64_t{1} << 63, ~uint64_t{0}}) {
    WriteFile(folder_ / kWeights, RawSafetensors(length, "{}", ""));
    ExpectRefusedWith("safetensors_header_length", {kWeights, std::to_string(length)});
  }
}

TEST_F(BadCheckpoint, C03_header_above_100_MB_in_a_file_that_is_large_enough) {
  WriteFile(folder_ / kWeights, RawSafetensors(100'000'001, "{}", ""));
  fs::resize_file(folder_ / kWeights, 200'000'000);  // sparse
  ExpectRefusedWith("safetensors_header_length", {kWeights, "100000000"});
}

TEST_F(BadCheckpoint, C04_header_json) {
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  const std::vector<std::string> headers = {
      "",
      "x",
      "[]",
      " {}",
      "null",
      "{\"a\":",
      "{} {}",
      "{\"a\":1}",
      "{\"a\\u0000\":\"\xff\"}",
      "{\"a\":" + entry + ",\"a\":" + entry + "}",
      "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
      "{\"__metadata__\":[],\"a\":" + entry + "}",
      "{\"__metadata__\":{\"format\":1},\"a\":" + entry + "}",
      "{\"a\":" + std::string(1000, '[') + std::string(1000, ']') + "}",
      "{\"a\":" + std::string(100'000, '['),
      "{/* comment */\"a\":" + entry + "}",
      "{\"a\":" + entry + ",}",
  };
  for (const std::string& header : headers) {
    SCOPED_TRACE(header.substr(0, 80));
    WriteFile(folder_ / kWeights, RawSafetensors(header, "1234"));
    ExpectRefusedWith("safetensors_header_json", {kWeights});
  }
}

TEST_F(BadCheckpoint, C04_duplicate_tensor_is_named) {
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  WriteFile(folder_ / kWeights,
            RawSafetensors("{\"lm_head.weight\":" + entry + ",\"lm_head.weight\":" + entry + "}",
                           "1234"));
  ExpectRefusedWith("safetensors_header_json", {kWeights, "lm_head.weight", "twice"});
}

TEST_F(BadCheckpoint, C05_dtype) {
  for (const std::string dtype :
       {"\"F33\"", "\"bf16\"", "\"\"", "1", "null", "[\"F32\"]", "\"F8_E4M3\""}) {
    SCOPED_TRACE(dtype);
    WriteFile(folder_ / kWeights, RawSafetensors("{\"t.w\":{\"dtype\":" + dtype +
                                                     ",\"shape\":[1],\"data_offsets\":[0,4]}}",
                                                 "1234"));
    ExpectRefusedWith("tensor_dtype", {kWeights, "t.w", "BF16"});
  }
  WriteFile(folder_ / kWeights,
            RawSafetensors(R"({"t.w":{"shape":[1],"data_offsets":[0,4]}})", "1234"));
  ExpectRefusedWith("tensor_dtype", {kWeights, "t.w"});
}

TEST_F(BadCheckpoint, C06_shape) {
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) {
    many += ",1";
  }
  for (const std::string& shape :
       {std::string("[-1]"), std::string("[1.5]"), std::string("[1.0]"), std::string("[\"1\"]"),
        std::string("[null]"), std::string("1"), std::string("null"), std::string("{}"),
        std::string("[4294967296,4294967296]"), std::string("[9223372036854775807]"),
        std::string("[18446744073709551616]"), std::string("[18446744073709551615]"),
        std::string("[2305843009213693952,2]"), many + "]"}) {
    SCOPED_TRACE(shape);
    WriteFile(folder_ / kWeights, RawSafetensors("{\"t.w\":{\"dtype\":\"F32\",\"shape\":" + shape +
                                                     ",\"data_offsets\":[0,4]}}",
                                                 "1234"));
    ExpectRefusedWith("tensor_shape", {kWeights, "t.w"});
  }
}

struct OffsetCase {
  std::string name;
  std::string header;
  std::string tensor;
};

TEST_F(BadCheckpoint, C07_offsets) {
  const auto f32 = [](const std::string& name, const std::string& shape,
                      const std::string& offsets) {
    return "\"" + name + "\":{\"dtype\":\"F32\",\"shape\":" + shape +
           ",\"data_offsets\":" + offsets + "}";
  };
  const std::vector<OffsetCase> cases = {
      {"end before begin", "{" + f32("t", "[1]", "[4,0]") + "}", "t"},
      {"past the end", "{" + f32("t", "[4]", "[0,16]") + "}", "t"},
      {"far past the end", "{" + f32("t", "[1]", "[9223372036854775803,9223372036854775807]") + "}",
       "t"},
      {"negative", "{" + f32("t", "[1]", "[-4,0]") + "}", "t"},
      {"2^64", "{" + f32("t", "[1]", "[18446744073709551612,18446744073709551616]") + "}", "t"},
      {"not numbers", "{" + f32("t", "[1]", "[\"0\",4]") + "}", "t"},
      {"three", "{" + f32("t", "[1]", "[0,4,8]") + "}", "t"},
      {"none", R"({"t":{"dtype":"F32","shape":[1]}})", "t"},
      {"length is not shape times dtype", "{" + f32("t", "[2]", "[0,4]") + "}", "t"},
      {"overlap", "{" + f32("a", "[2]", "[0,8]") + "," + f32("b", "[1]", "[4,8]") + "}", "b"},
      {"the same bytes twice",
       "{" + f32("a", "[2]", "[0,8]") + "," + f32("b", "[2]", "[0,8]") + "}", ""},
      {"hole in front", "{" + f32("t", "[1]", "[4,8]") + "}", "t"},
      {"hole between",
       R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)" + f32("t", "[1]", "[4,8]") + "}",
       "t"},
      {"bytes behind the last", "{" + f32("t", "[1]", "[0,4]") + "}", ""},
      {"no tensors but bytes", "{}", ""},
  };
  for (const OffsetCase& c : cases) {
    SCOPED_TRACE(c.name);
    std::string header = c.header;
    header.resize((header.size() + 7) / 8 * 8, ' ');
    WriteFile(folder_ / kWeights, RawSafetensors(header, "12345678"));
    ExpectRefusedWith("tensor_offsets", {kWeights, c.tensor});
  }
}

TEST_F(BadCheckpoint, C07_unaligned) {
  std::string header =
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  WriteFile(folder_ / kWeights, RawSafetensors(header, "12345"));
  ExpectRefusedWith("tensor_offsets", {kWeights, "tensor t", "aligned"});
}

// Every prefix of a good file is refused, by whatever check sees it first; none crashes or is taken
// for good.
TEST_F(BadCheckpoint, C07_truncated_anywhere) {
  const std::string good = ReadFile(folder_ / kWeights);
  const size_t step = good.size() / 200 + 1;
  for (size_t size = 0; size < good.size(); size += size < 64 ? 1 : step) {
    WriteFile(folder_ / kWeights, std::string_view(good).substr(0, size));
    EXPECT_FALSE(Open(folder_.path()).ok()) << "at " << size << " of " << good.size() << " bytes";
  }
}

}  // namespace
}  // namespace conclave::checkpoint
