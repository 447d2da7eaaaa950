// Layout as in zip_directory.cc and tensor_pickle.cc.
#include "conclave/checkpoint/torch_zip_writer.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <map>
#include <string_view>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "file_output.h"
#include "zip_directory.h"

namespace conclave::checkpoint {
namespace {

// Where torch.save lets the bytes of a storage begin.
constexpr int64_t kAlignment = 64;
constexpr int64_t kEntryBytesMax = INT64_C(0xffffffff);
constexpr int64_t kLocalCrcAt = 14;
constexpr uint16_t kVersionPlain = 20;
constexpr uint16_t kVersion64 = 45;
constexpr uint16_t kNamesAreUtf8 = 1 << 11;
constexpr uint16_t kDosDate = (1 << 5) | 1;  // 1 January 1980, the format's first day

template <typename Word>
void Put(std::string& out, Word word) {
  const size_t at = out.size();
  out.resize(at + sizeof(word));
  std::memcpy(out.data() + at, &word, sizeof(word));
}

std::string_view StorageType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "FloatStorage";
    case DType::kBf16:
      return "BFloat16Storage";
    case DType::kF16:
      return "HalfStorage";
    case DType::kF64:
      return "DoubleStorage";
    default:
      CONCLAVE_CHECK(false);
  }
}

void PutString(std::string& out, std::string_view text) {
  out += 'X';
  Put(out, static_cast<uint32_t>(text.size()));
  out += text;
}

void PutInt(std::string& out, int64_t number) {
  if (number <= INT32_MAX) {
    out += 'J';
    Put(out, static_cast<int32_t>(number));
  } else {
    out += "\x8a\x08";  // LONG1 of 8 bytes
    Put(out, number);
  }
}

void PutTuple(std::string& out, std::span<const int64_t> numbers) {
  out += '(';
  for (const int64_t number : numbers) {
    PutInt(out, number);
  }
  out += 't';
}

// name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())
void PutTensor(std::string& out, const TensorSpec& tensor, size_t key) {
  PutString(out, tensor.name);
  out += "ctorch._utils\n_rebuild_tensor_v2\n((";
  PutString(out, "storage");
  out += "ctorch\n";
  out += StorageType(tensor.dtype);
  out += '\n';
  PutString(out, std::to_string(key));
  PutString(out, "cpu");
  PutInt(out, tensor.num_elements());
  out += "tQ";
  PutInt(out, 0);
  std::vector<int64_t> strides(tensor.shape.size(), 1);
  for (size_t axis = tensor.shape.size(); axis-- > 1;) {
    strides[axis - 1] = strides[axis] * tensor.shape[axis];
  }
  PutTuple(out, tensor.shape);
  PutTuple(out, strides);
  out +=
      "\x89"
      "ccollections\nOrderedDict\n)RtR";
}

std::string PickleOf(std::span<const TensorSpec> tensors) {
  std::string out = "\x80\x02}(";
  for (size_t i = 0; i < tensors.size(); ++i) {
    PutTensor(out, tensors[i], i);
  }
  return out + "u.";
}

// A piece of an entry that was written, and its checksum.
struct Piece {
  int64_t size_bytes = 0;
  uint32_t crc = 0;
};

