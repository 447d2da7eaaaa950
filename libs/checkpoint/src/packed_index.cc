#include "packed_index.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <tuple>
#include <utility>

#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "json.h"
#include "safetensors.h"
#include "sha256.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kMagic("CONCLAVE-PACKED\0", 16);
constexpr char kIndexReason[] = "packed_index";
// An index of 8'000 experts has about 8 MB.
constexpr int64_t kPackedIndexBytesMax = 64 << 20;
constexpr JsonLimits kLimits{.depth_max = 5, .values_max = 8'000'000};
constexpr std::array<std::string_view, 3> kKinds = {"matrix", "rows", "floats"};

// The header as it lies in the file.
struct RawHeader {
  char magic[16];
  uint32_t version;
  uint32_t panel_revision;
  uint64_t index_offset;
  uint64_t index_bytes;
  uint64_t file_bytes;
  uint32_t index_crc;
  uint32_t header_crc;
};
static_assert(sizeof(RawHeader) == 56);

uint32_t HeaderCrc(const RawHeader& raw) {
  return Crc32c(std::as_bytes(std::span(&raw, 1)).first(offsetof(RawHeader, header_crc)));
}

absl::Status BadIndex(const std::string& why) {
  return InvalidArgument(kIndexReason, std::string(kPackedFile) + ": index: " + why);
}

absl::Status BadHeader(const std::string& why) {
  return InvalidArgument("packed_header", std::string(kPackedFile) + ": header: " + why);
}

std::string Cut(std::string_view name) { return std::string(name.substr(0, 128)); }

constexpr DType kDtypes[] = {DType::kF32, DType::kBf16, DType::kF16, DType::kF64,
                             DType::kI8,  DType::kU8,   DType::kI16, DType::kI32,
                             DType::kI64, DType::kBool, DType::kQ8};

const DType* DtypeOfWord(std::string_view word) {
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [word](DType dtype) { return NameOf(dtype) == word; });
  return found == std::end(kDtypes) ? nullptr : found;
}

bool IsMode(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kQ8;
}

// Members of one object, taken one after another; the first that is wrong is remembered.
class Members {
 public:
  Members(std::string where, const boost::json::value& value)
      : where_(std::move(where)), object_(value.if_object()) {
    if (object_ == nullptr) {
      status_ = BadIndex(where_ + ": expected an object, found " + Shown(value));
    }
  }

  std::string_view Text(std::string_view key) {
    const boost::json::value* value = Find(key);
    if (value == nullptr || !value->is_string()) {
      Refuse(key, "a text", value);
      return {};
    }
    return std::string_view(value->get_string());
  }

  int64_t Number(std::string_view key, int64_t max) {
    const boost::json::value* value = Find(key);
    if (value == nullptr || !value->is_int64() || value->get_int64() < 0 ||
        value->get_int64() > max) {
      Refuse(key, "a number of 0 to " + std::to_string(max), value);
      return 0;
    }
    return value->get_int64();
  }

  // 64 lower-case hex digits.
  std::string Hash(std::string_view key) {
    const std::string_view text = Text(key);
    if (status_.ok() && (text.size() != 64 ||
                         text.find_first_not_of("0123456789abcdef") != std::string_view::npos)) {
      Refuse(key, "64 hex digits", Find(key));
    }
    return std::string(text);
  }

  DType Dtype(std::string_view key) {
    const DType* dtype = DtypeOfWord(Text(key));
    if (status_.ok() && dtype == nullptr) {
      Refuse(key, "a dtype", Find(key));
    }
    return dtype == nullptr ? DType::kF32 : *dtype;
  }

  const boost::json::array& Array(std::string_view key) {
    static const boost::json::array kEmpty;
    const boost::json::value* value = Find(key);
    if (value == nullptr || !value->is_array()) {
      Refuse(key, "a list", value);
      return kEmpty;
    }
    return value->get_array();
  }

  // Whether all was there, and nothing else.
  absl::Status Finish() {
    if (status_.ok() && num_taken_ != object_->size()) {
      return BadIndex(where_ + ": expected " + std::to_string(num_taken_) + " members, found " +
                      std::to_string(object_->size()));
    }
    return status_;
  }

  void Refuse(std::string_view key, const std::string& expected, const boost::json::value* value) {
    if (status_.ok()) {
      status_ = BadIndex(where_ + ": " + std::string(key) + ": expected " + expected + ", found " +
                         (value == nullptr ? "nothing" : Shown(*value)));
    }
  }
  bool ok() const { return status_.ok(); }

