// Goal: the weight files of torch.save are read as what PyTorch would load from them.
// Method: archives written byte by byte in the forms that PyTorch writes (protocols 2 and 4, shared
// memo, ordered dictionaries with attributes, parameters, ties, slices, views, zip64, unaligned
// entries), whole models as one file and as shards, and what the library's own writer makes.
#include "torch_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/torch_zip_writer.h"
#include "small_model.h"
#include "torch_zip.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
namespace p = pickle;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TorchFileTest : public ::testing::Test {
 protected:
  TorchFileTest() {
    SmallModel().WriteConfigs(folder_.path());
    tensors_ = SmallModel::Tensors(folder_.path());
    float next = 0.5f;
    for (TensorValues& tensor : tensors_) {
      for (float& value : tensor.values) {
        value = next = next < 8.0f ? next + 0.125f : 0.5f;
      }
    }
  }

  // Writes an archive of `pickle_bytes` and one storage "0" of the floats 0, 1, 2...
  absl::StatusOr<std::vector<StoredTensor>> Read(const std::string& pickle_bytes, int num_floats) {
    std::vector<float> values(static_cast<size_t>(num_floats));
    for (int i = 0; i < num_floats; ++i) {
      values[static_cast<size_t>(i)] = static_cast<float>(i);
    }
    std::string bytes(values.size() * sizeof(float), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    WriteFile(folder_ / "one.bin", MakeZip({{.name = "one/data.pkl", .bytes = pickle_bytes},
                                            {.name = "one/data/0", .bytes = bytes}}));
    const auto folder = ModelFolder::Open(folder_.path());
    const auto file = folder->OpenFile("one.bin");
    return ReadTorchZip(*file);
  }

  void ExpectModel(const std::string& weights_file) {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ASSERT_EQ((*checkpoint)->tensors().size(), tensors_.size());
    for (const TensorValues& tensor : tensors_) {
      const auto view = (*checkpoint)->Require(tensor.spec.name, tensor.spec.shape);
      ASSERT_TRUE(view.ok()) << view.status();
      EXPECT_EQ(view->dtype, tensor.spec.dtype);
      const auto values = ToFloats(*view);
      ASSERT_TRUE(values.ok()) << values.status();
      EXPECT_EQ(*values, tensor.values) << tensor.spec.name;
      EXPECT_THAT(std::string(view->file), HasSubstr(weights_file));
      (*checkpoint)->Release(*view);
    }
  }

  TemporaryFolder folder_;
  std::vector<TensorValues> tensors_;
};

TEST_F(TorchFileTest, OneFile) {
  WriteFile(folder_ / "pytorch_model.bin", TorchFile(tensors_));
  ExpectModel("pytorch_model.bin");
}

TEST_F(TorchFileTest, EveryFloatType) {
  const DType types[] = {DType::kF32, DType::kBf16, DType::kF16, DType::kF64};
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].spec.dtype = types[i % 4];
  }
  WriteFile(folder_ / "pytorch_model.bin", TorchFile(tensors_));
  ExpectModel("pytorch_model.bin");
}

TEST_F(TorchFileTest, Shards) {
  const auto half = static_cast<std::ptrdiff_t>(tensors_.size() / 2);
  const std::vector<TensorValues> first(tensors_.begin(), tensors_.begin() + half);
  const std::vector<TensorValues> second(tensors_.begin() + half, tensors_.end());
  WriteFile(folder_ / "pytorch_model-00001-of-00002.bin", TorchFile(first));
  WriteFile(folder_ / "pytorch_model-00002-of-00002.bin", TorchFile(second));
  std::string map;
  int64_t total = 0;
  for (const auto* shard : {&first, &second}) {
    const std::string file = shard == &first ? "00001" : "00002";
    for (const TensorValues& tensor : *shard) {
      map += (map.empty() ? "\"" : ",\"") + tensor.spec.name + "\": \"pytorch_model-" + file +
             "-of-00002.bin\"";
      total += tensor.spec.size_bytes();
    }
  }
  const auto write = [&](int64_t size) {
    WriteFile(folder_ / "pytorch_model.bin.index.json",
              "{\"metadata\": {\"total_size\": " + std::to_string(size) + "}, \"weight_map\": {" +
                  map + "}}");
  };
  write(total);
  ExpectModel("-of-00002.bin");
  write(total + 1);
  const absl::Status status = Checkpoint::Open(folder_.path()).status();
  EXPECT_EQ(ReasonOf(status), "shard_index");
  EXPECT_THAT(MessageOf(status), HasSubstr("pytorch_model.bin.index.json: metadata.total_size"));
}

// Entries as a plain zip tool leaves them: bytes begin anywhere.
TEST_F(TorchFileTest, UnalignedEntries) {
  std::vector<ZipPart> parts = TorchParts(tensors_);
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].padding = 1 + i % 7;
  }
  WriteFile(folder_ / "pytorch_model.bin", MakeZip(parts));
  ExpectModel("pytorch_model.bin");
}

TEST_F(TorchFileTest, Zip64AndAComment) {
  std::string zip = MakeZip(TorchParts(tensors_), /*is_64=*/true);
  WriteFile(folder_ / "pytorch_model.bin", zip);
  ExpectModel("pytorch_model.bin");
  zip[zip.size() - 2] = 5;
  WriteFile(folder_ / "pytorch_model.bin", zip + "hello");
  ExpectModel("pytorch_model.bin");
}

TEST_F(TorchFileTest, SafetensorsComeFirst) {
  WriteWeights(folder_.path(), tensors_);
  WriteFile(folder_ / "pytorch_model.bin", "not looked at");
  ExpectModel("model.safetensors");
}

