#include "pickle_object.h"

#include <array>
#include <utility>

namespace conclave::checkpoint {

std::string_view NameOf(PickleKind kind) {
  constexpr std::array<std::string_view, 15> kNames = {
      "None",       "a bool",     "an integer",   "a float",   "a string",
      "a tuple",    "a list",     "a dictionary", "a mark",    "a function",
      "a function", "a function", "a type",       "a storage", "a tensor"};
  return kNames[static_cast<size_t>(kind)];
}

namespace {

constexpr std::array<std::pair<std::string_view, DType>, 10> kStorageTypes = {{
    {"FloatStorage", DType::kF32},
    {"BFloat16Storage", DType::kBf16},
    {"HalfStorage", DType::kF16},
    {"DoubleStorage", DType::kF64},
    {"CharStorage", DType::kI8},
    {"ByteStorage", DType::kU8},
    {"ShortStorage", DType::kI16},
    {"IntStorage", DType::kI32},
    {"LongStorage", DType::kI64},
    {"BoolStorage", DType::kBool},
}};

}  // namespace

std::optional<PickleObject> AllowedGlobal(std::string_view module, std::string_view name) {
  PickleObject object;
  if (module == "collections" && name == "OrderedDict") {
    object.kind = PickleKind::kOrderedDict;
    return object;
  }
  if (module == "torch._utils" && name == "_rebuild_tensor_v2") {
    object.kind = PickleKind::kRebuildTensor;
    return object;
  }
  if (module == "torch._utils" && name == "_rebuild_parameter") {
    object.kind = PickleKind::kRebuildParameter;
    return object;
  }
  for (const auto& [type, dtype] : kStorageTypes) {
    if (module == "torch" && name == type) {
      object.kind = PickleKind::kStorageType;
      object.dtype = dtype;
      return object;
    }
  }
  return std::nullopt;
}

std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 128)) {
    out += c >= ' ' && c < '\x7f' ? c : '?';
  }
  return out;
}

}  // namespace conclave::checkpoint
