// Goal: a packed folder gives exactly what its checkpoint gives, keeps its identity, and refuses
// what is damaged, changed or for another use with a reason that tells which.
// Method: a tiny checkpoint with a tower is packed for each numeric mode; every expert, and through
// Verify every entry, is compared; then one thing is broken at a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/expert_hash.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/model/decoder.h"
#include "conclave/model/ffn.h"
#include "conclave/model/pack.h"
#include "conclave/model/vision_tower.h"
#include "small_model.h"

namespace conclave::model {
namespace {

namespace fs = std::filesystem;
using checkpoint::Checkpoint;
using checkpoint::OpenOptions;
using checkpoint::PackedEntry;
using checkpoint::PackedKind;
using ::testing::HasSubstr;

constexpr char kSource[] = CONCLAVE_SOURCE_DIR "/tests/golden/data/cases/stablelm-clip/checkpoint";
constexpr int32_t kLayer = 2;

class PackedModelTest : public ::testing::Test {
 protected:
  std::string out() const { return folder_.path() + "/packed"; }
  std::string file() const { return out() + "/" + checkpoint::kPackedFile; }

  static std::unique_ptr<Checkpoint> Open(const std::string& path,
                                          const OpenOptions& options = {}) {
    auto opened = Checkpoint::Open(path, options);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  absl::Status Pack(const std::string& source, DType dtype,
                    std::function<absl::Status(int64_t, int64_t)> progress = nullptr) {
    CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> opened, Checkpoint::Open(source));
    CONCLAVE_ASSIGN_OR_RETURN(
        checkpoint::PackedWriter writer,
        checkpoint::PackedWriter::Create(*opened, {.folder = out(),
                                                   .dtype = dtype,
                                                   .panel_revision = kernels::kPanelRevision,
                                                   .progress = std::move(progress)}));
    CONCLAVE_RETURN_IF_ERROR(PackModel(*opened, dtype, pool_, writer));
    return writer.Finish();
  }

  // The experts' weights as bytes and floats.
  static absl::StatusOr<FfnWeights> Expert(const Checkpoint& from, int32_t expert, DType dtype,
                                           ThreadPool& pool) {
    return LoadFfn(from, checkpoint::ExpertPrefix(from.desc().names, kLayer, expert),
                   from.desc().moe.io_dim, dtype, pool);
  }

  // Flips a bit in the middle of an entry.
  void Damage(const PackedEntry& entry) const {
    std::fstream stream(file(), std::ios::in | std::ios::out | std::ios::binary);
    const int64_t at = entry.offset + entry.size_bytes / 2;
    stream.seekg(at);
    const char byte = static_cast<char>(stream.get());
    stream.seekp(at);
    stream.put(static_cast<char>(byte ^ 4));
  }

  static const PackedEntry& ExpertEntry(const Checkpoint& packed) {
    const std::string prefix = checkpoint::ExpertPrefix(packed.desc().names, kLayer, 1);
    for (const PackedEntry& entry : packed.packed()->index().entries) {
      if (entry.kind == PackedKind::kMatrix && entry.name.starts_with(prefix)) {
        return entry;
      }
    }
    ADD_FAILURE() << "no entry of " << prefix;
    return packed.packed()->index().entries[0];
  }

  static int64_t NumMappings() {
    std::ifstream maps("/proc/self/maps");
    int64_t count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find(checkpoint::kPackedFile) != std::string::npos ? 1 : 0;
    }
    return count;
  }

