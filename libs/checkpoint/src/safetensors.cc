#include "safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "json.h"

namespace conclave::checkpoint {
namespace {

constexpr int64_t kLengthBytes = 8;
// header > tensor > shape, and one to spare.
constexpr JsonLimits kHeaderLimits{.depth_max = 4, .values_max = 8'000'000};

constexpr std::array<std::pair<std::string_view, DType>, 10> kDTypeNames = {{
    {"F32", DType::kF32},
    {"BF16", DType::kBf16},
    {"F16", DType::kF16},
    {"F64", DType::kF64},
    {"I8", DType::kI8},
    {"U8", DType::kU8},
    {"I16", DType::kI16},
    {"I32", DType::kI32},
    {"I64", DType::kI64},
    {"BOOL", DType::kBool},
}};

// Where an error message points: file and tensor.
struct Place {
  const std::string& file;
  const std::string& tensor;

  absl::Status Bad(std::string_view reason, const std::string& why) const {
    return InvalidArgument(reason, file + ": tensor " + tensor.substr(0, 128) + ": " + why);
  }
};

// A JSON integer in [0, INT64_MAX].
std::optional<int64_t> Natural(const boost::json::value& value) {
  if (!value.is_int64() || value.get_int64() < 0) {
    return std::nullopt;
  }
  return value.get_int64();
}

absl::StatusOr<DType> ReadDType(const Place& place, const boost::json::object& entry) {
  const boost::json::value* word = entry.if_contains("dtype");
  if (word != nullptr && word->is_string()) {
    for (const auto& [name, dtype] : kDTypeNames) {
      if (std::string_view(word->get_string()) == name) {
        return dtype;
      }
    }
  }
  return place.Bad(
      "tensor_dtype",
      "unknown dtype; expected one of F32, BF16, F16, F64, I8, U8, I16, I32, I64, BOOL, found " +
          (word == nullptr ? "none" : Shown(*word)));
}

// Fills shape and size_bytes; the product cannot overflow.
absl::Status ReadShape(const Place& place, const boost::json::object& entry, StoredTensor& tensor) {
  const boost::json::value* shape = entry.if_contains("shape");
  if (shape == nullptr || !shape->is_array()) {
    return place.Bad("tensor_shape", "no shape; expected an array of sizes");
  }
  const boost::json::array& sizes = shape->get_array();
  if (sizes.size() > kDimsMax) {
    return place.Bad("tensor_shape", "too many axes; expected at most " + std::to_string(kDimsMax) +
                                         ", found " + std::to_string(sizes.size()));
  }
  int64_t bytes = static_cast<int64_t>(SizeOf(tensor.dtype));
  for (const boost::json::value& item : sizes) {
    const std::optional<int64_t> size = Natural(item);
    if (!size.has_value()) {
      return place.Bad("tensor_shape",
                       "bad shape; expected whole numbers from 0, found " + Shown(*shape));
    }
    if (__builtin_mul_overflow(bytes, *size, &bytes)) {
      return place.Bad(
          "tensor_shape",
          "the shape overflows; expected less than 2^63 bytes, found " + Shown(*shape));
    }
    tensor.shape.push_back(*size);
  }
  tensor.size_bytes = bytes;
  return absl::OkStatus();
}

// Fills `offset`, relative to the file. `data_start` is where the header ends.
absl::Status ReadOffsets(const Place& place, const boost::json::object& entry, int64_t data_start,
                         int64_t file_bytes, StoredTensor& tensor) {
  const boost::json::value* offsets = entry.if_contains("data_offsets");
  std::optional<int64_t> begin;
  std::optional<int64_t> end;
  if (offsets != nullptr && offsets->is_array() && offsets->get_array().size() == 2) {
    begin = Natural(offsets->get_array()[0]);
    end = Natural(offsets->get_array()[1]);
  }
  if (!begin.has_value() || !end.has_value()) {
    return place.Bad("tensor_offsets", "bad data_offsets; expected [begin, end], found " +
                                           (offsets == nullptr ? "none" : Shown(*offsets)));
  }
  const int64_t data_bytes = file_bytes - data_start;
  if (*end < *begin) {
    return place.Bad("tensor_offsets",
                     "data_offsets end before they begin; found " + Shown(*offsets));
  }
  if (*end > data_bytes) {
    return place.Bad("tensor_offsets", "data_offsets pass the end of the file; expected at most " +
                                           std::to_string(data_bytes) + ", found " +
                                           std::to_string(*end) + " (truncated file?)");
  }
  if (*end - *begin != tensor.size_bytes) {
    return place.Bad("tensor_offsets", "data_offsets do not fit shape and dtype; expected " +
                                           std::to_string(tensor.size_bytes) + " bytes, found " +
                                           std::to_string(*end - *begin));
  }
  tensor.offset = data_start + *begin;
  if (tensor.offset % static_cast<int64_t>(SizeOf(tensor.dtype)) != 0) {
    return place.Bad("tensor_offsets",
                     "not aligned; expected a file offset that is a multiple of " +
                         std::to_string(SizeOf(tensor.dtype)) + ", found " +
                         std::to_string(tensor.offset));
  }
  return absl::OkStatus();
}

// The tensors must tile [data_start, file_bytes): overlaps would alias weights, holes could hide
// anything.
absl::Status CheckTiling(const OpenedFile& file, std::vector<StoredTensor>& tensors,
                         int64_t data_start) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.offset, a.size_bytes) < std::pair(b.offset, b.size_bytes);
  });
  int64_t next = data_start;
  for (const StoredTensor& tensor : tensors) {
    if (tensor.offset != next) {
      return Place{file.name, tensor.name}.Bad(
          "tensor_offsets",
          std::string(tensor.offset < next ? "overlaps the tensor before it" : "a hole before it") +
              "; expected begin " + std::to_string(next - data_start) + ", found " +
              std::to_string(tensor.offset - data_start));
    }
    next += tensor.size_bytes;
  }
  if (next != file.stamp.size_bytes) {
    return InvalidArgument(
        "tensor_offsets",
        file.name + ": bytes behind the last tensor; expected the file to end at " +
            std::to_string(next) + ", found " + std::to_string(file.stamp.size_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ReadHeaderLength(const OpenedFile& file) {
  const int64_t file_bytes = file.stamp.size_bytes;
  if (file_bytes < kLengthBytes) {
    return InvalidArgument("safetensors_truncated",
                           file.name + ": too short; header length needs 8 bytes, found " +
                               std::to_string(file_bytes));
  }
  char raw[kLengthBytes];
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, 0, raw));
  static_assert(std::endian::native == std::endian::little);
  uint64_t length = 0;
  std::memcpy(&length, raw, sizeof(length));
  const int64_t length_max = std::min(kHeaderBytesMax, file_bytes - kLengthBytes);
  if (length > static_cast<uint64_t>(length_max)) {
    return InvalidArgument("safetensors_header_length",
                           file.name + ": bad header length; expected at most " +
                               std::to_string(length_max) + " bytes, found " +
                               std::to_string(length));
  }
  return static_cast<int64_t>(length);
}

absl::StatusOr<boost::json::value> ReadHeaderJson(const OpenedFile& file, int64_t length) {
  std::string text(static_cast<size_t>(length), '\0');
  CONCLAVE_RETURN_IF_ERROR(ReadExactly(file, kLengthBytes, text));
  absl::StatusOr<boost::json::value> header = ParseStrict(text, kHeaderLimits);
  if (!header.ok()) {
    return InvalidArgument("safetensors_header_json",
                           file.name + ": header: " + MessageOf(header.status()));
  }
  if (!header->is_object() || text.front() != '{') {
    return InvalidArgument("safetensors_header_json",
                           file.name + ": header: expected a JSON object, found " + Shown(*header));
  }
  return header;
}

absl::Status CheckMetadata(const OpenedFile& file, const boost::json::value& metadata) {
  bool is_good = metadata.is_object();
  if (is_good) {
    for (const auto& member : metadata.get_object()) {
      is_good = is_good && member.value().is_string();
    }
  }
  return is_good ? absl::OkStatus()
                 : InvalidArgument(
                       "safetensors_header_json",
                       file.name + ": header: __metadata__: expected an object of strings, found " +
                           Shown(metadata));
}

}  // namespace

