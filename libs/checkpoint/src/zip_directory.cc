// Layout: PKWARE's APPNOTE 6.3.9, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14 to
// 4.3.16 (ends), 4.5.3 (zip64 extra field).
#include "zip_directory.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::checkpoint {
namespace {

constexpr uint32_t kLocalMark = 0x04034b50;
constexpr uint32_t kDirectoryMark = 0x02014b50;
constexpr uint32_t kEndMark = 0x06054b50;
constexpr uint32_t kEnd64Mark = 0x06064b50;
constexpr uint32_t kLocatorMark = 0x07064b50;
constexpr int64_t kDirectoryEntryBytes = 46;
constexpr int64_t kEndBytes = 22;
constexpr int64_t kEnd64Bytes = 56;
constexpr int64_t kLocatorBytes = 20;
constexpr uint64_t kIn64 = 0xffffffff;  // "the value is in the zip64 field"
constexpr uint64_t kIn64Short = 0xffff;

// Archives of models have one entry per tensor.
constexpr int64_t kEntriesMax = 1'000'000;
constexpr int64_t kDirectoryBytesMax = 256 << 20;

absl::Status Bad(const OpenedFile& file, const std::string& why) {
  return InvalidArgument("torch_zip", file.name + ": " + why);
}

// Little-endian numbers at fixed places of a record that is known to be long enough.
template <typename Word>
uint64_t At(std::string_view bytes, size_t offset) {
  Word word = 0;
  std::memcpy(&word, bytes.data() + offset, sizeof(word));
  return word;
}
uint64_t Short(std::string_view bytes, size_t offset) { return At<uint16_t>(bytes, offset); }
uint64_t Int(std::string_view bytes, size_t offset) { return At<uint32_t>(bytes, offset); }
uint64_t Long(std::string_view bytes, size_t offset) { return At<uint64_t>(bytes, offset); }

absl::StatusOr<std::string> Read(const OpenedFile& file, int64_t offset, int64_t size) {
  std::string bytes(static_cast<size_t>(size), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, offset, bytes));
  return bytes;
}

// Where the directory lies.
struct Extent {
  int64_t num_entries = 0;
  int64_t offset = 0;
  int64_t size_bytes = 0;
};

// The end record is the last thing in the file but for a comment of up to 65,535 bytes.
absl::StatusOr<int64_t> FindEnd(const OpenedFile& file) {
  const int64_t size = file.stamp.size_bytes;
  const int64_t tail_bytes = std::min<int64_t>(size, kEndBytes + 0xffff);
  CONCLAVE_ASSIGN_OR_RETURN(const std::string tail, Read(file, size - tail_bytes, tail_bytes));
  for (int64_t at = tail_bytes - kEndBytes; at >= 0; --at) {
    const auto begin = static_cast<size_t>(at);
    if (Int(tail, begin) == kEndMark &&
        static_cast<int64_t>(Short(tail, begin + 20)) == tail_bytes - at - kEndBytes) {
      return size - tail_bytes + at;
    }
  }
  return Bad(file, "no end of a zip directory; expected one within the last " +
                       std::to_string(tail_bytes) + " bytes (truncated file?)");
}

// Replaces what the end record could not hold; `end` is where it lies.
absl::Status ReadEnd64(const OpenedFile& file, int64_t end, std::string_view record, Extent& extent,
                       int64_t& limit) {
  const bool is_needed =
      Short(record, 10) == kIn64Short || Int(record, 12) == kIn64 || Int(record, 16) == kIn64;
  if (!is_needed) {
    return absl::OkStatus();
  }
  if (end < kLocatorBytes + kEnd64Bytes) {
    return Bad(file, "no room for the zip64 end that the directory needs");
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::string locator,
                            Read(file, end - kLocatorBytes, kLocatorBytes));
  const uint64_t at = Long(locator, 8);
  if (Int(locator, 0) != kLocatorMark ||
      at > static_cast<uint64_t>(end - kLocatorBytes - kEnd64Bytes)) {
    return Bad(file, "no zip64 end where the directory needs one");
  }
  limit = static_cast<int64_t>(at);
  CONCLAVE_ASSIGN_OR_RETURN(const std::string end64, Read(file, limit, kEnd64Bytes));
  if (Int(end64, 0) != kEnd64Mark || Int(end64, 16) != 0 || Int(end64, 20) != 0) {
    return Bad(file, "bad zip64 end of the directory");
  }
  // Values of 2^63 and more become negative and fail the checks of the extent.
  extent.num_entries = static_cast<int64_t>(Long(end64, 32));
  extent.size_bytes = static_cast<int64_t>(Long(end64, 40));
  extent.offset = static_cast<int64_t>(Long(end64, 48));
  return absl::OkStatus();
}

