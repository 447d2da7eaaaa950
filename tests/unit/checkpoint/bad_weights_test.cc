// Goal: no weight file, however broken, is taken for a good one, crashes the reader or is reported
// without its name. Method: the rows C01 to C12, C14, C15, C22, C25 and C27 of the bad-input
// catalogue as concrete files in a small model; each must give its reason and name file and tensor,
// and the good model must still open afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kWeights[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

absl::Status Open(const std::string& folder) { return Checkpoint::Open(folder).status(); }

void ExpectRefused(const absl::Status& status, const std::string& reason,
                   const std::vector<std::string>& words) {
  ASSERT_FALSE(status.ok()) << "was taken for good; expected " << reason;
  EXPECT_EQ(ReasonOf(status), reason) << MessageOf(status);
  for (const std::string& word : words) {
    EXPECT_THAT(MessageOf(status), HasSubstr(word));
  }
  EXPECT_EQ(MessageOf(status).find('\n'), std::string::npos) << "a message is one line";
}

class BadCheckpoint : public ::testing::Test {
 protected:
  BadCheckpoint() {
    SmallModel().Write(folder_.path());
    EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
  }
  // The same process opens a good model after the bad one.
  ~BadCheckpoint() override {
    const TemporaryFolder good;
    SmallModel().Write(good.path());
    EXPECT_TRUE(Open(good.path()).ok());
  }

  void ExpectRefusedWith(const std::string& reason, const std::vector<std::string>& words) {
    ExpectRefused(Open(folder_.path()), reason, words);
  }

  TemporaryFolder folder_;
};

TEST_F(BadCheckpoint, C01_file_missing) {
  fs::remove(folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, folder_.path()});
  fs::remove(folder_ / "config.json");
  ExpectRefusedWith("model_file_missing", {"config.json"});
  ExpectRefused(Open(folder_.path() + "/nowhere"), "model_file_missing", {"nowhere"});
}

TEST_F(BadCheckpoint, C01_directory_in_place_of_a_file) {
  fs::remove(folder_ / kWeights);
  fs::create_directory(folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, "is a folder"});
}

TEST_F(BadCheckpoint, C01_file_in_place_of_the_folder) {
  ExpectRefused(Open((folder_ / "config.json").string()), "model_file_missing",
                {"config.json", "is a file"});
}

TEST_F(BadCheckpoint, C01_unreadable) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root reads everything";
  }
  fs::permissions(folder_ / kWeights, fs::perms::none);
  ExpectRefusedWith("model_file_missing", {kWeights, "Permission denied"});
}

TEST_F(BadCheckpoint, C01_dangling_link) {
  fs::remove(folder_ / kWeights);
  fs::create_symlink("nothing-here", folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, "link"});
}

TEST_F(BadCheckpoint, C01_link_out_of_the_folder) {
  const TemporaryFolder other;
  fs::rename(folder_ / kWeights, other / kWeights);
  fs::create_symlink(other / kWeights, folder_ / kWeights);
  ExpectRefusedWith("model_path_escape", {kWeights, "leaves the model folder"});
}

TEST_F(BadCheckpoint, C01_link_within_the_folder_is_fine) {
  fs::create_directory(folder_ / "blobs");
  fs::rename(folder_ / kWeights, folder_ / "blobs/a1b2");
  fs::create_symlink("blobs/a1b2", folder_ / kWeights);
  EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
}

TEST_F(BadCheckpoint, C01_folder_whose_name_begins_alike_is_outside) {
  const std::string twin = folder_.path() + "-twin";
  fs::create_directory(twin);
  fs::rename(folder_ / kWeights, twin + "/w");
  fs::create_symlink(twin + "/w", folder_ / kWeights);
  ExpectRefusedWith("model_path_escape", {kWeights});
  fs::remove_all(twin);
}

TEST_F(BadCheckpoint, C27_fifo_does_not_block) {
  fs::remove(folder_ / kWeights);
  ASSERT_EQ(::mkfifo((folder_ / kWeights).c_str(), 0600), 0);
  ExpectRefusedWith("not_a_regular_file", {kWeights, "FIFO"});
}

TEST_F(BadCheckpoint, C27_socket) {
  fs::remove(folder_ / kWeights);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = (folder_ / kWeights).string();
  ASSERT_LT(path.size(), sizeof(address.sun_path));
  path.copy(address.sun_path, path.size());
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ExpectRefusedWith("not_a_regular_file", {kWeights});
  ::close(fd);
}