std::string_view FormatWord(DType dtype) {
  for (const auto& [name, value] : kDTypeNames) {
    if (value == dtype) {
      return name;
    }
  }
  CONCLAVE_CHECK(false);
}

absl::StatusOr<std::vector<StoredTensor>> ReadSafetensorsHeader(const OpenedFile& file) {
  CONCLAVE_ASSIGN_OR_RETURN(const int64_t length, ReadHeaderLength(file));
  CONCLAVE_ASSIGN_OR_RETURN(const boost::json::value header, ReadHeaderJson(file, length));
  const int64_t data_start = kLengthBytes + length;
  std::vector<StoredTensor> tensors;
  tensors.reserve(header.get_object().size());
  for (const auto& member : header.get_object()) {
    if (member.key() == "__metadata__") {
      CONCLAVE_RETURN_IF_ERROR(CheckMetadata(file, member.value()));
      continue;
    }
    StoredTensor& tensor = tensors.emplace_back();
    tensor.name = std::string(std::string_view(member.key()));
    const Place place{file.name, tensor.name};
    if (!member.value().is_object()) {
      return place.Bad("safetensors_header_json",
                       "expected an object, found " + Shown(member.value()));
    }
    const boost::json::object& entry = member.value().get_object();
    CONCLAVE_ASSIGN_OR_RETURN(tensor.dtype, ReadDType(place, entry));
    CONCLAVE_RETURN_IF_ERROR(ReadShape(place, entry, tensor));
    CONCLAVE_RETURN_IF_ERROR(ReadOffsets(place, entry, data_start, file.stamp.size_bytes, tensor));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckTiling(file, tensors, data_start));
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  return tensors;
}

}  // namespace conclave::checkpoint