 private:
  const boost::json::value* Find(std::string_view key) {
    if (object_ == nullptr) {
      return nullptr;
    }
    const boost::json::value* value = object_->if_contains({key.data(), key.size()});
    // A key is taken once, but looked at again for a message after an error.
    num_taken_ += value != nullptr && status_.ok() ? 1 : 0;
    return value;
  }

  std::string where_;
  const boost::json::object* object_;
  absl::Status status_;
  size_t num_taken_ = 0;
};

absl::StatusOr<PackedTensor> ParseTensor(const boost::json::value& value, size_t i) {
  Members members("tensors[" + std::to_string(i) + "]", value);
  PackedTensor tensor;
  tensor.name = std::string(members.Text("name"));
  tensor.dtype = members.Dtype("dtype");
  const boost::json::array& shape = members.Array("shape");
  CONCLAVE_RETURN_IF_ERROR(members.Finish());
  const std::string where = "tensor " + Cut(tensor.name) + ": ";
  if (shape.size() > kDimsMax) {
    return BadIndex(where + "expected at most " + std::to_string(kDimsMax) + " axes, found " +
                    std::to_string(shape.size()));
  }
  if (tensor.dtype == DType::kQ8) {
    return BadIndex(where + "q8 is no dtype of a stored tensor");
  }
  auto bytes = static_cast<__int128>(SizeOf(tensor.dtype));
  for (const boost::json::value& size : shape) {
    if (!size.is_int64() || size.get_int64() < 0) {
      return BadIndex(where + "shape: expected sizes, found " + Shown(size));
    }
    tensor.shape.push_back(size.get_int64());
    bytes *= size.get_int64();
    if (bytes > INT64_MAX) {
      return BadIndex(where + "shape: more bytes than can be counted");
    }
  }
  return tensor;
}

uint8_t Digit(char c) { return static_cast<uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10); }

absl::StatusOr<PackedExpert> ParseExpert(const boost::json::value& value, size_t i) {
  Members members("experts[" + std::to_string(i) + "]", value);
  PackedExpert expert;
  expert.layer = static_cast<int32_t>(members.Number("layer", INT32_MAX));
  expert.expert = static_cast<int32_t>(members.Number("expert", INT32_MAX));
  const std::string hash = members.Hash("sha256");
  CONCLAVE_RETURN_IF_ERROR(members.Finish());
  for (size_t b = 0; b < expert.hash.size(); ++b) {
    expert.hash[b] = static_cast<uint8_t>(Digit(hash[2 * b]) << 4 | Digit(hash[2 * b + 1]));
  }
  return expert;
}

absl::StatusOr<PackedEntry> ParseEntry(const boost::json::value& value, size_t i,
                                       int64_t index_offset) {
  Members members("entries[" + std::to_string(i) + "]", value);
  PackedEntry entry;
  const std::string_view kind = members.Text("kind");
  const auto* found = std::find(kKinds.begin(), kKinds.end(), kind);
  if (members.ok() && found == kKinds.end()) {
    members.Refuse("kind", "matrix, rows or floats", nullptr);
  }
  entry.kind = static_cast<PackedKind>(found - kKinds.begin());
  entry.name = std::string(members.Text("name"));
  entry.dtype = members.Dtype("dtype");
  entry.n = members.Number("n", INT32_MAX);
  entry.k = members.Number("k", INT32_MAX);
  entry.offset = members.Number("offset", index_offset);
  entry.size_bytes = members.Number("bytes", index_offset);
  entry.crc = static_cast<uint32_t>(members.Number("crc32c", UINT32_MAX));
  entry.sha256 = members.Hash("sha256");
  CONCLAVE_RETURN_IF_ERROR(members.Finish());
  const std::string where = "entry " + Cut(entry.name) + ": ";
  if (!IsMode(entry.dtype) || (entry.kind == PackedKind::kFloats && entry.dtype != DType::kF32) ||
      (entry.kind == PackedKind::kRows && entry.dtype == DType::kQ8)) {
    return BadIndex(where + "dtype: not one of its kind, found " +
                    std::string(NameOf(entry.dtype)));
  }
  if (entry.kind != PackedKind::kMatrix) {
    // Below 2^64: n and k are below 2^31 each, and a element has 4 bytes at most.
    const auto bytes = static_cast<uint64_t>(entry.n) * static_cast<uint64_t>(entry.k);
    if (bytes * SizeOf(entry.dtype) != static_cast<uint64_t>(entry.size_bytes)) {
      return BadIndex(where + "bytes: expected those of its shape and dtype, found " +
                      std::to_string(entry.size_bytes));
    }
  }
  if (entry.offset % PackedAlignment(entry.kind) != 0 || entry.offset < kPackedPage) {
    return BadIndex(where + "offset: expected a multiple of " +
                    std::to_string(PackedAlignment(entry.kind)) + " behind the header, found " +
                    std::to_string(entry.offset));
  }
  if (entry.size_bytes > index_offset - entry.offset) {
    return BadIndex(where + "ends at byte " + std::to_string(entry.offset) + " + " +
                    std::to_string(entry.size_bytes) + "; expected before the index at byte " +
                    std::to_string(index_offset));
  }
  return entry;
}

