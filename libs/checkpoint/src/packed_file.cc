#include "conclave/checkpoint/packed_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <system_error>
#include <tuple>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "file.h"
#include "packed_index.h"
#include "sha256.h"

namespace conclave::checkpoint {
namespace {

// What one thread brings in at a time.
constexpr int64_t kSliceBytes = 16 << 20;
constexpr int64_t kHugePage = 2 << 20;

std::string Where(const PackedEntry& entry) {
  return std::string(kPackedFile) + ": entry " + entry.name + ": ";
}

// A part of a file, mapped for one user.
class Mapping {
 public:
  // Takes over the pages of `mapped`; `bytes` lie in them.
  Mapping(std::span<std::byte> mapped, std::span<const std::byte> bytes)
      : mapped_(mapped), bytes_(bytes) {}
  ~Mapping() { ::munmap(mapped_.data(), mapped_.size()); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  const std::span<std::byte> mapped_;
  const std::span<const std::byte> bytes_;
};

// Maps the huge pages of the file that the entry lies in, at an address of the same place within a
// huge page: where the page cache holds them as such, they are mapped as such.
absl::StatusOr<std::shared_ptr<const Mapping>> Map(const OpenedFile& file,
                                                   const PackedEntry& entry) {
  const int64_t first = entry.offset / kHugePage * kHugePage;
  const int64_t last =
      std::min((entry.offset + entry.size_bytes + kHugePage - 1) / kHugePage * kHugePage,
               file.stamp.size_bytes);
  const auto size = static_cast<size_t>(last - first);
  const size_t room = size + kHugePage;
  void* start =
      ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start != MAP_FAILED) {
    auto* begin = static_cast<std::byte*>(start);
    const size_t skipped = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    std::byte* aligned = begin + skipped;
    // The rest of the room goes back, from the page behind the file's last on.
    std::byte* behind = aligned + (size + kPackedPage - 1) / kPackedPage * kPackedPage;
    start = ::mmap(aligned, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, file.fd.get(), first);
    const int error = errno;
    if (skipped > 0) {
      ::munmap(begin, skipped);
    }
    ::munmap(behind, static_cast<size_t>(begin + room - behind));
    if (start == MAP_FAILED) {
      ::munmap(aligned, size);
    }
    errno = error;
  }
  if (start == MAP_FAILED) {
    return Error(absl::StatusCode::kResourceExhausted, "model_read_error",
                 Where(entry) + "cannot be mapped: " + std::generic_category().message(errno));
  }
  const std::span<std::byte> mapped(static_cast<std::byte*>(start), size);
  // Also lets a first read from disk come in huge pages. Advice: all works without it.
  ::madvise(mapped.data(), size, MADV_HUGEPAGE);
  return std::make_shared<const Mapping>(mapped,
                                         mapped.subspan(static_cast<size_t>(entry.offset - first),
                                                        static_cast<size_t>(entry.size_bytes)));
}

// Calls bring_in(first, size) for all slices of `size` bytes until one fails.
template <typename Fn>
absl::Status ForSlices(int64_t size, ThreadPool& pool, const Fn& bring_in) {
  const int64_t num_slices = (size + kSliceBytes - 1) / kSliceBytes;
  std::atomic<bool> has_failed{false};
  std::vector<absl::Status> failures(static_cast<size_t>(num_slices));
  pool.ParallelFor(num_slices, [&](int64_t slice) {
    if (!has_failed.load(std::memory_order_relaxed)) {
      const int64_t first = slice * kSliceBytes;
      absl::Status status = bring_in(first, std::min(kSliceBytes, size - first));
      if (!status.ok()) {
        failures[static_cast<size_t>(slice)] = std::move(status);
        has_failed.store(true, std::memory_order_relaxed);
      }
    }
  });
  for (absl::Status& status : failures) {
    CONCLAVE_RETURN_IF_ERROR(std::move(status));
  }
  return absl::OkStatus();
}

}  // namespace

struct PackedFile::State {
  OpenedFile file;
  PackedOptions options;
  PackedParts parts;