  checkpoint::TemporaryFolder folder_;
  ThreadPool pool_{2};
};

bool SameBytes(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

class PackedModesTest : public PackedModelTest, public ::testing::WithParamInterface<DType> {};

TEST_P(PackedModesTest, ExpertsAreEqualToTheBitMappedAndCopied) {
  const DType dtype = GetParam();
  ASSERT_TRUE(Pack(kSource, dtype).ok());
  const auto source = Open(kSource);
  for (const bool copies : {false, true}) {
    const auto packed = Open(out(), {.verify_weights = true, .copy_weights = copies});
    for (int32_t expert = 0; expert < source->desc().FindMoe(kLayer)->num_experts; ++expert) {
      const auto want = Expert(*source, expert, dtype, pool_);
      const auto got = Expert(*packed, expert, dtype, pool_);
      ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
      EXPECT_TRUE(SameBytes(want->up.bytes(), got->up.bytes()));
      EXPECT_TRUE(SameBytes(want->down.bytes(), got->down.bytes()));
      EXPECT_EQ(got->up.n(), want->up.n());
      EXPECT_EQ(got->up.k(), want->up.k());
      EXPECT_EQ(got->up.dtype(), dtype);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(got->up.Panel(0)) % 4096 == 0 || copies, true);
      EXPECT_EQ(checkpoint::HashExpert(*source, kLayer, expert).value(),
                checkpoint::HashExpert(*packed, kLayer, expert).value());
    }
  }
}

// Decoder and tower find all they need, and every entry is as its checksum says.
TEST_P(PackedModesTest, HoldsTheWholeModel) {
  const DType dtype = GetParam();
  ASSERT_TRUE(Pack(kSource, dtype).ok());
  const auto packed = Open(out());
  DecoderOptions options;
  options.dtype = dtype;
  options.compute = kernels::Context(kernels::Isa::kScalar, pool_);
  options.max_rows = options.max_logit_rows = 1;
  const auto source = Open(kSource);
  const auto want = Decoder::Load(*source, options, nullptr);
  const auto got = Decoder::Load(*packed, options, nullptr);
  ASSERT_TRUE(want.ok() && got.ok()) << want.status() << got.status();
  EXPECT_EQ((*got)->weight_bytes(), (*want)->weight_bytes());
  const auto tower = VisionTower::Load(*packed, dtype, options.compute, nullptr);
  EXPECT_TRUE(tower.ok()) << tower.status();
  for (const PackedEntry& entry : packed->packed()->index().entries) {
    const absl::Status status = packed->packed()->Verify(entry, pool_);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(entry.offset % (entry.kind == PackedKind::kFloats ? 64 : 4096), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, PackedModesTest,
                         ::testing::Values(DType::kF32, DType::kBf16, DType::kQ8),
                         [](const auto& test) { return std::string(NameOf(test.param)); });

TEST_F(PackedModelTest, KeepsIdentityTensorsAndSmallFiles) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  const auto source = Open(kSource);
  const auto packed = Open(out());
  EXPECT_EQ(checkpoint::ManifestHash(*packed), checkpoint::ManifestHash(*source));
  EXPECT_EQ(checkpoint::PackedMode(out()).value(), DType::kBf16);
  EXPECT_EQ(checkpoint::PackedMode(kSource).value(), std::nullopt);
  ASSERT_EQ(packed->tensors().size(), source->tensors().size());
  for (size_t i = 0; i < packed->tensors().size(); ++i) {
    EXPECT_EQ(packed->tensors()[i].name, source->tensors()[i].name);
    EXPECT_EQ(packed->tensors()[i].dtype, source->tensors()[i].dtype);
    EXPECT_EQ(packed->tensors()[i].shape, source->tensors()[i].shape);
  }
  for (const auto& entry : fs::directory_iterator(kSource)) {
    const std::string name = entry.path().filename().string();
    const bool is_small = entry.is_regular_file() && name.find("safetensors") == std::string::npos;
    EXPECT_EQ(fs::exists(out() + "/" + name), is_small) << name;
    if (is_small) {
      EXPECT_EQ(checkpoint::ReadFile(entry.path()), checkpoint::ReadFile(out() + "/" + name));
    }
  }
}

TEST_F(PackedModelTest, MemoryOfAnExpertIsGivenBackWithIt) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  const auto packed = Open(out());
  EXPECT_EQ(NumMappings(), 0);
  {
    const auto one = Expert(*packed, 0, DType::kBf16, pool_);
    const auto again = Expert(*packed, 0, DType::kBf16, pool_);
    ASSERT_TRUE(one.ok() && again.ok());
    EXPECT_GT(NumMappings(), 0);
  }
  EXPECT_EQ(NumMappings(), 0);
}

TEST_F(PackedModelTest, DamageIsFoundByWhoeverAsks) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  const auto packed = Open(out());
  const PackedEntry entry = ExpertEntry(*packed);
  Damage(entry);
  const auto fresh = Open(out());
  const absl::Status verified = fresh->packed()->Verify(entry, pool_);
  EXPECT_EQ(ReasonOf(verified), "packed_checksum");
  EXPECT_THAT(MessageOf(verified), HasSubstr(entry.name));
  const auto checking = Open(out(), {.verify_weights = true});
  EXPECT_EQ(ReasonOf(Expert(*checking, 1, DType::kBf16, pool_).status()), "packed_checksum");
  EXPECT_TRUE(Expert(*checking, 0, DType::kBf16, pool_).ok());
  // A start that is not asked to reads nothing twice.
  EXPECT_TRUE(Expert(*fresh, 1, DType::kBf16, pool_).ok());
}

TEST_F(PackedModelTest, FileThatIsCutIsAnErrorAndNoSignal) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  const auto packed = Open(out());
  fs::resize_file(file(), 2 * 4096);
  EXPECT_EQ(ReasonOf(Expert(*packed, 1, DType::kBf16, pool_).status()),
            "model_changed_during_load");
  EXPECT_EQ(ReasonOf(packed->VerifyUnchanged()), "model_changed_during_load");
  EXPECT_EQ(ReasonOf(Checkpoint::Open(out()).status()), "packed_truncated");
}

