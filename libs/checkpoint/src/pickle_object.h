// Values of a pickle, and the few globals that a file of tensors may name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

enum class PickleKind : uint8_t {
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kTuple,
  kList,
  kDict,
  kMark,
  kOrderedDict,       // the global
  kRebuildTensor,     // the global
  kRebuildParameter,  // the global
  kStorageType,       // a global: torch.FloatStorage and so on
  kStorage,
  kTensor,
};

// "a tuple", for messages.
std::string_view NameOf(PickleKind kind);

using ObjectId = uint32_t;

// One value. Objects refer to each other by number, so that no nesting, however deep, makes
// anything here recurse.
struct PickleObject {
  PickleKind kind = PickleKind::kNone;
  DType dtype = DType::kF32;  // kStorageType, kStorage
  int64_t number = 0;         // kInt, kBool
  std::string_view text;      // kString, kStorage: its key; points into the pickle
  // kTuple, kList: members. kDict: key, value, key, value... kTensor: storage, offset, shape,
  // strides.
  std::vector<ObjectId> items;
};

// The object that stands for a global; nullopt for every one that is not on the list.
std::optional<PickleObject> AllowedGlobal(std::string_view module, std::string_view name);

// At most 128 bytes of `text`, which comes from a file, fit to be shown on a terminal.
std::string Printable(std::string_view text);

}  // namespace conclave::checkpoint
