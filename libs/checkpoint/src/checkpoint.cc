#include "conclave/checkpoint/checkpoint.h"

#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/tensor_list.h"
#include "file.h"
#include "manifest_file.h"
#include "model_config.h"
#include "weight_files.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kTowerRoot = "vision_model.";
constexpr char kHeadName[] = "lm_head.weight";
// How many unused tensors a warning names.
constexpr size_t kNamedMax = 3;

// Every x86-64 has pages of this size.
constexpr size_t kPageBytes = 4096;
// The kernel reads no more ahead for one piece of advice than the device's read-ahead, by default
// this.
constexpr size_t kReadAheadBytes = 128 << 10;

size_t PageOffset(const std::byte* address) {
  return reinterpret_cast<uintptr_t>(address) % kPageBytes;
}

// Faults the pages of a mapped file in; false when that would be a SIGBUS.
bool BringIn(std::span<const std::byte> bytes) {
  // Reads of exactly these bytes, queued all at once: the mapping itself reads nothing ahead, and
  // page by page a disk would be forty times slower. Advice, whose failure shows in what follows.
  for (size_t begin = 0; begin < bytes.size(); begin += kReadAheadBytes) {
    const std::span<const std::byte> part =
        bytes.subspan(begin, std::min(kReadAheadBytes, bytes.size() - begin));
    ::madvise(const_cast<std::byte*>(part.data()), part.size(), MADV_WILLNEED);
  }
  return Populate(bytes) != Populated::kFailed;
}

std::string ShapeText(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16 ||
         dtype == DType::kF64;
}

TensorView ViewOf(const WeightFile& file, size_t index, std::string_view name) {
  const StoredTensor& tensor = file.tensors[index];
  return {.name = name,
          .file = file.file.name,
          .dtype = tensor.dtype,
          .shape = tensor.shape,
          .bytes = file.BytesOf(index)};
}

bool IsBefore(const TensorView& tensor, std::string_view name) { return tensor.name < name; }

const TensorView* FindIn(std::span<const TensorView> tensors, std::string_view name) {
  const auto found = std::lower_bound(tensors.begin(), tensors.end(), name, IsBefore);
  return found != tensors.end() && found->name == name ? &*found : nullptr;
}

absl::Status CheckShape(const TensorView& tensor, std::span<const int64_t> shape) {
  const std::string where = std::string(tensor.file) + ": tensor " + std::string(tensor.name);
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
    return InvalidArgument("tensor_shape_mismatch", where + ": wrong shape; expected " +
                                                        ShapeText(shape) + ", found " +
                                                        ShapeText(tensor.shape));
  }
  if (!IsFloat(tensor.dtype)) {
    return InvalidArgument("tensor_dtype",
                           where + ": wrong dtype; expected f32, bf16, f16 or f64, found " +
                               std::string(NameOf(tensor.dtype)));
  }
  return absl::OkStatus();
}

// Buffers that old files hold and nothing needs (spec 2.5).
bool IsKnownBuffer(std::string_view name) {
  for (const std::string_view end : {".position_ids", ".inv_freq", ".masked_bias", "logn_tensor"}) {
    if (name.ends_with(end)) {
      return true;
    }
  }
  return false;
}

// Number of the tower layer that `name` belongs to, or -1.
int32_t TowerLayerOf(const ModelDesc& desc, std::string_view name) {
  const std::string prefix = desc.names.tower + "encoder.layers.";
  int32_t layer = -1;
  if (!desc.names.tower.empty() && name.starts_with(prefix)) {
    name.remove_prefix(prefix.size());
    std::from_chars(name.data(), name.data() + name.size(), layer);
  }
  return layer;
}

absl::Status MissingTensor(const ModelDesc& desc, const ExpectedTensor& expected) {
  if (expected.part == TensorPart::kResidualFfn) {
    return InvalidArgument("config_moe", "config.json: moe.use_residual: true, but tensor " +
                                             expected.name + " is missing; expected shape " +
                                             ShapeText(expected.shape));
  }
  std::string_view hint;
  if (expected.part == TensorPart::kTower) {
    hint = " (a checkpoint without its tower needs --vision-tower)";
  } else if (expected.part == TensorPart::kHead) {
    hint = " (is the embedding its head? then config.json needs tie_word_embeddings: true)";
  }
  return NotFound("tensor_missing", "tensor " + expected.name + ": missing in the weights of " +
                                        desc.served_name + "; expected shape " +
                                        ShapeText(expected.shape) + std::string(hint));
}