TEST_F(PackedModelTest, RefusesWhatItIsNotFor) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  const auto packed = Open(out());
  EXPECT_EQ(ReasonOf(Expert(*packed, 0, DType::kF32, pool_).status()), "packed_dtype");
  const auto wide = LoadFfn(*packed, checkpoint::ExpertPrefix(packed->desc().names, kLayer, 0), 65,
                            DType::kBf16, pool_);
  EXPECT_EQ(ReasonOf(wide.status()), "packed_entry");
  const auto missing = LoadFfn(*packed, "model.layers.77.mlp.", DType::kBf16, pool_);
  EXPECT_EQ(ReasonOf(missing.status()), "packed_entry");
  const checkpoint::TensorView& tensor = packed->tensors()[0];
  EXPECT_EQ(ReasonOf(packed->Require(tensor.name, tensor.shape).status()), "packed_form");
  EXPECT_EQ(ReasonOf(Checkpoint::Open(out(), {.vision_tower = kSource}).status()),
            "packed_vision_tower");
  std::ofstream(out() + "/config.json", std::ios::app) << " ";
  EXPECT_EQ(ReasonOf(Checkpoint::Open(out()).status()), "packed_config");
}

TEST_F(PackedModelTest, PanelsOfAnotherRevisionAreRefused) {
  const auto source = Open(kSource);
  {
    auto writer =
        checkpoint::PackedWriter::Create(*source, {.folder = out(),
                                                   .dtype = DType::kBf16,
                                                   .panel_revision = kernels::kPanelRevision + 1,
                                                   .progress = nullptr});
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE(PackModel(*source, DType::kBf16, pool_, *writer).ok());
    ASSERT_TRUE(writer->Finish().ok());
  }
  const auto packed = Open(out());  // A router needs no panels.
  EXPECT_EQ(ReasonOf(Expert(*packed, 0, DType::kBf16, pool_).status()), "packed_version");
}

TEST_F(PackedModelTest, ManifestVouchesForEveryEntry) {
  const std::string source = folder_.path() + "/source";
  fs::copy(kSource, source);
  const fs::path tower = fs::path(kSource).parent_path() / "openai";  // what its config names
  fs::copy(tower, folder_ / "openai", fs::copy_options::recursive);
  checkpoint::WriteFile(fs::path(source) / checkpoint::kManifestFile,
                        checkpoint::ManifestText(*Open(source)).value());
  ASSERT_TRUE(Pack(source, DType::kBf16).ok());
  const auto packed = Open(out(), {.require_manifest = true});
  EXPECT_TRUE(Expert(*packed, 1, DType::kBf16, pool_).ok());
  const fs::path manifest = fs::path(out()) / checkpoint::kManifestFile;
  EXPECT_EQ(checkpoint::ReadFile(manifest), checkpoint::ManifestText(*packed).value());
  Damage(ExpertEntry(*packed));
  EXPECT_EQ(ReasonOf(Expert(*Open(out()), 1, DType::kBf16, pool_).status()), "model_hash_mismatch");
  // That of the checkpoint says nothing of panels.
  fs::copy_file(fs::path(source) / checkpoint::kManifestFile, manifest,
                fs::copy_options::overwrite_existing);
  EXPECT_EQ(ReasonOf(Checkpoint::Open(out()).status()), "model_hash_mismatch");
  fs::remove(manifest);
  EXPECT_EQ(ReasonOf(Checkpoint::Open(out(), {.require_manifest = true}).status()),
            "model_hash_mismatch");
}

TEST_F(PackedModelTest, WorkThatEndsEarlyLeavesNothing) {
  int num_calls = 0;
  const absl::Status stopped = Pack(kSource, DType::kBf16, [&](int64_t done, int64_t total) {
    EXPECT_LE(done, total);
    return ++num_calls < 5 ? absl::OkStatus() : absl::CancelledError("stop");
  });
  EXPECT_TRUE(absl::IsCancelled(stopped)) << stopped;
  EXPECT_EQ(num_calls, 5);
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(PackedModelTest, NothingIsOverwrittenOrPackedTwice) {
  ASSERT_TRUE(Pack(kSource, DType::kBf16).ok());
  EXPECT_EQ(ReasonOf(Pack(kSource, DType::kBf16)), "folder_not_empty");
  EXPECT_EQ(ReasonOf(Pack(out(), DType::kBf16)), "packed_already");
}

}  // namespace
}  // namespace conclave::model
