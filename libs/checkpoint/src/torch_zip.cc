#include "torch_zip.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "conclave/base/status.h"
#include "tensor_pickle.h"
#include "zip_directory.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kPickleEntry = "data.pkl";
constexpr char kHowToConvert[] =
    "convert with torch.save(torch.load(FILE, map_location=\"cpu\", weights_only=True), FILE) or "
    "save_pretrained(..., safe_serialization=True)";

absl::Status BadTensor(const OpenedFile& file, const std::string& name, std::string_view reason,
                       const std::string& why) {
  return InvalidArgument(reason, file.name + ": tensor " + name.substr(0, 128) + ": " + why);
}

// Archives begin with an entry; a bare pickle begins with its protocol.
absl::Status CheckMagic(const OpenedFile& file) {
  std::string magic(4, '\0');
  if (file.stamp.size_bytes >= static_cast<int64_t>(magic.size())) {
    CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, 0, magic));
  }
  if (magic == "PK\x03\x04") {
    return absl::OkStatus();
  }
  if (magic[0] == '\x80') {
    return InvalidArgument("pickle_refused",
                           file.name +
                               ": a bare pickle, the format of PyTorch before 1.6; expected a zip "
                               "archive of torch.save or safetensors, " +
                               kHowToConvert);
  }
  return InvalidArgument("torch_zip",
                         file.name + ": no zip archive; expected one of torch.save, found " +
                             std::to_string(file.stamp.size_bytes) + " bytes of something else");
}

const ZipEntry* FindEntry(const std::vector<ZipEntry>& entries, const std::string& name) {
  const auto found =
      std::lower_bound(entries.begin(), entries.end(), name,
                       [](const ZipEntry& entry, const std::string& n) { return entry.name < n; });
  return found != entries.end() && found->name == name ? &*found : nullptr;
}

// "archive/" of "archive/data.pkl": the one folder that everything lies in.
absl::StatusOr<std::string> FindRoot(const OpenedFile& file, const std::vector<ZipEntry>& entries) {
  std::string root;
  for (const ZipEntry& entry : entries) {
    const size_t slash = entry.name.find('/');
    if (slash == std::string::npos ||
        std::string_view(entry.name).substr(slash + 1) != kPickleEntry) {
      continue;
    }
    if (!root.empty()) {
      return InvalidArgument(
          "torch_zip", file.name + ": two entries " + std::string(kPickleEntry) + "; expected one");
    }
    root = entry.name.substr(0, slash + 1);
  }
  if (root.empty()) {
    return InvalidArgument("torch_zip", file.name + ": no entry " + std::string(kPickleEntry) +
                                            "; expected an archive of torch.save");
  }
  return root;
}

absl::StatusOr<std::vector<PickledTensor>> ReadPickle(const OpenedFile& file,
                                                      const ZipEntry& entry) {
  const std::string where = file.name + ": " + std::string(kPickleEntry) + ": ";
  if (entry.size_bytes > kPickleBytesMax) {
    return InvalidArgument(
        "pickle_refused", where + "too large; expected at most " + std::to_string(kPickleBytesMax) +
                              " bytes, found " + std::to_string(entry.size_bytes));
  }
  std::string bytes(static_cast<size_t>(entry.size_bytes), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, entry.offset, bytes));
  absl::StatusOr<std::vector<PickledTensor>> tensors = ReadTensorPickle(bytes);
  if (!tensors.ok()) {
    return InvalidArgument(ReasonOf(tensors.status()),
                           where + MessageOf(tensors.status()) + "; " + kHowToConvert);
  }
  return tensors;
}

absl::Status CheckByteOrder(const OpenedFile& file, const ZipEntry* entry) {
  constexpr std::string_view kLittle = "little";
  if (entry == nullptr) {
    return absl::OkStatus();  // Before PyTorch 2.1, which wrote the machine's own order.
  }
  std::string word(static_cast<size_t>(std::min<int64_t>(entry->size_bytes, 16)), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, entry->offset, word));
  return word == kLittle
             ? absl::OkStatus()
             : InvalidArgument("torch_zip", file.name + ": byteorder: expected \"little\"");
}

// Elements from the first to the last of a view, both counted; 0 for a view without elements, -1 on
// overflow.
int64_t SpanOf(const PickledTensor& tensor) {
  int64_t span = 1;
  for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
    int64_t step = 0;
    if (tensor.shape[axis] == 0) {
      return 0;
    }
    if (__builtin_mul_overflow(tensor.shape[axis] - 1, tensor.strides[axis], &step) ||
        __builtin_add_overflow(span, step, &span)) {
      return -1;
    }
  }
  return span;
}