// One matrix for embedding and head may be stored under either name, or under both.
void UseStoredHead(std::span<const TensorView> tensors, ModelDesc& desc) {
  if (desc.tie_embeddings && FindIn(tensors, desc.names.embed) == nullptr &&
      FindIn(tensors, kHeadName) != nullptr) {
    desc.names.embed = kHeadName;
    desc.names.lm_head = kHeadName;
  }
}

// Presence and shape of all that the config implies, and warnings about the rest.
absl::Status CheckAgainstConfig(std::span<const TensorView> tensors, ModelDesc& desc) {
  std::set<std::string_view> known;
  if (desc.tie_embeddings) {
    known.insert(kHeadName);  // The same values as the embedding's, which serve.
  }
  const std::vector<ExpectedTensor> list = ExpectedTensors(desc);
  for (const ExpectedTensor& expected : list) {
    known.insert(expected.name);
    const TensorView* tensor = FindIn(tensors, expected.name);
    if (tensor != nullptr) {
      CONCLAVE_RETURN_IF_ERROR(CheckShape(*tensor, expected.shape));
    } else if (expected.is_needed) {
      return MissingTensor(desc, expected);
    }
  }
  std::string named;
  size_t num_unused = 0;
  for (const TensorView& tensor : tensors) {
    if (known.contains(tensor.name) || IsKnownBuffer(tensor.name)) {
      continue;
    }
    // More tower layers than the geometry says would shift the selected hidden state without any
    // other sign.
    if (TowerLayerOf(desc, tensor.name) >= desc.vision.num_layers) {
      return InvalidArgument("config_vision",
                             std::string(tensor.file) + ": tensor " + std::string(tensor.name) +
                                 ": a tower layer too many; expected num_hidden_layers " +
                                 std::to_string(desc.vision.num_layers) + " of its config");
    }
    if (++num_unused <= kNamedMax) {
      named += (named.empty() ? "" : ", ") + std::string(tensor.name).substr(0, 128);
    }
  }
  if (num_unused > 0) {
    desc.warnings.push_back(std::to_string(num_unused) + " stored tensors are not used: " + named +
                            (num_unused > kNamedMax ? ", ..." : ""));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t TensorView::num_elements() const {
  int64_t num = 1;
  for (const int64_t size : shape) {
    num *= size;
  }
  return num;
}

struct Checkpoint::State {
  std::string folder;
  std::string config_text;
  ModelDesc desc;
  std::vector<WeightFile> files;
  std::vector<WeightFile> tower_files;  // of OpenOptions::vision_tower
  std::set<std::string, std::less<>>
      new_names;                       // of the tower's tensors, as the checkpoint would call them
  std::unique_ptr<PackedFile> packed;  // null: weights as stored, in `files`
  std::vector<TensorView> tensors;
  std::unique_ptr<Manifest> manifest;  // null: none to compare with

  absl::Status OpenPacked(const ModelFolder& opened, const OpenOptions& options);
  void Collect();
  absl::Status OpenTower(bool is_explicit);
  void CollectTower();
  const WeightFile* FileOf(const TensorView& tensor) const;
  absl::Status Verify(const TensorView& tensor) const;
};

// After config.json and manifest.
absl::Status Checkpoint::State::OpenPacked(const ModelFolder& opened, const OpenOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(packed,
                            PackedFile::Open(opened, {.verifies = options.verify_weights,
                                                      .compares_hashes = manifest != nullptr,
                                                      .copies = options.copy_weights}));
  if (HashOf(config_text) != packed->index().config_hash) {
    return InvalidArgument("packed_config",
                           "config.json: not the one that " + std::string(kPackedFile) +
                               " was made with; expected SHA-256 " + packed->index().config_hash +
                               ", found " + HashOf(config_text));
  }
  return manifest != nullptr ? CheckPacked(*manifest, packed->index_hash()) : absl::OkStatus();
}

void Checkpoint::State::Collect() {
  if (packed != nullptr) {
    for (const PackedTensor& tensor : packed->index().tensors) {
      tensors.push_back({.name = tensor.name,
                         .file = kPackedFile,
                         .dtype = tensor.dtype,
                         .shape = tensor.shape,
                         .bytes = {}});
    }
    return;
  }
  for (const WeightFile& file : files) {
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      tensors.push_back(ViewOf(file, i, file.tensors[i].name));
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
}

// The tower's own folder replaces the checkpoint's tower when it was named explicitly, and serves
// when the checkpoint holds none.
absl::Status Checkpoint::State::OpenTower(bool is_explicit) {
  const std::string& path = desc.vision.folder;
  const bool has_own = std::any_of(tensors.begin(), tensors.end(), [this](const TensorView& t) {
    return t.name.starts_with(desc.names.tower);
  });
  if (desc.vision.kind == TowerKind::kNone || path.empty() || (has_own && !is_explicit)) {
    return absl::OkStatus();
  }
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder tower, ModelFolder::Open(path));
  const absl::StatusOr<WeightsKind> kind = FindWeights(tower);
  if (kind.ok() && *kind != WeightsKind::kNone) {
    CONCLAVE_ASSIGN_OR_RETURN(tower_files, OpenWeights(tower, *kind));
    CollectTower();
  } else if (has_own) {
    desc.warnings.push_back(path + ": no weights; the tower's are the checkpoint's own");
  }
  return absl::OkStatus();
}

// Tensors of the tower's own folder take the place of the checkpoint's; its text model, if any, is
// left alone.
void Checkpoint::State::CollectTower() {
  if (tower_files.empty()) {
    return;
  }
  std::erase_if(tensors,
                [this](const TensorView& t) { return t.name.starts_with(desc.names.tower); });
  for (const WeightFile& file : tower_files) {
    for (size_t i = 0; i < file.tensors.size(); ++i) {
      const std::string& stored = file.tensors[i].name;
      if (stored.starts_with(kTowerRoot)) {
        const auto name = new_names.insert(desc.names.tower + stored.substr(kTowerRoot.size()));
        tensors.push_back(ViewOf(file, i, *name.first));
      }
    }
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
}

const WeightFile* Checkpoint::State::FileOf(const TensorView& tensor) const {
  for (const std::vector<WeightFile>* group : {&files, &tower_files}) {
    for (const WeightFile& file : *group) {
      const std::span<const std::byte> bytes = file.mapped.bytes();
      if (tensor.bytes.data() >= bytes.data() &&
          tensor.bytes.data() < bytes.data() + bytes.size()) {
        return &file;
      }
    }
  }
  return nullptr;
}

absl::Status Checkpoint::State::Verify(const TensorView& tensor) const {
  const bool is_own = !new_names.contains(tensor.name);
  return manifest != nullptr && is_own ? CheckTensor(*manifest, tensor) : absl::OkStatus();
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::~Checkpoint() = default;

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder,
                                                             const OpenOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder opened, ModelFolder::Open(folder));
  auto state = std::make_unique<State>();
  state->folder = opened.path();
  CONCLAVE_ASSIGN_OR_RETURN(state->config_text, ReadConfigText(opened));
  CONCLAVE_ASSIGN_OR_RETURN(state->manifest, ReadManifest(opened, options.require_manifest));
  if (state->manifest != nullptr) {
    CONCLAVE_RETURN_IF_ERROR(CheckConfig(*state->manifest, state->config_text));
  }
  if (opened.Has(kPackedFile)) {
    if (!options.vision_tower.empty()) {
      return InvalidArgument("packed_vision_tower",
                             "--vision-tower " + options.vision_tower + ": " +
                                 std::string(kPackedFile) +
                                 " has its tower in it; give the tower to conclave pack");
    }
    CONCLAVE_RETURN_IF_ERROR(state->OpenPacked(opened, options));
  }
  CONCLAVE_ASSIGN_OR_RETURN(state->desc,
                            ReadDesc(opened, state->config_text, options.vision_tower));
  if (state->packed != nullptr) {
    state->Collect();
    UseStoredHead(state->tensors, state->desc);
    CONCLAVE_RETURN_IF_ERROR(CheckAgainstConfig(state->tensors, state->desc));
    return std::unique_ptr<Checkpoint>(new Checkpoint(std::move(state)));
  }
  CONCLAVE_ASSIGN_OR_RETURN(const WeightsKind kind, FindWeights(opened));
  if (kind == WeightsKind::kNone) {
    return NotFound("model_file_missing",
                    opened.path() +
                        ": no weights; expected model.safetensors or pytorch_model.bin, or "
                        "one's .index.json with its shards");
  }
  CONCLAVE_ASSIGN_OR_RETURN(state->files, OpenWeights(opened, kind));
  state->Collect();
  CONCLAVE_RETURN_IF_ERROR(state->OpenTower(!options.vision_tower.empty()));
  UseStoredHead(state->tensors, state->desc);
  CONCLAVE_RETURN_IF_ERROR(CheckAgainstConfig(state->tensors, state->desc));
  return std::unique_ptr<Checkpoint>(new Checkpoint(std::move(state)));
}

const std::string& Checkpoint::folder() const { return state_->folder; }
const std::string& Checkpoint::config_text() const { return state_->config_text; }
const ModelDesc& Checkpoint::desc() const { return state_->desc; }
const PackedFile* Checkpoint::packed() const { return state_->packed.get(); }
std::span<const TensorView> Checkpoint::tensors() const { return state_->tensors; }
const TensorView* Checkpoint::Find(std::string_view name) const {
  return FindIn(state_->tensors, name);
}

absl::StatusOr<TensorView> Checkpoint::Require(std::string_view name,
                                               std::span<const int64_t> shape) const {
  const TensorView* tensor = Find(name);
  if (tensor == nullptr) {
    return NotFound("tensor_missing",
                    "tensor " + std::string(name) + ": missing in the weights of " +
                        state_->desc.served_name + "; expected shape " + ShapeText(shape));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckShape(*tensor, shape));
  if (state_->packed != nullptr) {
    return InvalidArgument("packed_form", "tensor " + std::string(name) + ": " +
                                              std::string(kPackedFile) +
                                              " has its values in another form alone; expected "
                                              "the checkpoint that was packed");
  }
  const WeightFile* file = state_->FileOf(*tensor);
  if (file == nullptr) {  // No bytes, or a copy in memory.
    CONCLAVE_RETURN_IF_ERROR(state_->Verify(*tensor));
    return *tensor;
  }
  const std::string where = std::string(tensor->file) + ": tensor " + std::string(name) + ": ";
  if (const std::string what = WhatChanged(file->file); !what.empty()) {
    return Error(absl::StatusCode::kAborted, "model_changed_during_load", where + what);
  }
  // Starting on a page: the first may hold the end of the tensor before.
  const std::byte* start = tensor->bytes.data() - PageOffset(tensor->bytes.data());
  if (!BringIn({start, tensor->bytes.data() + tensor->bytes.size()})) {
    return Error(absl::StatusCode::kDataLoss, "model_read_error",
                 where + "cannot be read at byte " +
                     std::to_string(tensor->bytes.data() - file->mapped.bytes().data()) + ", " +
                     std::to_string(kReadTries) + " tries");
  }
  CONCLAVE_RETURN_IF_ERROR(state_->Verify(*tensor));
  return *tensor;
}

void Checkpoint::Release(const TensorView& tensor) const {
  // Whole pages inside the tensor only: the neighbours on a shared page may be in use.
  if (state_->FileOf(tensor) == nullptr) {
    return;  // A copy in memory, whose pages hold the only values.
  }
  const std::byte* first = tensor.bytes.data() + (kPageBytes - 1);
  first -= PageOffset(first);
  const std::byte* last = tensor.bytes.data() + tensor.bytes.size();
  last -= PageOffset(last);
  if (first < last) {
    // Advice: nothing is lost when the kernel does not follow it.
    ::madvise(const_cast<std::byte*>(first), static_cast<size_t>(last - first), MADV_DONTNEED);
  }
}

absl::Status Checkpoint::VerifyUnchanged() const {
  if (state_->packed != nullptr) {
    return state_->packed->VerifyUnchanged();
  }
  for (const std::vector<WeightFile>* group : {&state_->files, &state_->tower_files}) {
    for (const WeightFile& file : *group) {
      if (const std::string what = WhatChanged(file.file); !what.empty()) {
        return Error(absl::StatusCode::kAborted, "model_changed_during_load",
                     file.file.name + ": " + what);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::checkpoint
