// A packed file: the weights of a whole model as they are computed with, for one numeric mode,
// beside copies of the small files of the checkpoint that it was made from (`conclave pack`). Such
// a folder is opened like any checkpoint; weights are mapped and not worked on.
//
// The file, little-endian (docs/decisions/0035-packed-files.md):
//   [0, 4096)  header: magic "CONCLAVE-PACKED\0", u32 format version, u32 panel revision, u64 offset
//              and u64 bytes of the index, u64 bytes of the file, u32 CRC-32C of the index, u32
//              CRC-32C of the header up to here; the rest zeros
//   entries    matrices and rows on page boundaries, floats on multiples of 64
//   index      JSON: mode, hash of config.json, the source's manifest hash, tensors and experts'
//              hashes, and the entries with their places and checksums
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/expert_hash.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/shared_bytes.h"

namespace conclave::checkpoint {

class ModelFolder;

inline constexpr char kPackedFile[] = "conclave-weights.pack";
// The configs of a vision tower that lay in another folder than the checkpoint.
inline constexpr char kPackedTowerFolder[] = "vision-tower";

// kMatrix: panels of kernels::PackedMatrix, [n, k]. kRows: row-major [n, k]. kFloats: f32, n of
// them, k = 1.
enum class PackedKind : uint8_t { kMatrix, kRows, kFloats };

struct PackedEntry {
  PackedKind kind = PackedKind::kMatrix;
  // The stored tensors' names, joined by "|" where several are stacked in one matrix.
  std::string name;
  DType dtype = DType::kF32;
  int64_t n = 0;
  int64_t k = 0;
  int64_t offset = 0;  // from the start of the file
  int64_t size_bytes = 0;
  uint32_t crc = 0;    // CRC-32C
  std::string sha256;  // 64 hex digits: what a manifest vouches for, by the hash of the index

  friend bool operator==(const PackedEntry&, const PackedEntry&) = default;
};

// A tensor of the source, whose values are in the entries in another form.
struct PackedTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  friend bool operator==(const PackedTensor&, const PackedTensor&) = default;
};

struct PackedExpert {
  int32_t layer = 0;
  int32_t expert = 0;
  WeightHash hash{};  // HashExpert of the source

  friend bool operator==(const PackedExpert&, const PackedExpert&) = default;
};

struct PackedIndex {
  DType dtype = DType::kBf16;         // the numeric mode: kF32, kBf16 or kQ8
  std::string config_hash;            // SHA-256 of config.json, 64 hex digits
  std::string manifest_hash;          // ManifestHash of the source
  std::vector<PackedTensor> tensors;  // ascending names
  std::vector<PackedExpert> experts;  // ascending (layer, expert)
  std::vector<PackedEntry> entries;   // ascending (kind, name)

  friend bool operator==(const PackedIndex&, const PackedIndex&) = default;
};

struct PackedOptions {
  // Whether the checksum of every entry is compared when it is taken, which reads it once more.
  bool verifies = false;
  // Whether entries are compared with the hashes that the index gives them; a manifest asks for it.
  bool compares_hashes = false;
  // Whether entries are read into memory of this process instead of being mapped.
  bool copies = false;
};

// Immutable after Open; any thread.
class PackedFile {
 public:
  // Opens kPackedFile of the folder and checks header and index: "packed_header",
  // "packed_version", "packed_truncated", "packed_index", "model_read_error". Reads no weights.
  static absl::StatusOr<std::unique_ptr<PackedFile>> Open(const ModelFolder& folder,
                                                          const PackedOptions& options);
  ~PackedFile();

  const PackedIndex& index() const;
  int32_t panel_revision() const;
  int64_t file_bytes() const;
  // SHA-256 of the index: with it, every entry and tensor is known.
  const std::string& index_hash() const;

  // Null when absent.
  const PackedEntry* Find(PackedKind kind, std::string_view name) const;
  // kNotFound ("placement_unknown_unit") when absent.
  absl::StatusOr<WeightHash> HashOf(int32_t layer, int32_t expert) const;

  // The bytes of an entry, mapped read-only or copied, 64-byte aligned. Every page is brought in,
  // by the threads of `pool`, so that a failing disk or a file that was cut is an error here
  // ("model_read_error", "model_changed_during_load") and not a SIGBUS later. Each call is a
  // mapping of its own that ends with its last user: nothing of it then counts as resident.
  // "packed_checksum" or "model_hash_mismatch" where the options ask for a comparison.
  absl::StatusOr<SharedBytes> Take(const PackedEntry& entry, ThreadPool& pool) const;

  // The values of an entry of floats.
  absl::StatusOr<std::vector<float>> Floats(const PackedEntry& entry) const;

  // Compares the checksum of `entry` with the file, without keeping it.
  absl::Status Verify(const PackedEntry& entry, ThreadPool& pool) const;

  // "model_changed_during_load" when the file is not what Open saw.
  absl::Status VerifyUnchanged() const;

 private:
  struct State;
  explicit PackedFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The numeric mode that the packed file in `folder` is for; nullopt for a folder without one.
// Errors as PackedFile::Open.
absl::StatusOr<std::optional<DType>> PackedMode(const std::string& folder);

}  // namespace conclave::checkpoint