  absl::Status BringIn(const PackedEntry& entry, std::span<const std::byte> mapped,
                       ThreadPool& pool) const;
  absl::StatusOr<SharedBytes> Copy(const PackedEntry& entry, ThreadPool& pool) const;
  absl::Status Compare(const PackedEntry& entry, std::span<const std::byte> bytes,
                       const PackedOptions& wanted) const;
  absl::Status CheckUnchanged(const std::string& where) const {
    const std::string what = WhatChanged(file);
    return what.empty()
               ? absl::OkStatus()
               : Error(absl::StatusCode::kAborted, "model_changed_during_load", where + what);
  }
};

absl::Status PackedFile::State::BringIn(const PackedEntry& entry, std::span<const std::byte> mapped,
                                        ThreadPool& pool) const {
  return ForSlices(entry.size_bytes, pool, [&](int64_t first, int64_t size) -> absl::Status {
    const auto slice = mapped.subspan(static_cast<size_t>(first), static_cast<size_t>(size));
    switch (Populate(slice)) {
      case Populated::kDone:
        return absl::OkStatus();
      case Populated::kFailed:
        CONCLAVE_RETURN_IF_ERROR(CheckUnchanged(Where(entry)));
        return Error(
            absl::StatusCode::kDataLoss, "model_read_error",
            Where(entry) + "cannot be read at byte " + std::to_string(entry.offset + first));
      case Populated::kUnknown:
        break;
    }
    // An older kernel: reading says whether the disk can.
    std::string bytes(static_cast<size_t>(size), '\0');
    return ReadExactly(file, entry.offset + first, bytes);
  });
}

absl::StatusOr<SharedBytes> PackedFile::State::Copy(const PackedEntry& entry,
                                                    ThreadPool& pool) const {
  AlignedBuffer buffer(static_cast<size_t>(entry.size_bytes));
  CONCLAVE_RETURN_IF_ERROR(
      ForSlices(entry.size_bytes, pool, [&](int64_t first, int64_t size) -> absl::Status {
        return ReadExactly(file, entry.offset + first,
                           {buffer.As<char>() + first, static_cast<size_t>(size)});
      }));
  return SharedBytes(std::move(buffer));
}

absl::Status PackedFile::State::Compare(const PackedEntry& entry, std::span<const std::byte> bytes,
                                        const PackedOptions& wanted) const {
  if (wanted.verifies && Crc32c(bytes) != entry.crc) {
    return Error(absl::StatusCode::kDataLoss, "packed_checksum",
                 Where(entry) + "damaged: its checksum does not match the index's");
  }
  if (wanted.compares_hashes) {
    Sha256 hash;
    hash.Add(bytes.data(), bytes.size());
    if (hash.Hex() != entry.sha256) {
      return InvalidArgument("model_hash_mismatch",
                             Where(entry) + "not what the index says; expected " + entry.sha256);
    }
  }
  return absl::OkStatus();
}

PackedFile::PackedFile(std::unique_ptr<State> state) : state_(std::move(state)) {}
PackedFile::~PackedFile() = default;

absl::StatusOr<std::unique_ptr<PackedFile>> PackedFile::Open(const ModelFolder& folder,
                                                             const PackedOptions& options) {
  auto state = std::make_unique<State>();
  CONCLAVE_ASSIGN_OR_RETURN(state->file, folder.OpenFile(kPackedFile));
  state->options = options;
  CONCLAVE_ASSIGN_OR_RETURN(state->parts, ReadPackedParts(state->file));
  return std::unique_ptr<PackedFile>(new PackedFile(std::move(state)));
}

const PackedIndex& PackedFile::index() const { return state_->parts.index; }
int32_t PackedFile::panel_revision() const { return state_->parts.header.panel_revision; }
int64_t PackedFile::file_bytes() const { return state_->parts.header.file_bytes; }
const std::string& PackedFile::index_hash() const { return state_->parts.index_hash; }

const PackedEntry* PackedFile::Find(PackedKind kind, std::string_view name) const {
  const std::vector<PackedEntry>& entries = index().entries;
  const auto key = std::tie(kind, name);
  const auto found = std::lower_bound(entries.begin(), entries.end(), key,
                                      [](const PackedEntry& entry, const auto& wanted) {
                                        return std::pair(entry.kind, std::string_view(entry.name)) <
                                               std::pair(std::get<0>(wanted), std::get<1>(wanted));
                                      });
  return found != entries.end() && found->kind == kind && found->name == name ? &*found : nullptr;
}

absl::StatusOr<WeightHash> PackedFile::HashOf(int32_t layer, int32_t expert) const {
  const std::vector<PackedExpert>& experts = index().experts;
  const auto found =
      std::lower_bound(experts.begin(), experts.end(), std::pair(layer, expert),
                       [](const PackedExpert& item, const std::pair<int32_t, int32_t>& wanted) {
                         return std::pair(item.layer, item.expert) < wanted;
                       });
  if (found == experts.end() || found->layer != layer || found->expert != expert) {
    return NotFound("placement_unknown_unit", std::string(kPackedFile) + ": has no hash of layer " +
                                                  std::to_string(layer) + " expert " +
                                                  std::to_string(expert));
  }
  return found->hash;
}

absl::StatusOr<SharedBytes> PackedFile::Take(const PackedEntry& entry, ThreadPool& pool) const {
  CONCLAVE_CHECK(entry.kind != PackedKind::kFloats);
  if (entry.size_bytes == 0) {
    return SharedBytes();
  }
  CONCLAVE_RETURN_IF_ERROR(state_->CheckUnchanged(Where(entry)));
  SharedBytes taken;
  if (state_->options.copies) {
    CONCLAVE_ASSIGN_OR_RETURN(taken, state_->Copy(entry, pool));
  } else {
    CONCLAVE_ASSIGN_OR_RETURN(const std::shared_ptr<const Mapping> mapping,
                              Map(state_->file, entry));
    CONCLAVE_RETURN_IF_ERROR(state_->BringIn(entry, mapping->bytes(), pool));
    taken = SharedBytes(mapping->bytes(), mapping);
  }
  CONCLAVE_RETURN_IF_ERROR(state_->Compare(entry, taken.bytes(), state_->options));
  return taken;
}

absl::StatusOr<std::vector<float>> PackedFile::Floats(const PackedEntry& entry) const {
  CONCLAVE_CHECK(entry.kind == PackedKind::kFloats);
  std::vector<float> values(static_cast<size_t>(entry.n * entry.k));
  const auto bytes = std::as_writable_bytes(std::span(values));
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(state_->file, entry.offset,
                                       {reinterpret_cast<char*>(bytes.data()), bytes.size()}));
  CONCLAVE_RETURN_IF_ERROR(state_->Compare(entry, bytes, state_->options));
  if (!std::all_of(values.begin(), values.end(),
                   [](float value) { return std::isfinite(value); })) {
    return InvalidArgument("tensor_nonfinite",
                           Where(entry) + "holds NaN or infinity; expected finite weights");
  }
  return values;
}

absl::Status PackedFile::Verify(const PackedEntry& entry, ThreadPool& pool) const {
  const PackedOptions wanted{.verifies = true};
  if (entry.kind == PackedKind::kFloats) {
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> values, Floats(entry));
    return state_->Compare(entry, std::as_bytes(std::span(values)), wanted);
  }
  CONCLAVE_ASSIGN_OR_RETURN(const SharedBytes taken, Take(entry, pool));
  return state_->Compare(entry, taken.bytes(), wanted);
}

absl::Status PackedFile::VerifyUnchanged() const {
  return state_->CheckUnchanged(std::string(kPackedFile) + ": ");
}

absl::StatusOr<std::optional<DType>> PackedMode(const std::string& folder) {
  CONCLAVE_ASSIGN_OR_RETURN(const ModelFolder opened, ModelFolder::Open(folder));
  if (!opened.Has(kPackedFile)) {
    return std::nullopt;
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<PackedFile> file, PackedFile::Open(opened, {}));
  return file->index().dtype;
}

}  // namespace conclave::checkpoint
