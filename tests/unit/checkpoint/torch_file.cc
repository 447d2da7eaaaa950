#include "torch_file.h"

#include <cstring>

#include "conclave/base/check.h"

namespace conclave::checkpoint {
namespace {

template <typename Word>
void Put(std::string& out, Word word) {
  const size_t at = out.size();
  out.resize(at + sizeof(word));
  std::memcpy(out.data() + at, &word, sizeof(word));
}

std::string Directory(const ZipPart& part, uint64_t begin, bool is_64) {
  const auto packed = static_cast<uint64_t>(
      part.packed_bytes < 0 ? static_cast<int64_t>(part.bytes.size()) : part.packed_bytes);
  const auto plain = static_cast<uint64_t>(
      part.plain_bytes < 0 ? static_cast<int64_t>(part.bytes.size()) : part.plain_bytes);
  const auto in32 = [is_64](uint64_t value) {
    return is_64 ? 0xffffffffu : static_cast<uint32_t>(value);
  };
  std::string out;
  Put(out, uint32_t{0x02014b50});
  Put(out, uint32_t{0});  // versions
  Put(out, part.flags);
  Put(out, part.method);
  Put(out, uint64_t{0});  // time, date, checksum
  Put(out, in32(packed));
  Put(out, in32(plain));
  Put(out, static_cast<uint16_t>(part.name.size()));
  Put(out, static_cast<uint16_t>(is_64 ? 28 : 0));
  out.append(10, '\0');  // comment, disk, attributes
  Put(out, in32(begin));
  out += part.name;
  if (is_64) {
    Put(out, uint16_t{1});
    Put(out, uint16_t{24});
    Put(out, plain);
    Put(out, packed);
    Put(out, begin);
  }
  return out;
}

std::string End(size_t count, size_t begin, size_t size, bool is_64) {
  std::string out;
  if (is_64) {
    Put(out, uint32_t{0x06064b50});
    Put(out, uint64_t{44});
    Put(out, uint32_t{0});
    Put(out, uint64_t{0});
    Put(out, uint64_t{count});
    Put(out, uint64_t{count});
    Put(out, uint64_t{size});
    Put(out, uint64_t{begin});
    Put(out, uint32_t{0x07064b50});
    Put(out, uint32_t{0});
    Put(out, uint64_t{begin + size});
    Put(out, uint32_t{1});
  }
  Put(out, uint32_t{0x06054b50});
  Put(out, uint32_t{0});
  Put(out, static_cast<uint16_t>(is_64 ? 0xffff : count));
  Put(out, static_cast<uint16_t>(is_64 ? 0xffff : count));
  Put(out, is_64 ? 0xffffffffu : static_cast<uint32_t>(size));
  Put(out, is_64 ? 0xffffffffu : static_cast<uint32_t>(begin));
  Put(out, uint16_t{0});
  return out;
}

std::string BytesOf(const TensorValues& tensor) {
  std::string out;
  for (const float value : tensor.values) {
    switch (tensor.spec.dtype) {
      case DType::kF32:
        Put(out, value);
        break;
      case DType::kBf16:
        Put(out, ToBf16(value).bits);
        break;
      case DType::kF16:
        Put(out, FloatToHalf(value));
        break;
      case DType::kF64:
        Put(out, static_cast<double>(value));
        break;
      default:
        CONCLAVE_CHECK(false);
    }
  }
  return out;
}

std::string_view StorageType(DType dtype) {
  return dtype == DType::kF32    ? "FloatStorage"
         : dtype == DType::kBf16 ? "BFloat16Storage"
         : dtype == DType::kF16  ? "HalfStorage"
                                 : "DoubleStorage";
}

}  // namespace

std::string MakeZip(const std::vector<ZipPart>& parts, bool is_64) {
  std::string out;
  std::string directory;
  for (const ZipPart& part : parts) {
    const std::string& name = part.local_name.empty() ? part.name : part.local_name;
    directory += Directory(
        part, part.begins_at < 0 ? out.size() : static_cast<uint64_t>(part.begins_at), is_64);
    Put(out, uint32_t{0x04034b50});
    out.append(22, '\0');  // versions, times and sizes, which only the directory has
    Put(out, static_cast<uint16_t>(name.size()));
    Put(out, static_cast<uint16_t>(part.padding));
    out += name + std::string(part.padding, 'Z') + part.bytes;
  }
  const size_t begin = out.size();
  return out + directory + End(parts.size(), begin, directory.size(), is_64);
}

namespace pickle {

std::string String(std::string_view text) {
  std::string out = "X";
  Put(out, static_cast<uint32_t>(text.size()));
  return out + std::string(text);
}

std::string Int(int64_t number) {
  std::string out = "\x8a\x08";
  Put(out, number);
  return out;
}

std::string Tuple(std::span<const int64_t> numbers) {
  std::string out = "(";
  for (const int64_t number : numbers) {
    out += Int(number);
  }
  return out + "t";
}

std::string Global(std::string_view module, std::string_view name) {
  return "c" + std::string(module) + "\n" + std::string(name) + "\n";
}

std::string Storage(std::string_view type, std::string_view key, int64_t num) {
  return "(" + String("storage") + Global("torch", type) + String(key) + String("cpu") + Int(num) +
         "tQ";
}

std::string Tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                   const std::vector<int64_t>& strides) {
  return Global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + Int(offset) + Tuple(shape) +
         Tuple(strides) + "\x89" + Global("collections", "OrderedDict") + ")RtR";
}

std::string Dict(const std::string& items) { return "\x80\x02}(" + items + "u."; }

}  // namespace pickle

std::vector<ZipPart> TorchParts(const std::vector<TensorValues>& tensors) {
  std::vector<ZipPart> parts(1);
  std::string items;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorSpec& spec = tensors[i].spec;
    std::vector<int64_t> strides(spec.shape.size(), 1);
    for (size_t axis = strides.size(); axis-- > 1;) {
      strides[axis - 1] = strides[axis] * spec.shape[axis];
    }
    items += pickle::String(spec.name);
    items += pickle::Tensor(
        pickle::Storage(StorageType(spec.dtype), std::to_string(i), spec.num_elements()), 0,
        spec.shape, strides);
    parts.push_back({.name = "archive/data/" + std::to_string(i), .bytes = BytesOf(tensors[i])});
  }
  parts[0] = {.name = "archive/data.pkl", .bytes = pickle::Dict(items)};
  parts.push_back({.name = "archive/version", .bytes = "3\n"});
  return parts;
}

std::string TorchFile(const std::vector<TensorValues>& tensors) {
  return MakeZip(TorchParts(tensors));
}

}  // namespace conclave::checkpoint