TEST_F(BadCheckpoint, C27_device_and_proc) {
  ExpectRefused(Open("/dev/null"), "not_a_regular_file", {"/dev/null", "device"});
  ExpectRefused(Open("/proc/self/mem"), "not_a_regular_file", {"/proc/self/mem"});
}

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

TEST_F(BadCheckpoint, C08_scalar_and_empty_in_place_of_a_vector) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, std::vector<int64_t>{0}}) {
    std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
    for (TensorValues& tensor : tensors) {
      if (tensor.spec.name == "model.norm.weight") {
        tensor.spec.shape = shape;
        tensor.values.resize(static_cast<size_t>(tensor.spec.num_elements()));
      }
    }
    WriteWeights(folder_.path(), tensors);
    ExpectRefusedWith("tensor_shape_mismatch", {kWeights, "model.norm.weight", "expected [16]"});
  }
}

TEST_F(BadCheckpoint, C08_scalar_and_empty_beside_the_model_are_fine) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"scalar", DType::kF32, {}}, {1.0f}});
  tensors.push_back({{"empty", DType::kF32, {0, 3}}, {}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("scalar")->num_elements(), 1);
  EXPECT_EQ((*checkpoint)->Find("empty")->bytes.size(), 0u);
}

// Each needed tensor in turn is left out, then stored transposed or longer by one.
TEST_F(BadCheckpoint, C09_each_needed_tensor_missing) {
  const std::vector<TensorValues> good = SmallModel::Tensors(folder_.path());
  for (size_t i = 0; i < good.size(); ++i) {
    const std::string& name = good[i].spec.name;
    // Of the tower: the layer behind the selected one and the norm after it.
    const bool is_unused = name.find("post_layernorm") != std::string::npos ||
                           name.find("encoder.layers.2.") != std::string::npos;
    std::vector<TensorValues> tensors = good;
    tensors.erase(tensors.begin() + static_cast<int64_t>(i));
    WriteWeights(folder_.path(), tensors);
    if (is_unused) {
      EXPECT_TRUE(Open(folder_.path()).ok()) << name << ": " << Open(folder_.path());
    } else {
      ExpectRefusedWith("tensor_missing", {name, "expected shape"});
    }
  }
}

TEST_F(BadCheckpoint, C09_each_tensor_of_a_wrong_shape) {
  const std::vector<TensorValues> good = SmallModel::Tensors(folder_.path());
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<TensorValues> tensors = good;
    TensorSpec& spec = tensors[i].spec;
    std::reverse(spec.shape.begin(), spec.shape.end());
    if (spec.shape == good[i].spec.shape) {  // Square, or a vector.
      ++spec.shape[0];
      tensors[i].values.resize(static_cast<size_t>(spec.num_elements()));
    }
    WriteWeights(folder_.path(), tensors);
    ExpectRefusedWith("tensor_shape_mismatch", {kWeights, spec.name, "expected [", "found ["});
  }
}

TEST_F(BadCheckpoint, C09_extra_tensor_is_a_warning) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"model.something.else", DType::kF32, {2}}, {1, 2}});
  tensors.push_back({{"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {2}}, {1, 2}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->desc().warnings,
              ::testing::ElementsAre(AllOf(HasSubstr("1 stored tensors are not used"),
                                           HasSubstr("model.something.else"))));
}

TEST_F(BadCheckpoint, C09_integers_in_place_of_numbers) {
  std::string bytes = ReadFile(folder_ / kWeights);
  const std::string good = "\"lm_head.weight\":{\"dtype\":\"BF16\"";
  const size_t at = bytes.find(good);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, good.size(), "\"lm_head.weight\":{\"dtype\":\"I16\" ");
  WriteFile(folder_ / kWeights, bytes);
  ExpectRefusedWith("tensor_dtype", {kWeights, "lm_head.weight", "i16"});
}

TEST_F(BadCheckpoint, C10_nonfinite) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
      tensors.push_back({{"bad", dtype, {200}}, std::vector<float>(200, 1.0f)});
      tensors.back().values[131] = bad;
      WriteWeights(folder_.path(), tensors);
      const auto checkpoint = Checkpoint::Open(folder_.path());
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
      ExpectRefused(ToFloats(*(*checkpoint)->Find("bad")).status(), "tensor_nonfinite",
                    {kWeights, "tensor bad", "element 131", std::isnan(bad) ? "NaN" : "infinity"});
    }
  }
}