// Strictly ascending by what `key` says: nothing twice.
template <typename Item, typename Key>
absl::Status CheckOrder(const std::vector<Item>& items, const char* list, const Key& key) {
  for (size_t i = 1; i < items.size(); ++i) {
    if (!(key(items[i - 1]) < key(items[i]))) {
      return BadIndex(std::string(list) + "[" + std::to_string(i) +
                      "]: expected ascending ones, each once");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOverlap(const std::vector<PackedEntry>& entries) {
  std::vector<const PackedEntry*> sorted;
  sorted.reserve(entries.size());
  for (const PackedEntry& entry : entries) {
    if (entry.size_bytes > 0) {
      sorted.push_back(&entry);
    }
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const PackedEntry* a, const PackedEntry* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i - 1]->offset + sorted[i - 1]->size_bytes > sorted[i]->offset) {
      return BadIndex("entry " + Cut(sorted[i]->name) + ": overlaps " + Cut(sorted[i - 1]->name));
    }
  }
  return absl::OkStatus();
}

std::string HexOf(const WeightHash& hash) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const uint8_t byte : hash) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace

std::string HeaderText(const PackedHeader& header) {
  RawHeader raw{};
  std::memcpy(raw.magic, kMagic.data(), kMagic.size());
  raw.version = kPackedVersion;
  raw.panel_revision = static_cast<uint32_t>(header.panel_revision);
  raw.index_offset = static_cast<uint64_t>(header.index_offset);
  raw.index_bytes = static_cast<uint64_t>(header.index_bytes);
  raw.file_bytes = static_cast<uint64_t>(header.file_bytes);
  raw.index_crc = header.index_crc;
  raw.header_crc = HeaderCrc(raw);
  std::string text(reinterpret_cast<const char*>(&raw), sizeof raw);
  text.resize(kPackedPage, '\0');
  return text;
}

absl::StatusOr<PackedHeader> ParseHeader(std::string_view text, int64_t file_bytes) {
  RawHeader raw{};
  std::memcpy(&raw, text.data(), std::min(text.size(), sizeof raw));
  if (std::string_view(raw.magic, sizeof raw.magic) != kMagic) {
    return BadHeader("does not begin as a packed file; expected what conclave pack writes");
  }
  if (text.size() < static_cast<size_t>(kPackedPage)) {
    return InvalidArgument("packed_truncated", std::string(kPackedFile) +
                                                   ": cut off; expected a header of " +
                                                   std::to_string(kPackedPage) + " bytes, found " +
                                                   std::to_string(text.size()));
  }
  // Before its checksum: another version may have it elsewhere.
  if (raw.version != kPackedVersion) {
    return InvalidArgument("packed_version", std::string(kPackedFile) +
                                                 ": written by another conclave; expected format " +
                                                 std::to_string(kPackedVersion) + ", found " +
                                                 std::to_string(raw.version) +
                                                 "; pack the checkpoint again");
  }
  if (raw.header_crc != HeaderCrc(raw)) {
    return BadHeader("damaged: its checksum does not match");
  }
  if (raw.file_bytes != static_cast<uint64_t>(file_bytes)) {
    return InvalidArgument("packed_truncated", std::string(kPackedFile) +
                                                   ": cut off or longer than written; expected " +
                                                   std::to_string(raw.file_bytes) +
                                                   " bytes, found " + std::to_string(file_bytes));
  }
  if (raw.index_offset < static_cast<uint64_t>(kPackedPage) || raw.index_offset > raw.file_bytes ||
      raw.index_bytes != raw.file_bytes - raw.index_offset || raw.panel_revision > INT32_MAX) {
    return BadHeader("the index is not what ends the file");
  }
  if (raw.index_bytes > static_cast<uint64_t>(kPackedIndexBytesMax)) {
    return BadHeader("index: too large; expected at most " + std::to_string(kPackedIndexBytesMax) +
                     " bytes, found " + std::to_string(raw.index_bytes));
  }
  return PackedHeader{.panel_revision = static_cast<int32_t>(raw.panel_revision),
                      .index_offset = static_cast<int64_t>(raw.index_offset),
                      .index_bytes = static_cast<int64_t>(raw.index_bytes),
                      .file_bytes = file_bytes,
                      .index_crc = raw.index_crc};
}

