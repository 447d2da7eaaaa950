#include "conclave/checkpoint/packed_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <tuple>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/tensor/aligned_buffer.h"
#include "file.h"
#include "file_output.h"
#include "manifest_file.h"
#include "output_folder.h"
#include "packed_index.h"
#include "sha256.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

// What is written at once: whole huge pages in place, so that the page cache has them as such and a
// start maps them with one fault each.
constexpr size_t kBlockBytes = size_t{8} << 20;

// No reader takes a larger config or tokenizer file.
constexpr int64_t kSmallBytesMax = 64 << 20;

bool HoldsWeights(std::string_view name) {
  return name.ends_with(".safetensors") || name.ends_with(".index.json") ||
         name == "training_args.bin" || !CheckFormat(std::string(name)).ok();
}

absl::Status CopyFile(const ModelFolder& folder, const std::string& name, const fs::path& target) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(name, kSmallBytesMax, "config_key"));
  return WriteText(target / name, text);
}

absl::Status CopySmallFiles(const ModelFolder& folder, const fs::path& target) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  for (const std::string& name : names) {
    std::error_code ec;
    const fs::path path = fs::path(folder.path()) / name;
    // Folders beside, and what is too large for anything that is read.
    const bool is_small = fs::is_regular_file(path, ec) && !ec &&
                          static_cast<int64_t>(fs::file_size(path, ec)) <= kSmallBytesMax && !ec;
    if (is_small && !HoldsWeights(name) && name != kManifestFile) {
      CONCLAVE_RETURN_IF_ERROR(CopyFile(folder, name, target));
    }
  }
  return absl::OkStatus();
}

// The two files of a tower whose configs lie elsewhere.
absl::Status CopyTowerConfigs(const std::string& tower, const fs::path& target) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder folder, ModelFolder::Open(tower));
  std::error_code ec;
  if (!fs::create_directory(target, ec) || ec) {
    return WriteError(target.string(), ec.value());
  }
  for (const std::string name : {"config.json", "preprocessor_config.json"}) {
    CONCLAVE_RETURN_IF_ERROR(CopyFile(folder, name, target));
  }
  return absl::OkStatus();
}

}  // namespace

struct PackedWriter::State {
  State(const Checkpoint& checkpoint, PackedWriterOptions wanted, OutputFolder output)
      : source(checkpoint), options(std::move(wanted)), folder(std::move(output)) {}

  const Checkpoint& source;
  PackedWriterOptions options;
  OutputFolder folder;
  std::string path;  // of the weights
  UniqueFd fd;
  PackedIndex index;
  int64_t end = 0;  // of what was appended
  int64_t bytes_expected = 0;
  // What of that is not in the file yet: [end / kBlockBytes · kBlockBytes, end).
  AlignedBuffer block{kBlockBytes};

  absl::Status Append(std::span<const std::byte> bytes);
  absl::Status AppendZeros(int64_t until);
  absl::Status Flush();
};

absl::Status PackedWriter::State::Append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto used = static_cast<size_t>(end) % kBlockBytes;
    const size_t count = std::min(bytes.size(), kBlockBytes - used);
    std::memcpy(block.As<std::byte>() + used, bytes.data(), count);
    end += static_cast<int64_t>(count);
    bytes = bytes.subspan(count);
    if (used + count == kBlockBytes) {
      CONCLAVE_RETURN_IF_ERROR(Flush());
    }
  }
  return absl::OkStatus();
}

absl::Status PackedWriter::State::AppendZeros(int64_t until) {
  static constexpr std::byte kZeros[kPackedPage] = {};
  CONCLAVE_CHECK(until - end <= kPackedPage);
  return Append(std::span(kZeros).first(static_cast<size_t>(until - end)));
}

// Writes the block that `end` stands in or has just filled.
absl::Status PackedWriter::State::Flush() {
  const int64_t first = (end - 1) / static_cast<int64_t>(kBlockBytes) * kBlockBytes;
  const int64_t size = end - first;
  CONCLAVE_RETURN_IF_ERROR(
      PwriteAll(fd.get(), path, first, {block.As<std::byte>(), static_cast<size_t>(size)}));
  // The disk writes while the next matrix is packed.
  ::sync_file_range(fd.get(), first, size, SYNC_FILE_RANGE_WRITE);
  return absl::OkStatus();
}

PackedWriter::PackedWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
PackedWriter::~PackedWriter() = default;
PackedWriter::PackedWriter(PackedWriter&& other) noexcept = default;
PackedWriter& PackedWriter::operator=(PackedWriter&& other) noexcept = default;