// Whether the elements follow each other in row-major order without gaps.
bool IsContiguous(const PickledTensor& tensor) {
  int64_t expected = 1;
  for (size_t axis = tensor.shape.size(); axis-- > 0;) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) {
      return false;
    }
    expected *= tensor.shape[axis];
  }
  return true;
}

absl::StatusOr<StoredTensor> Place(const OpenedFile& file, const PickledTensor& tensor,
                                   const ZipEntry* entry) {
  const std::string& name = tensor.name;
  const auto element = static_cast<int64_t>(SizeOf(tensor.dtype));
  if (entry == nullptr) {
    return BadTensor(file, name, "torch_zip",
                     "its storage \"" + tensor.storage.substr(0, 64) + "\" is not in the archive");
  }
  int64_t storage_bytes = 0;
  if (__builtin_mul_overflow(tensor.storage_elements, element, &storage_bytes) ||
      storage_bytes != entry->size_bytes) {
    return BadTensor(file, name, "tensor_offsets",
                     "its storage is not as long as it says; expected " +
                         std::to_string(tensor.storage_elements) + " elements of " +
                         std::to_string(element) + " bytes, found " +
                         std::to_string(entry->size_bytes) + " bytes");
  }
  StoredTensor stored{.name = name, .dtype = tensor.dtype, .shape = tensor.shape, .strides = {}};
  int64_t bytes = element;
  for (const int64_t size : tensor.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return BadTensor(file, name, "tensor_shape",
                       "the shape overflows; expected less than 2^63 bytes");
    }
  }
  const int64_t span = SpanOf(tensor);
  int64_t end = 0;
  if (span < 0 || __builtin_add_overflow(tensor.first_element, span, &end) ||
      end > tensor.storage_elements) {
    return BadTensor(file, name, "tensor_offsets",
                     "it passes the end of its storage of " +
                         std::to_string(tensor.storage_elements) + " elements");
  }
  stored.size_bytes = bytes;
  stored.offset = entry->offset + tensor.first_element * element;
  if (bytes > 0 && !IsContiguous(tensor)) {
    // A view that repeats elements could ask for any amount of memory.
    if (bytes > span * element) {
      return BadTensor(file, name, "tensor_offsets",
                       "its strides repeat elements; save it with .contiguous()");
    }
    stored.strides = tensor.strides;
    stored.span_bytes = span * element;
  } else {
    stored.span_bytes = bytes;
  }
  return stored;
}

// Bytes may be shared by ties alone.
absl::Status CheckShared(const OpenedFile& file, std::vector<StoredTensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.span_bytes) < std::pair(b.offset, b.span_bytes);
  });
  const StoredTensor* before = nullptr;  // the last one with bytes
  for (const StoredTensor& tensor : tensors) {
    if (tensor.span_bytes == 0) {
      continue;
    }
    const bool is_same = before != nullptr && before->offset == tensor.offset &&
                         before->span_bytes == tensor.span_bytes && before->dtype == tensor.dtype;
    if (before != nullptr && !is_same && before->offset + before->span_bytes > tensor.offset) {
      return BadTensor(file, tensor.name, "tensor_offsets",
                       "overlaps tensor " + before->name.substr(0, 128) +
                           "; expected tensors apart, or the same bytes");
    }
    before = &tensor;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<StoredTensor>> ReadTorchZip(const OpenedFile& file) {
  CONCLAVE_RETURN_IF_ERROR(CheckMagic(file));
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<ZipEntry> entries, ReadZipDirectory(file));
  CONCLAVE_ASSIGN_OR_RETURN(const std::string root, FindRoot(file, entries));
  CONCLAVE_RETURN_IF_ERROR(CheckByteOrder(file, FindEntry(entries, root + "byteorder")));
  CONCLAVE_ASSIGN_OR_RETURN(
      const std::vector<PickledTensor> pickled,
      ReadPickle(file, *FindEntry(entries, root + std::string(kPickleEntry))));
  std::vector<StoredTensor> tensors;
  for (const PickledTensor& tensor : pickled) {
    const ZipEntry* entry = FindEntry(entries, root + "data/" + tensor.storage);
    CONCLAVE_ASSIGN_OR_RETURN(StoredTensor stored, Place(file, tensor, entry));
    tensors.push_back(std::move(stored));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckShared(file, tensors));
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  return tensors;
}

}  // namespace conclave::checkpoint