uint32_t CrcOf(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      ::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

// Of so many zeros: by doubling, since the checksum of two pieces follows from theirs.
uint32_t CrcOfZeros(int64_t count) {
  uint32_t crc = 0;
  const std::byte zero{0};
  uint32_t power = CrcOf(std::span(&zero, 1));
  for (int64_t size = 1; size <= count; size *= 2) {
    if ((count & size) != 0) {
      crc = static_cast<uint32_t>(::crc32_combine64(crc, power, size));
    }
    power = static_cast<uint32_t>(::crc32_combine64(power, power, size));
  }
  return crc;
}

struct Entry {
  std::string name;
  int64_t size_bytes = 0;
  int64_t begin = 0;   // of its local header
  int64_t offset = 0;  // of its bytes
};

std::string LocalHeader(const Entry& entry) {
  std::string out;
  Put(out, uint32_t{0x04034b50});
  Put(out, kVersionPlain);
  Put(out, kNamesAreUtf8);
  Put(out, uint16_t{0});  // stored
  Put(out, uint16_t{0});  // time
  Put(out, kDosDate);
  Put(out, uint32_t{0});  // checksum: written at the end
  Put(out, static_cast<uint32_t>(entry.size_bytes));
  Put(out, static_cast<uint32_t>(entry.size_bytes));
  Put(out, static_cast<uint16_t>(entry.name.size()));
  const auto padding =
      entry.offset - entry.begin - kZipLocalHeaderBytes - static_cast<int64_t>(entry.name.size());
  Put(out, static_cast<uint16_t>(padding));
  out += entry.name;
  if (padding > 0) {
    out += "FB";  // The field that torch.save pads with.
    Put(out, static_cast<uint16_t>(padding - 4));
    out.append(static_cast<size_t>(padding - 4), 'Z');
  }
  return out;
}

std::string DirectoryRecord(const Entry& entry, uint32_t crc) {
  const bool is_far = entry.begin >= kEntryBytesMax;
  std::string out;
  Put(out, uint32_t{0x02014b50});
  Put(out, is_far ? kVersion64 : kVersionPlain);
  Put(out, is_far ? kVersion64 : kVersionPlain);
  Put(out, kNamesAreUtf8);
  Put(out, uint16_t{0});
  Put(out, uint16_t{0});
  Put(out, kDosDate);
  Put(out, crc);
  Put(out, static_cast<uint32_t>(entry.size_bytes));
  Put(out, static_cast<uint32_t>(entry.size_bytes));
  Put(out, static_cast<uint16_t>(entry.name.size()));
  Put(out, static_cast<uint16_t>(is_far ? 12 : 0));
  out.append(10, '\0');  // comment, disk, attributes
  Put(out, static_cast<uint32_t>(is_far ? kEntryBytesMax : entry.begin));
  out += entry.name;
  if (is_far) {
    Put(out, uint16_t{1});
    Put(out, uint16_t{8});
    Put(out, entry.begin);
  }
  return out;
}

// Both ends: the 64-bit one, its locator, and the old one that points past itself.
std::string Ends(int64_t num_entries, int64_t offset, int64_t size_bytes) {
  std::string out;
  Put(out, uint32_t{0x06064b50});
  Put(out, uint64_t{44});  // of what follows
  Put(out, kVersion64);
  Put(out, kVersion64);
  Put(out, uint64_t{0});  // disks
  Put(out, num_entries);
  Put(out, num_entries);
  Put(out, size_bytes);
  Put(out, offset);
  Put(out, uint32_t{0x07064b50});
  Put(out, uint32_t{0});
  Put(out, offset + size_bytes);
  Put(out, uint32_t{1});
  Put(out, uint32_t{0x06054b50});
  Put(out, uint32_t{0});
  Put(out, uint16_t{0xffff});
  Put(out, uint16_t{0xffff});
  Put(out, uint32_t{0xffffffff});
  Put(out, uint32_t{0xffffffff});
  Put(out, uint16_t{0});  // comment
  return out;
}

}  // namespace

struct TorchZipWriter::State {
  UniqueFd fd;
  std::string path;
  std::vector<TensorSpec> tensors;
  std::vector<Entry> entries;  // pickle, tensors, version
  int64_t directory = 0;       // where it begins
  int64_t file_bytes = 0;
  Mutex mu;
  // By offset, for each entry.
  std::vector<std::map<int64_t, Piece>> pieces ABSL_GUARDED_BY(mu);

  void Place(const std::string& stem, const std::string& pickle);
  absl::Status WriteAt(size_t entry, int64_t offset_bytes, std::span<const std::byte> bytes);
  uint32_t CrcOfEntry(size_t entry);
};

// Fixes where everything lies.
void TorchZipWriter::State::Place(const std::string& stem, const std::string& pickle) {
  entries.push_back({.name = stem + "/data.pkl", .size_bytes = std::ssize(pickle)});
  for (size_t i = 0; i < tensors.size(); ++i) {
    CONCLAVE_CHECK(tensors[i].size_bytes() < kEntryBytesMax);
    entries.push_back(
        {.name = stem + "/data/" + std::to_string(i), .size_bytes = tensors[i].size_bytes()});
  }
  entries.push_back({.name = stem + "/version", .size_bytes = 2});
  int64_t at = 0;
  int64_t directory_bytes = 0;
  for (Entry& entry : entries) {
    entry.begin = at;
    const int64_t plain = at + kZipLocalHeaderBytes + std::ssize(entry.name);
    // A padding field has at least its own four bytes.
    entry.offset =
        plain % kAlignment == 0 ? plain : (plain + 4 + kAlignment - 1) / kAlignment * kAlignment;
    at = entry.offset + entry.size_bytes;
    directory_bytes += std::ssize(DirectoryRecord(entry, 0));
  }
  directory = at;
  file_bytes = at + directory_bytes + std::ssize(Ends(0, 0, 0));
  const MutexLock lock(mu);
  pieces.resize(entries.size());
}