absl::StatusOr<PackedWriter> PackedWriter::Create(const Checkpoint& source,
                                                  PackedWriterOptions options) {
  if (source.packed() != nullptr) {
    return InvalidArgument(
        "packed_already",
        source.folder() + ": a packed folder; expected the checkpoint it was made from");
  }
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder from, ModelFolder::Open(source.folder()));
  CONCLAVE_ASSIGN_OR_RETURN(OutputFolder folder, OutputFolder::Create(options.folder));
  auto state = std::make_unique<State>(source, std::move(options), std::move(folder));
  const ModelDesc& desc = source.desc();
  const fs::path& target = state->folder.path();
  state->bytes_expected = LoadedBytes(desc, state->options.dtype);
  if (desc.tie_embeddings) {  // Once as rows and once as panels.
    state->bytes_expected += desc.vocab_rows * desc.hidden_dim *
                             static_cast<int64_t>(SizeOf(RowDtypeOf(state->options.dtype)));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckFreeSpace(target.string(), state->bytes_expected));
  CONCLAVE_RETURN_IF_ERROR(CopySmallFiles(from, target));
  if (!desc.vision.folder.empty()) {
    CONCLAVE_RETURN_IF_ERROR(CopyTowerConfigs(desc.vision.folder, target / kPackedTowerFolder));
  }
  state->path = (target / kPackedFile).string();
  CONCLAVE_ASSIGN_OR_RETURN(state->fd, CreateFile(state->path, 0));
  CONCLAVE_RETURN_IF_ERROR(state->AppendZeros(kPackedPage));  // The header, once it is known.
  state->index.dtype = state->options.dtype;
  state->index.config_hash = HashOf(source.config_text());
  state->index.manifest_hash = ManifestHash(source);
  for (const TensorView& tensor : source.tensors()) {
    state->index.tensors.push_back(
        {.name = std::string(tensor.name), .dtype = tensor.dtype, .shape = tensor.shape});
  }
  return PackedWriter(std::move(state));
}

absl::Status PackedWriter::Add(PackedKind kind, const std::string& name, DType dtype, int64_t n,
                               int64_t k, std::span<const std::byte> bytes) {
  State& s = *state_;
  const int64_t alignment = PackedAlignment(kind);
  PackedEntry entry{.kind = kind,
                    .name = name,
                    .dtype = dtype,
                    .n = n,
                    .k = k,
                    .offset = (s.end + alignment - 1) / alignment * alignment,
                    .size_bytes = static_cast<int64_t>(bytes.size()),
                    .crc = Crc32c(bytes),
                    .sha256 = {}};
  Sha256 hash;
  hash.Add(bytes.data(), bytes.size());
  entry.sha256 = hash.Hex();
  CONCLAVE_RETURN_IF_ERROR(s.AppendZeros(entry.offset));
  CONCLAVE_RETURN_IF_ERROR(s.Append(bytes));
  s.index.entries.push_back(std::move(entry));
  return s.options.progress == nullptr
             ? absl::OkStatus()
             : s.options.progress(s.end, std::max(s.end, s.bytes_expected));
}

absl::Status PackedWriter::AddExpert(int32_t layer, int32_t expert) {
  CONCLAVE_ASSIGN_OR_RETURN(const WeightHash hash, HashExpert(state_->source, layer, expert));
  state_->index.experts.push_back({.layer = layer, .expert = expert, .hash = hash});
  return absl::OkStatus();
}

absl::Status PackedWriter::Finish() {
  State& s = *state_;
  CONCLAVE_RETURN_IF_ERROR(s.source.VerifyUnchanged());
  std::sort(s.index.experts.begin(), s.index.experts.end(),
            [](const PackedExpert& a, const PackedExpert& b) {
              return std::tie(a.layer, a.expert) < std::tie(b.layer, b.expert);
            });
  std::sort(s.index.entries.begin(), s.index.entries.end(),
            [](const PackedEntry& a, const PackedEntry& b) {
              return std::tie(a.kind, a.name) < std::tie(b.kind, b.name);
            });
  const std::string text = IndexText(s.index);
  const int64_t offset = (s.end + kPackedPage - 1) / kPackedPage * kPackedPage;
  // By the reader's rules: what breaks them is a mistake of ours and is not left on disk.
  const absl::StatusOr<PackedIndex> parsed = ParseIndex(text, offset);
  CONCLAVE_CHECK(parsed.ok() && *parsed == s.index);
  const PackedHeader header{.panel_revision = s.options.panel_revision,
                            .index_offset = offset,
                            .index_bytes = static_cast<int64_t>(text.size()),
                            .file_bytes = offset + static_cast<int64_t>(text.size()),
                            .index_crc = Crc32c(std::as_bytes(std::span(text)))};
  CONCLAVE_RETURN_IF_ERROR(s.AppendZeros(offset));
  CONCLAVE_RETURN_IF_ERROR(s.Append(std::as_bytes(std::span(text))));
  CONCLAVE_RETURN_IF_ERROR(s.Flush());
  const std::string head = HeaderText(header);
  CONCLAVE_RETURN_IF_ERROR(PwriteAll(s.fd.get(), s.path, 0, std::as_bytes(std::span(head))));
  CONCLAVE_RETURN_IF_ERROR(SyncAndClose(s.fd, s.path));
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder from, ModelFolder::Open(s.source.folder()));
  if (from.Has(kManifestFile)) {
    Sha256 hash;
    hash.Add(text.data(), text.size());
    CONCLAVE_RETURN_IF_ERROR(WriteText(s.folder.path() / kManifestFile,
                                       PackedManifestText(s.source.config_text(), hash.Hex())));
  }
  return s.folder.Keep();
}

}  // namespace conclave::checkpoint