// What state_dict() gives: an ordered dictionary with _metadata, and parameters.
TEST_F(TorchFileTest, OrderedDictionaryWithAttributesAndParameters) {
  const std::string tensor = p::Tensor(p::Storage("FloatStorage", "0", 6), 0, {2, 3}, {3, 1});
  const std::string parameter = p::Global("torch._utils", "_rebuild_parameter") + "(" + tensor +
                                "\x88" + p::Global("collections", "OrderedDict") + ")RtR";
  const std::string attributes = "}" + p::String("_metadata") + "}(" + p::String("") + "}" +
                                 p::String("version") + p::Int(1) + "su" + "s";
  const auto tensors = Read("\x80\x02" + p::Global("collections", "OrderedDict") + ")R(" +
                                p::String("w") + parameter + "u" + attributes + "b.",
                            6);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_EQ((*tensors)[0].name, "w");
  EXPECT_THAT((*tensors)[0].shape, ElementsAre(2, 3));
  EXPECT_EQ((*tensors)[0].size_bytes, 24);
}

// Protocol 4: frames, short strings, implicit memo, globals from the stack.
TEST_F(TorchFileTest, ProtocolFour) {
  const auto text = [](std::string_view s) {
    return "\x8c" + std::string(1, static_cast<char>(s.size())) + std::string(s) + "\x94";
  };
  std::string body = "}\x94" + text("w") + text("torch._utils") + text("_rebuild_tensor_v2") +
                     "\x93\x94((" + text("storage") + text("torch") + text("FloatStorage") +
                     "\x93\x94" + text("0") + text("cpu") +
                     "K\x06t\x94QK\x01K\x03\x85\x94K\x01\x85" + "\x89" + text("collections") +
                     text("OrderedDict") + "\x93)RtRs.";
  std::string frame(8, '\0');
  frame[0] = static_cast<char>(body.size());
  const auto tensors = Read("\x80\x04\x95" + frame + body, 6);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 1u);
  EXPECT_THAT((*tensors)[0].shape, ElementsAre(3));
  EXPECT_EQ((*tensors)[0].size_bytes, 12);
}

TEST_F(TorchFileTest, SlicesAndTiesOfOneStorage) {
  const std::string storage = p::Storage("FloatStorage", "0", 8);
  const auto tensors = Read(p::Dict(p::String("tie") + p::Tensor(storage, 0, {4}, {1}) +
                                    p::String("a") + p::Tensor(storage, 0, {4}, {1}) +
                                    p::String("b") + p::Tensor(storage, 4, {2, 2}, {2, 1})),
                            8);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[1].offset - (*tensors)[0].offset, 16);
  EXPECT_EQ((*tensors)[2].offset, (*tensors)[0].offset);
}

// A transposed view is copied into row-major order; the values are those PyTorch would show.
TEST_F(TorchFileTest, StridedViewsBecomeRowMajor) {
  const int64_t rows = tensors_[0].spec.shape[0];
  const int64_t cols = tensors_[0].spec.shape[1];
  ASSERT_EQ(tensors_[0].spec.dtype, DType::kBf16);
  std::vector<ZipPart> parts = TorchParts(tensors_);
  std::string transposed(parts[1].bytes.size(), '\0');
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      std::memcpy(transposed.data() + (c * rows + r) * 2,
                  parts[1].bytes.data() + (r * cols + c) * 2, 2);
    }
  }
  parts[1].bytes = transposed;
  const int64_t plain[] = {cols, 1};
  const int64_t turned[] = {1, rows};
  const size_t at = parts[0].bytes.find(p::Tuple(plain));
  ASSERT_NE(at, std::string::npos);
  parts[0].bytes.replace(at, p::Tuple(plain).size(), p::Tuple(turned));
  WriteFile(folder_ / "pytorch_model.bin", MakeZip(parts));
  ExpectModel("pytorch_model.bin");
}

TEST_F(TorchFileTest, ScalarsAndEmptyTensors) {
  const std::string storage = p::Storage("FloatStorage", "0", 2);
  const auto tensors = Read(p::Dict(p::String("s") + p::Tensor(storage, 1, {}, {}) +
                                    p::String("e") + p::Tensor(storage, 0, {0, 5}, {5, 1})),
                            2);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[0].size_bytes, 0);
  EXPECT_EQ((*tensors)[1].size_bytes, 4);
}

// The library's writer: what it writes in pieces, in any order, is read back, holes as zeros.
TEST_F(TorchFileTest, WriterAndReaderAgree) {
  std::vector<TensorSpec> specs;
  for (const TensorValues& tensor : tensors_) {
    specs.push_back(tensor.spec);
  }
  auto writer = TorchZipWriter::Create((folder_ / "pytorch_model.bin").string(), specs);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<ZipPart> parts = TorchParts(tensors_);
  ThreadPool pool(3);
  pool.ParallelFor(static_cast<int64_t>(specs.size()), [&](int64_t i) {
    const std::string& bytes = parts[static_cast<size_t>(i) + 1].bytes;
    const auto all = std::as_bytes(std::span(bytes));
    const size_t cut = bytes.size() / 4 * 2;
    EXPECT_TRUE(
        writer->Write(static_cast<size_t>(i), static_cast<int64_t>(cut), all.subspan(cut)).ok());
    EXPECT_TRUE(writer->Write(static_cast<size_t>(i), 0, all.first(cut)).ok());
  });
  const int64_t size = writer->file_bytes();
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(static_cast<int64_t>(fs::file_size(folder_ / "pytorch_model.bin")), size);
  ExpectModel("pytorch_model.bin");
}

}  // namespace
}  // namespace conclave::checkpoint