TEST_F(BadCheckpoint, C10_zeros_and_denormals_are_values) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  tensors.push_back({{"odd", DType::kF32, {3}}, {0.0f, 1e-40f, -0.0f}});
  tensors.push_back({{"half", DType::kF16, {2}}, {6e-8f, 0.0f}});
  WriteWeights(folder_.path(), tensors);
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(*ToFloats(*(*checkpoint)->Find("odd")), ::testing::ElementsAre(0.0f, 1e-40f, -0.0f));
  EXPECT_THAT(*ToFloats(*(*checkpoint)->Find("half")), ::testing::ElementsAre(0x1p-24f, 0.0f));
}

TEST_F(BadCheckpoint, C12_truncated_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::resize_file(folder_ / kWeights, 100);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load", {kWeights, "size"});
  const int64_t shape[] = {16};
  ExpectRefused((*checkpoint)->Require("model.norm.weight", shape).status(),
                "model_changed_during_load", {kWeights, "model.norm.weight"});
}

TEST_F(BadCheckpoint, C12_replaced_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_TRUE((*checkpoint)->VerifyUnchanged().ok());
  WriteFile(folder_ / "new", ReadFile(folder_ / kWeights));
  fs::rename(folder_ / "new", folder_ / kWeights);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load",
                {kWeights, "replaced"});
}

TEST_F(BadCheckpoint, C12_written_to_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::last_write_time(folder_ / kWeights,
                      fs::file_time_type::clock::now() + std::chrono::seconds(5));
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load",
                {kWeights, "written"});
}

TEST_F(BadCheckpoint, C12_removed_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::remove(folder_ / kWeights);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load", {kWeights});
}

TEST_F(BadCheckpoint, C14_pickle_only) {
  for (const std::string name :
       {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.pt", "model.pth"}) {
    fs::remove(folder_ / kWeights);
    WriteFile(folder_ / name, "\x80\x02}q\x01.");
    ExpectRefusedWith("pickle_refused", {name, "safetensors"});
    fs::remove(folder_ / name);
  }
}

TEST_F(BadCheckpoint, C14_pickle_beside_safetensors_is_not_looked_at) {
  WriteFile(folder_ / "pytorch_model.bin", "\x80\x02}q\x01.");
  EXPECT_TRUE(Open(folder_.path()).ok());
}

TEST_F(BadCheckpoint, C15_other_formats) {
  fs::remove(folder_ / kWeights);
  for (const std::string name : {"model-q4.gguf", "model.onnx"}) {
    WriteFile(folder_ / name, "GGUF");
    ExpectRefusedWith("model_format_unsupported", {name, "expected safetensors"});
    ExpectRefused(Open((folder_ / name).string()), "model_format_unsupported", {name});
    fs::remove(folder_ / name);
  }
}

TEST_F(BadCheckpoint, C22_mixed_dtypes_are_accepted) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  const DType dtypes[] = {DType::kF32, DType::kBf16, DType::kF16};
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i].spec.dtype = dtypes[i % 3];
  }
  WriteWeights(folder_.path(), tensors);
  EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
}

TEST_F(BadCheckpoint, C21_more_tower_layers_than_the_config_says) {
  std::vector<TensorValues> tensors = SmallModel::Tensors(folder_.path());
  const std::string name =
      "model.image_tower.image_tower.vision_model.encoder.layers.3.layer_norm1.bias";
  tensors.push_back({{name, DType::kF32, {8}}, std::vector<float>(8, 0.0f)});
  WriteWeights(folder_.path(), tensors);
  ExpectRefusedWith("config_vision", {kWeights, name, "num_hidden_layers 3"});
}

TEST_F(BadCheckpoint, C19_use_residual_without_its_tensors) {
  SmallModel model;
  model.moe.Set("use_residual", "true");
  model.WriteConfigs(folder_.path());
  ExpectRefusedWith("config_moe", {"use_residual", "model.layers.0.mlp.mlp.gate_proj.weight"});
}

// A sharded copy of the small model with two shards.
class BadShards : public BadCheckpoint {
 protected:
  BadShards() {
    tensors_ = SmallModel::Tensors(folder_.path());
    fs::remove(folder_ / kWeights);
    Write();
    EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
  }