std::string IndexText(const PackedIndex& index) {
  boost::json::array tensors;
  for (const PackedTensor& tensor : index.tensors) {
    tensors.push_back({{"name", Word(tensor.name)},
                       {"dtype", Word(NameOf(tensor.dtype))},
                       {"shape", boost::json::array(tensor.shape.begin(), tensor.shape.end())}});
  }
  boost::json::array experts;
  for (const PackedExpert& expert : index.experts) {
    experts.push_back(
        {{"layer", expert.layer}, {"expert", expert.expert}, {"sha256", Word(HexOf(expert.hash))}});
  }
  boost::json::array entries;
  for (const PackedEntry& entry : index.entries) {
    entries.push_back({{"kind", Word(kKinds[static_cast<size_t>(entry.kind)])},
                       {"name", Word(entry.name)},
                       {"dtype", Word(NameOf(entry.dtype))},
                       {"n", entry.n},
                       {"k", entry.k},
                       {"offset", entry.offset},
                       {"bytes", entry.size_bytes},
                       {"crc32c", int64_t{entry.crc}},
                       {"sha256", Word(entry.sha256)}});
  }
  return boost::json::serialize(boost::json::object{{"dtype", Word(NameOf(index.dtype))},
                                                    {"config", Word(index.config_hash)},
                                                    {"manifest", Word(index.manifest_hash)},
                                                    {"tensors", std::move(tensors)},
                                                    {"experts", std::move(experts)},
                                                    {"entries", std::move(entries)}});
}

absl::StatusOr<PackedIndex> ParseIndex(std::string_view text, int64_t index_offset) {
  const absl::StatusOr<boost::json::value> value = ParseStrict(text, kLimits);
  if (!value.ok()) {
    return BadIndex("not valid JSON " + MessageOf(value.status()));
  }
  Members members("top", *value);
  PackedIndex index;
  index.dtype = members.Dtype("dtype");
  if (members.ok() && !IsMode(index.dtype)) {
    members.Refuse("dtype", "f32, bf16 or q8", nullptr);
  }
  index.config_hash = members.Hash("config");
  index.manifest_hash = members.Hash("manifest");
  const boost::json::array& tensors = members.Array("tensors");
  const boost::json::array& experts = members.Array("experts");
  const boost::json::array& entries = members.Array("entries");
  CONCLAVE_RETURN_IF_ERROR(members.Finish());
  for (size_t i = 0; i < tensors.size(); ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(PackedTensor tensor, ParseTensor(tensors[i], i));
    index.tensors.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(PackedExpert expert, ParseExpert(experts[i], i));
    index.experts.push_back(expert);
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    CONCLAVE_ASSIGN_OR_RETURN(PackedEntry entry, ParseEntry(entries[i], i, index_offset));
    index.entries.push_back(std::move(entry));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckOrder(index.tensors, "tensors", [](const PackedTensor& tensor) {
    return std::string_view(tensor.name);
  }));
  CONCLAVE_RETURN_IF_ERROR(CheckOrder(index.experts, "experts", [](const PackedExpert& expert) {
    return std::pair(expert.layer, expert.expert);
  }));
  CONCLAVE_RETURN_IF_ERROR(CheckOrder(index.entries, "entries", [](const PackedEntry& entry) {
    return std::pair(entry.kind, std::string_view(entry.name));
  }));
  CONCLAVE_RETURN_IF_ERROR(CheckOverlap(index.entries));
  return index;
}

absl::StatusOr<PackedParts> ReadPackedParts(const OpenedFile& file) {
  PackedParts parts;
  std::string head(static_cast<size_t>(std::min(kPackedPage, file.stamp.size_bytes)), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, 0, head));
  CONCLAVE_ASSIGN_OR_RETURN(parts.header, ParseHeader(head, file.stamp.size_bytes));
  std::string text(static_cast<size_t>(parts.header.index_bytes), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, parts.header.index_offset, text));
  if (Crc32c(std::as_bytes(std::span(text))) != parts.header.index_crc) {
    return BadIndex("damaged: its checksum does not match the header's");
  }
  CONCLAVE_ASSIGN_OR_RETURN(parts.index, ParseIndex(text, parts.header.index_offset));
  Sha256 hash;
  hash.Add(text.data(), text.size());
  parts.index_hash = hash.Hex();
  return parts;
}

}  // namespace conclave::checkpoint