absl::Status TorchZipWriter::State::WriteAt(size_t entry, int64_t offset_bytes,
                                            std::span<const std::byte> bytes) {
  const Piece piece{.size_bytes = std::ssize(bytes), .crc = CrcOf(bytes)};
  {
    const MutexLock lock(mu);
    pieces[entry][offset_bytes] = piece;
  }
  return PwriteAll(fd.get(), path, entries[entry].offset + offset_bytes, bytes);
}

uint32_t TorchZipWriter::State::CrcOfEntry(size_t entry) {
  const MutexLock lock(mu);
  uint32_t crc = 0;
  int64_t at = 0;
  const auto add = [&](uint32_t next, int64_t size) {
    crc = static_cast<uint32_t>(::crc32_combine64(crc, next, size));
    at += size;
  };
  for (const auto& [offset, piece] : pieces[entry]) {
    CONCLAVE_CHECK(offset >= at);
    add(CrcOfZeros(offset - at), offset - at);
    add(piece.crc, piece.size_bytes);
  }
  add(CrcOfZeros(entries[entry].size_bytes - at), entries[entry].size_bytes - at);
  return crc;
}

TorchZipWriter::TorchZipWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
TorchZipWriter::~TorchZipWriter() = default;
TorchZipWriter::TorchZipWriter(TorchZipWriter&& other) noexcept = default;
TorchZipWriter& TorchZipWriter::operator=(TorchZipWriter&& other) noexcept = default;

absl::StatusOr<TorchZipWriter> TorchZipWriter::Create(const std::string& path,
                                                      std::vector<TensorSpec> tensors) {
  auto state = std::make_unique<State>();
  state->path = path;
  state->tensors = std::move(tensors);
  const std::string pickle = PickleOf(state->tensors);
  state->Place(std::filesystem::path(path).stem().string(), pickle);
  CONCLAVE_ASSIGN_OR_RETURN(state->fd, CreateFile(path, state->file_bytes));
  for (const Entry& entry : state->entries) {
    const std::string header = LocalHeader(entry);
    CONCLAVE_RETURN_IF_ERROR(
        PwriteAll(state->fd.get(), path, entry.begin, std::as_bytes(std::span(header))));
  }
  const std::string version = "3\n";
  CONCLAVE_RETURN_IF_ERROR(state->WriteAt(0, 0, std::as_bytes(std::span(pickle))));
  CONCLAVE_RETURN_IF_ERROR(
      state->WriteAt(state->entries.size() - 1, 0, std::as_bytes(std::span(version))));
  return TorchZipWriter(std::move(state));
}

std::span<const TensorSpec> TorchZipWriter::tensors() const { return state_->tensors; }
int64_t TorchZipWriter::file_bytes() const { return state_->file_bytes; }

absl::Status TorchZipWriter::Write(size_t index, int64_t offset_bytes,
                                   std::span<const std::byte> bytes) const {
  CONCLAVE_CHECK(index < state_->tensors.size() && offset_bytes >= 0 &&
                 offset_bytes + std::ssize(bytes) <= state_->tensors[index].size_bytes());
  return state_->WriteAt(index + 1, offset_bytes, bytes);
}

absl::Status TorchZipWriter::Finish() {
  std::string directory;
  for (size_t i = 0; i < state_->entries.size(); ++i) {
    const Entry& entry = state_->entries[i];
    const uint32_t crc = state_->CrcOfEntry(i);
    CONCLAVE_RETURN_IF_ERROR(PwriteAll(state_->fd.get(), state_->path, entry.begin + kLocalCrcAt,
                                       std::as_bytes(std::span(&crc, 1))));
    directory += DirectoryRecord(entry, crc);
  }
  directory += Ends(std::ssize(state_->entries), state_->directory, std::ssize(directory));
  CONCLAVE_RETURN_IF_ERROR(PwriteAll(state_->fd.get(), state_->path, state_->directory,
                                     std::as_bytes(std::span(directory))));
  return SyncAndClose(state_->fd, state_->path);
}

}  // namespace conclave::checkpoint