absl::StatusOr<Extent> FindDirectory(const OpenedFile& file) {
  if (file.stamp.size_bytes < kEndBytes) {
    return Bad(file, "too short for a zip archive; found " + std::to_string(file.stamp.size_bytes) +
                         " bytes");
  }
  CONCLAVE_ASSIGN_OR_RETURN(const int64_t end, FindEnd(file));
  CONCLAVE_ASSIGN_OR_RETURN(const std::string record, Read(file, end, kEndBytes));
  if (Short(record, 4) != 0 || Short(record, 6) != 0) {
    return Bad(file, "an archive in several parts; expected one file");
  }
  Extent extent{.num_entries = static_cast<int64_t>(Short(record, 10)),
                .offset = static_cast<int64_t>(Int(record, 16)),
                .size_bytes = static_cast<int64_t>(Int(record, 12))};
  int64_t limit = end;
  CONCLAVE_RETURN_IF_ERROR(ReadEnd64(file, end, record, extent, limit));
  if (extent.num_entries < 0 || extent.num_entries > kEntriesMax || extent.size_bytes < 0 ||
      extent.size_bytes > kDirectoryBytesMax) {
    return Bad(file, "the directory is larger than any model's; expected at most " +
                         std::to_string(kEntriesMax) + " entries, found " +
                         std::to_string(extent.num_entries));
  }
  if (extent.offset < 0 || extent.offset > limit - extent.size_bytes) {
    return Bad(file, "the directory lies outside the file; expected it to end by byte " +
                         std::to_string(limit));
  }
  return extent;
}

// One record of the directory.
struct Record {
  std::string name;
  uint64_t flags = 0, method = 0, packed_bytes = 0, plain_bytes = 0, local_offset = 0;
};

// Sizes and offsets that need 64 bits stand in an extra field, in this order.
bool ReadExtra64(std::string_view extra, Record& record) {
  while (extra.size() >= 4) {
    const uint64_t id = Short(extra, 0);
    const uint64_t size = Short(extra, 2);
    extra.remove_prefix(4);
    if (size > extra.size()) {
      return false;
    }
    std::string_view field = extra.substr(0, size);
    extra.remove_prefix(size);
    if (id != 1) {
      continue;
    }
    for (uint64_t* value : {&record.plain_bytes, &record.packed_bytes, &record.local_offset}) {
      if (*value != kIn64) {
        continue;
      }
      if (field.size() < 8) {
        return false;
      }
      *value = Long(field, 0);
      field.remove_prefix(8);
    }
  }
  return true;
}

// Takes one record off `directory`; nullopt when what is there is none.
std::optional<Record> TakeRecord(std::string_view& directory) {
  if (directory.size() < static_cast<size_t>(kDirectoryEntryBytes) ||
      Int(directory, 0) != kDirectoryMark) {
    return std::nullopt;
  }
  Record record{.name = {},
                .flags = Short(directory, 8),
                .method = Short(directory, 10),
                .packed_bytes = Int(directory, 20),
                .plain_bytes = Int(directory, 24),
                .local_offset = Int(directory, 42)};
  const uint64_t name_bytes = Short(directory, 28);
  const uint64_t extra_bytes = Short(directory, 30);
  const uint64_t comment_bytes = Short(directory, 32);
  directory.remove_prefix(static_cast<size_t>(kDirectoryEntryBytes));
  if (name_bytes + extra_bytes + comment_bytes > directory.size()) {
    return std::nullopt;
  }
  record.name = std::string(directory.substr(0, name_bytes));
  if (!ReadExtra64(directory.substr(name_bytes, extra_bytes), record)) {
    return std::nullopt;
  }
  directory.remove_prefix(name_bytes + extra_bytes + comment_bytes);
  return record;
}