  void Write() {
    fs::remove(folder_ / kShards[0]);
    fs::remove(folder_ / kShards[1]);
    std::vector<TensorValues> parts[2];
    JsonText map;
    int64_t total = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      parts[i % 2].push_back(tensors_[i]);
      map.Set(tensors_[i].spec.name, "\"" + std::string(kShards[i % 2]) + "\"");
      total += tensors_[i].spec.size_bytes();
    }
    ASSERT_TRUE(SaveSafetensors((folder_ / kShards[0]).string(), parts[0]).ok());
    ASSERT_TRUE(SaveSafetensors((folder_ / kShards[1]).string(), parts[1]).ok());
    map_ = map;
    total_ = total;
    WriteIndex();
  }

  void WriteIndex() {
    WriteFile(folder_ / kIndex, "{\"metadata\":{\"total_size\":" + std::to_string(total_) +
                                    "},\"weight_map\":" + map_.Text() + "}");
  }

  static constexpr const char* kShards[2] = {"model-00001-of-00002.safetensors",
                                             "model-00002-of-00002.safetensors"};
  std::vector<TensorValues> tensors_;
  JsonText map_;
  int64_t total_ = 0;
};

TEST_F(BadShards, C11_good_shards_hold_every_tensor) {
  const auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorView* tensor = (*checkpoint)->Find(tensors_[i].spec.name);
    ASSERT_NE(tensor, nullptr) << tensors_[i].spec.name;
    EXPECT_EQ(tensor->file, kShards[i % 2]);
  }
}

TEST_F(BadShards, C11_shard_missing) {
  fs::remove(folder_ / kShards[1]);
  ExpectRefusedWith("shard_index", {kIndex, kShards[1], "missing"});
}

TEST_F(BadShards, C11_tensor_in_two_shards) {
  std::vector<TensorValues> second = {tensors_[0]};
  for (size_t i = 1; i < tensors_.size(); i += 2) {
    second.push_back(tensors_[i]);
  }
  fs::remove(folder_ / kShards[1]);
  ASSERT_TRUE(SaveSafetensors((folder_ / kShards[1]).string(), second).ok());
  ExpectRefusedWith("shard_index", {kIndex, tensors_[0].spec.name, kShards[1]});
}

TEST_F(BadShards, C11_tensor_in_another_shard_than_the_index_says) {
  map_.Set(tensors_[0].spec.name, "\"" + std::string(kShards[1]) + "\"");
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, tensors_[0].spec.name, kShards[0]});
}

TEST_F(BadShards, C11_tensor_not_in_its_shard) {
  map_.Set("model.invented.weight", "\"" + std::string(kShards[0]) + "\"");
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, "model.invented.weight", kShards[0]});
}

TEST_F(BadShards, C11_tensor_not_in_the_index) {
  map_.Remove(tensors_[2].spec.name);
  WriteIndex();
  ExpectRefusedWith("shard_index", {kIndex, tensors_[2].spec.name});
}

TEST_F(BadShards, C11_total_size) {
  for (const int64_t off : {-1, 1, 1'000'000}) {
    total_ += off;
    WriteIndex();
    ExpectRefusedWith("shard_index", {kIndex, "total_size", std::to_string(total_)});
    total_ -= off;
  }
}

TEST_F(BadShards, C11_index_json) {
  for (const std::string text :
       {"", "[]", "{}", "{\"weight_map\":null}", "{\"weight_map\":{}}",
        "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}",
        "{\"weight_map\":{\"a\":\"x\"}",
        "{\"metadata\":{\"total_size\":\"9\"},\"weight_map\":{\"a\":\"x\"}}"}) {
    SCOPED_TRACE(text);
    WriteFile(folder_ / kIndex, text);
    ExpectRefusedWith("shard_index", {kIndex});
  }
}

TEST_F(BadShards, C11_shard_names_that_leave_the_folder) {
  for (const std::string name :
       {"../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\u0000b"}) {
    SCOPED_TRACE(name);
    map_.Set(tensors_[0].spec.name, "\"" + name + "\"");
    WriteIndex();
    ExpectRefusedWith("model_path_escape", {kIndex});
  }
}

TEST_F(BadShards, C11_broken_shard_keeps_its_own_reason) {
  WriteFile(folder_ / kShards[1], "1234567");
  ExpectRefusedWith("safetensors_truncated", {kShards[1]});
}

}  // namespace
}  // namespace conclave::checkpoint