// An entry with the place where its local header begins.
struct Placed {
  ZipEntry entry;
  int64_t begin = 0;
};

absl::StatusOr<Placed> Place(const OpenedFile& file, const Record& record, int64_t limit) {
  const std::string where = "entry " + record.name.substr(0, 128) + ": ";
  if (record.method != 0 || record.packed_bytes != record.plain_bytes) {
    return Bad(file, where + "compressed; expected stored entries, as torch.save writes them");
  }
  if ((record.flags & 1) != 0) {
    return Bad(file, where + "encrypted; expected plain entries");
  }
  if (record.local_offset > static_cast<uint64_t>(limit) ||
      limit - static_cast<int64_t>(record.local_offset) < kZipLocalHeaderBytes) {
    return Bad(file, where + "begins outside the archive");
  }
  Placed placed{.entry = {.name = record.name, .offset = 0, .size_bytes = 0},
                .begin = static_cast<int64_t>(record.local_offset)};
  CONCLAVE_ASSIGN_OR_RETURN(const std::string local,
                            Read(file, placed.begin, kZipLocalHeaderBytes));
  const auto name_bytes = static_cast<int64_t>(Short(local, 26));
  placed.entry.offset =
      placed.begin + kZipLocalHeaderBytes + name_bytes + static_cast<int64_t>(Short(local, 28));
  if (Int(local, 0) != kLocalMark || placed.entry.offset > limit ||
      record.plain_bytes > static_cast<uint64_t>(limit - placed.entry.offset)) {
    return Bad(file, where + "its bytes lie outside the archive; expected " +
                         std::to_string(record.plain_bytes) + " from byte " +
                         std::to_string(placed.entry.offset) + ", found " +
                         std::to_string(std::max<int64_t>(0, limit - placed.entry.offset)));
  }
  placed.entry.size_bytes = static_cast<int64_t>(record.plain_bytes);
  CONCLAVE_ASSIGN_OR_RETURN(const std::string name,
                            Read(file, placed.begin + kZipLocalHeaderBytes, name_bytes));
  if (name != record.name) {
    return Bad(file, where + "the entry itself has another name, " + name.substr(0, 128));
  }
  return placed;
}

absl::Status CheckApart(const OpenedFile& file, std::vector<Placed>& placed) {
  std::sort(placed.begin(), placed.end(),
            [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < placed.size(); ++i) {
    const ZipEntry& before = placed[i - 1].entry;
    if (before.offset + before.size_bytes > placed[i].begin) {
      return Bad(file, "entry " + placed[i].entry.name.substr(0, 128) + ": overlaps entry " +
                           before.name.substr(0, 128));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(const OpenedFile& file) {
  CONCLAVE_ASSIGN_OR_RETURN(const Extent extent, FindDirectory(file));
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes, Read(file, extent.offset, extent.size_bytes));
  std::string_view directory = bytes;
  std::vector<Placed> placed;
  for (int64_t i = 0; i < extent.num_entries; ++i) {
    const std::optional<Record> record = TakeRecord(directory);
    if (!record.has_value()) {
      return Bad(file, "bad record " + std::to_string(i) + " of the directory; expected " +
                           std::to_string(extent.num_entries));
    }
    CONCLAVE_ASSIGN_OR_RETURN(Placed entry, Place(file, *record, extent.offset));
    placed.push_back(std::move(entry));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckApart(file, placed));
  std::vector<ZipEntry> entries;
  entries.reserve(placed.size());
  for (Placed& entry : placed) {
    entries.push_back(std::move(entry.entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const ZipEntry& a, const ZipEntry& b) { return a.name < b.name; });
  for (size_t i = 1; i < entries.size(); ++i) {
    if (entries[i].name == entries[i - 1].name) {
      return Bad(file, "entry " + entries[i].name.substr(0, 128) + ": stands twice");
    }
  }
  return entries;
}

}  // namespace conclave::checkpoint
