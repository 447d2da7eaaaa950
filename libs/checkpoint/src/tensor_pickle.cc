// Opcodes and their meaning: Python's Lib/pickletools.py, protocols 2 to 5; globals: what
// torch.save writes for tensors, parameters and the dictionaries around them.
#include "tensor_pickle.h"

#include <cstring>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "conclave/base/status.h"
#include "pickle_object.h"
#include "safetensors.h"

namespace conclave::checkpoint {
namespace {

// A tensor needs about ten objects, and a model has some thousand tensors.
constexpr size_t kObjectsMax = 1'000'000;
constexpr size_t kStackMax = 1'000'000;
// More than any of the allowed functions takes.
constexpr size_t kArgumentsMax = 8;

using Kind = PickleKind;
using Object = PickleObject;

class Interpreter {
 public:
  explicit Interpreter(std::string_view bytes) : bytes_(bytes) {}

  absl::StatusOr<std::vector<PickledTensor>> Run() {
    bool is_done = false;
    while (status_.ok() && !is_done) {
      start_ = at_;
      const std::optional<uint64_t> opcode = Number(1);
      if (opcode.has_value()) {
        is_done = *opcode == '.';
        if (!is_done) {
          Step(static_cast<uint8_t>(*opcode));
        }
      }
    }
    std::vector<PickledTensor> tensors;
    if (status_.ok()) {
      tensors = Collect();
    }
    if (!status_.ok()) {
      return status_;
    }
    return tensors;
  }

 private:
  // The first error is kept and stops the run; everything after it is harmless.
  void Fail(const std::string& why) {
    if (status_.ok()) {
      status_ = InvalidArgument("pickle_refused", "at byte " + std::to_string(start_) + ": " + why);
    }
  }

  std::optional<std::string_view> Bytes(uint64_t count) {
    if (count > bytes_.size() - at_) {
      Fail("the pickle ends within an instruction (truncated?)");
      return std::nullopt;
    }
    const std::string_view out = bytes_.substr(at_, count);
    at_ += count;
    return out;
  }

  // Little-endian, of 1 to 8 bytes.
  std::optional<uint64_t> Number(size_t num_bytes) {
    const std::optional<std::string_view> raw = Bytes(num_bytes);
    if (!raw.has_value()) {
      return std::nullopt;
    }
    uint64_t number = 0;
    std::memcpy(&number, raw->data(), num_bytes);
    return number;
  }

  std::optional<std::string_view> Line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) {
      Fail("the pickle ends within an instruction (truncated?)");
      return std::nullopt;
    }
    const std::string_view line = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

  void PushId(ObjectId id) {
    if (stack_.size() >= kStackMax) {
      Fail("more values at once than a dictionary of tensors needs");
      return;
    }
    stack_.push_back(id);
  }

  void Push(Object object) {
    if (objects_.size() >= kObjectsMax) {
      Fail("more values than a dictionary of tensors needs");
      return;
    }
    objects_.push_back(std::move(object));
    PushId(static_cast<ObjectId>(objects_.size() - 1));
  }

  void PushKind(Kind kind, int64_t number = 0) {
    Object object;
    object.kind = kind;
    object.number = number;
    Push(std::move(object));
  }

  std::optional<ObjectId> Pop() {
    if (stack_.empty()) {
      Fail("takes a value where there is none");
      return std::nullopt;
    }
    const ObjectId id = stack_.back();
    stack_.pop_back();
    return id;
  }

  // The values above the last mark, which goes with them.
  std::optional<std::vector<ObjectId>> PopToMark() {
    size_t first = stack_.size();
    while (first > 0 && objects_[stack_[first - 1]].kind != Kind::kMark) {
      --first;
    }
    if (first == 0) {
      Fail("takes a list of values where none was begun");
      return std::nullopt;
    }
    std::vector<ObjectId> items(stack_.begin() + static_cast<std::ptrdiff_t>(first), stack_.end());
    stack_.resize(first - 1);
    return items;
  }

  // The object on top, when it is of `kind`.
  Object* Top(Kind kind) {
    if (stack_.empty() || objects_[stack_.back()].kind != kind) {
      Fail("expected " + std::string(NameOf(kind)) + ", found " +
           std::string(stack_.empty() ? "nothing" : NameOf(objects_[stack_.back()].kind)));
      return nullptr;
    }
    return &objects_[stack_.back()];
  }

  void Step(uint8_t opcode);
  bool StepNumber(uint8_t opcode);
  bool StepString(uint8_t opcode);
  bool StepContainer(uint8_t opcode);
  bool StepStack(uint8_t opcode);
  bool StepObject(uint8_t opcode);

  void PushString(std::optional<uint64_t> size) {
    const std::optional<std::string_view> text = size.has_value() ? Bytes(*size) : std::nullopt;
    if (text.has_value()) {
      Object object;
      object.kind = Kind::kString;
      object.text = *text;
      Push(std::move(object));
    }
  }
  void PushTuple(size_t count);
  void PushContainer(Kind kind, std::optional<std::vector<ObjectId>> items);
  void AddTo(Kind kind, std::optional<std::vector<ObjectId>> items);
  void Memoize(std::optional<uint64_t> slot);
  void PushMemo(std::optional<uint64_t> slot);
  void PushGlobal(std::string_view module, std::string_view name);
  void Reduce();
  void Rebuild(const std::vector<ObjectId>& arguments);
  void PushStorage();
  void Build();

  bool Is(ObjectId id, Kind kind) const { return objects_[id].kind == kind; }
  // A tuple of integers from 0 as numbers; fails when it is something else or too long.
  std::vector<int64_t> Naturals(ObjectId id, std::string_view what);
  std::vector<PickledTensor> Collect();
  PickledTensor Describe(ObjectId name, const Object& tensor);

  std::string_view bytes_;
  size_t at_ = 0;
  size_t start_ = 0;  // of the current instruction
  std::vector<Object> objects_;
  std::vector<ObjectId> stack_;
  std::unordered_map<uint64_t, ObjectId> memo_;
  absl::Status status_;
};

// True when the opcode was one of its kind; so for all Step...().
bool Interpreter::StepNumber(uint8_t opcode) {
  switch (opcode) {
    case 'N':
      PushKind(Kind::kNone);
      return true;
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      PushKind(Kind::kBool, opcode == 0x88 ? 1 : 0);
      return true;
    case 'K':  // BININT1
    case 'M':  // BININT2
      if (const auto number = Number(opcode == 'K' ? 1 : 2); number.has_value()) {
        PushKind(Kind::kInt, static_cast<int64_t>(*number));
      }
      return true;
    case 'J':  // BININT: signed
      if (const auto number = Number(4); number.has_value()) {
        PushKind(Kind::kInt, static_cast<int32_t>(static_cast<uint32_t>(*number)));
      }
      return true;
    case 0x8a: {  // LONG1: two's complement of up to 8 bytes
      const auto size = Number(1);
      if (size.has_value() && *size > 8) {
        Fail("an integer of more than 64 bits");
        return true;
      }
      const auto number =
          size.has_value() && *size > 0 ? Number(*size) : std::optional<uint64_t>(0);
      if (size.has_value() && number.has_value()) {
        const uint64_t unused_bits = 64 - 8 * *size;
        PushKind(Kind::kInt,
                 *size == 0 ? 0 : static_cast<int64_t>(*number << unused_bits) >> unused_bits);
      }
      return true;
    }
    case 'G':  // BINFLOAT
      if (Bytes(8).has_value()) {
        PushKind(Kind::kFloat);
      }
      return true;
    default:
      return false;
  }
}

bool Interpreter::StepString(uint8_t opcode) {
  switch (opcode) {
    case 'X':  // BINUNICODE
      PushString(Number(4));
      return true;
    case 0x8c:  // SHORT_BINUNICODE
      PushString(Number(1));
      return true;
    case 0x8d:  // BINUNICODE8
      PushString(Number(8));
      return true;
    default:
      return false;
  }
}

void Interpreter::PushTuple(size_t count) {
  if (stack_.size() < count) {
    Fail("takes a value where there is none");
    return;
  }
  const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
  std::vector<ObjectId> items(first, stack_.end());
  stack_.resize(stack_.size() - count);
  PushContainer(Kind::kTuple, std::move(items));
}

void Interpreter::PushContainer(Kind kind, std::optional<std::vector<ObjectId>> items) {
  if (items.has_value()) {
    Object object;
    object.kind = kind;
    object.items = *std::move(items);
    Push(std::move(object));
  }
}

void Interpreter::AddTo(Kind kind, std::optional<std::vector<ObjectId>> items) {
  Object* object = items.has_value() ? Top(kind) : nullptr;
  if (object == nullptr) {
    return;
  }
  if (kind == Kind::kDict && items->size() % 2 != 0) {
    Fail("a key without a value");
    return;
  }
  object->items.insert(object->items.end(), items->begin(), items->end());
}

bool Interpreter::StepContainer(uint8_t opcode) {
  switch (opcode) {
    case ')':  // EMPTY_TUPLE
      PushTuple(0);
      return true;
    case 0x85:  // TUPLE1
    case 0x86:
    case 0x87:
      PushTuple(opcode - 0x84u);
      return true;
    case 't':
      PushContainer(Kind::kTuple, PopToMark());
      return true;
    case ']':  // EMPTY_LIST
      PushKind(Kind::kList);
      return true;
    case '}':  // EMPTY_DICT
      PushKind(Kind::kDict);
      return true;
    case 'a':  // APPEND
      if (const auto item = Pop(); item.has_value()) {
        AddTo(Kind::kList, std::vector<ObjectId>{*item});
      }
      return true;
    case 'e':  // APPENDS
      AddTo(Kind::kList, PopToMark());
      return true;
    case 's': {  // SETITEM
      const auto value = Pop();
      const auto key = Pop();
      if (value.has_value() && key.has_value()) {
        AddTo(Kind::kDict, std::vector<ObjectId>{*key, *value});
      }
      return true;
    }
    case 'u':  // SETITEMS
      AddTo(Kind::kDict, PopToMark());
      return true;
    default:
      return false;
  }
}

void Interpreter::Memoize(std::optional<uint64_t> slot) {
  if (!slot.has_value()) {
    return;
  }
  if (stack_.empty() || memo_.size() >= kObjectsMax) {
    Fail(stack_.empty() ? "keeps a value where there is none"
                        : "keeps more values than a dictionary of tensors needs");
    return;
  }
  memo_[*slot] = stack_.back();
}

void Interpreter::PushMemo(std::optional<uint64_t> slot) {
  if (!slot.has_value()) {
    return;
  }
  const auto found = memo_.find(*slot);
  if (found == memo_.end()) {
    Fail("asks for value " + std::to_string(*slot) + ", which was never kept");
    return;
  }
  PushId(found->second);
}

bool Interpreter::StepStack(uint8_t opcode) {
  switch (opcode) {
    case 0x80:  // PROTO
      if (const auto version = Number(1); version.has_value() && (*version < 2 || *version > 5)) {
        Fail("protocol " + std::to_string(*version) + "; expected 2 to 5");
      }
      return true;
    case 0x95:  // FRAME: a hint for readers of streams
      Bytes(8);
      return true;
    case '(':
      PushKind(Kind::kMark);
      return true;
    case '0':  // POP
      Pop();
      return true;
    case 'q':  // BINPUT
      Memoize(Number(1));
      return true;
    case 'r':  // LONG_BINPUT
      Memoize(Number(4));
      return true;
    case 0x94:  // MEMOIZE
      Memoize(memo_.size());
      return true;
    case 'h':  // BINGET
      PushMemo(Number(1));
      return true;
    case 'j':  // LONG_BINGET
      PushMemo(Number(4));
      return true;
    default:
      return false;
  }
}

void Interpreter::PushGlobal(std::string_view module, std::string_view name) {
  std::optional<Object> global = AllowedGlobal(module, name);
  if (!global.has_value()) {
    Fail("the pickle names " + Printable(module) + "." + Printable(name) +
         ", which no file of tensors needs; nothing of it was run");
    return;
  }
  Push(*std::move(global));
}

// _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks[, metadata]).
void Interpreter::Rebuild(const std::vector<ObjectId>& arguments) {
  if (arguments.size() < 4 || !Is(arguments[0], Kind::kStorage) || !Is(arguments[1], Kind::kInt) ||
      !Is(arguments[2], Kind::kTuple) || !Is(arguments[3], Kind::kTuple)) {
    Fail("a tensor of unknown form; expected storage, offset, shape, strides");
    return;
  }
  PushContainer(Kind::kTensor, std::vector<ObjectId>(arguments.begin(), arguments.begin() + 4));
}

// The three calls that have a meaning here; none of them is made.
void Interpreter::Reduce() {
  const auto arguments = Pop();
  const auto function = Pop();
  if (!arguments.has_value() || !function.has_value()) {
    return;
  }
  if (!Is(*arguments, Kind::kTuple) || objects_[*arguments].items.size() > kArgumentsMax) {
    Fail("a call whose arguments are not those of a tensor");
    return;
  }
  const std::vector<ObjectId> list = objects_[*arguments].items;
  switch (objects_[*function].kind) {
    case Kind::kOrderedDict:
      if (!list.empty()) {
        Fail("an ordered dictionary made from a value; expected an empty one");
        return;
      }
      PushKind(Kind::kDict);
      return;
    case Kind::kRebuildTensor:
      Rebuild(list);
      return;
    case Kind::kRebuildParameter:
      if (list.empty() || !Is(list[0], Kind::kTensor)) {
        Fail("a parameter that is no tensor");
        return;
      }
      PushId(list[0]);
      return;
    default:
      Fail("a call of " + std::string(NameOf(objects_[*function].kind)));
  }
}

// ('storage', type, key, device, number of elements); the device does not matter here.
void Interpreter::PushStorage() {
  const auto id = Pop();
  if (!id.has_value()) {
    return;
  }
  const std::vector<ObjectId>& items = objects_[*id].items;
  const bool is_good = Is(*id, Kind::kTuple) && items.size() == 5 && Is(items[0], Kind::kString) &&
                       objects_[items[0]].text == "storage" && Is(items[1], Kind::kStorageType) &&
                       Is(items[2], Kind::kString) && Is(items[4], Kind::kInt) &&
                       objects_[items[4]].number >= 0;
  if (!is_good) {
    Fail("a reference of unknown form; expected a tensor's storage");
    return;
  }
  Object storage;
  storage.kind = Kind::kStorage;
  storage.dtype = objects_[items[1]].dtype;
  storage.text = objects_[items[2]].text;
  storage.number = objects_[items[4]].number;
  Push(std::move(storage));
}

// The attributes of a dictionary (PyTorch's _metadata: versions of modules) say nothing of tensors.
void Interpreter::Build() {
  if (Pop().has_value()) {
    Top(Kind::kDict);
  }
}

bool Interpreter::StepObject(uint8_t opcode) {
  switch (opcode) {
    case 'c': {  // GLOBAL
      const auto module = Line();
      const auto name = Line();
      if (module.has_value() && name.has_value()) {
        PushGlobal(*module, *name);
      }
      return true;
    }
    case 0x93: {  // STACK_GLOBAL
      const auto name = Pop();
      const auto module = Pop();
      if (!name.has_value() || !module.has_value()) {
        return true;
      }
      if (!Is(*name, Kind::kString) || !Is(*module, Kind::kString)) {
        Fail("a name that is no string");
        return true;
      }
      PushGlobal(objects_[*module].text, objects_[*name].text);
      return true;
    }
    case 'R':
      Reduce();
      return true;
    case 'Q':  // BINPERSID
      PushStorage();
      return true;
    case 'b':
      Build();
      return true;
    default:
      return false;
  }
}

void Interpreter::Step(uint8_t opcode) {
  if (StepNumber(opcode) || StepString(opcode) || StepContainer(opcode) || StepStack(opcode) ||
      StepObject(opcode)) {
    return;
  }
  constexpr char kDigits[] = "0123456789abcdef";
  Fail(std::string("instruction 0x") + kDigits[opcode >> 4] + kDigits[opcode & 15] +
       ", which no file of tensors needs; nothing of it was run");
}

std::vector<int64_t> Interpreter::Naturals(ObjectId id, std::string_view what) {
  std::vector<int64_t> out;
  const std::vector<ObjectId>& items = objects_[id].items;
  if (items.size() > kDimsMax) {
    Fail(std::string(what) + " of " + std::to_string(items.size()) + " axes; expected at most " +
         std::to_string(kDimsMax));
    return out;
  }
  for (const ObjectId item : items) {
    if (!Is(item, Kind::kInt) || objects_[item].number < 0) {
      Fail(std::string(what) + ": expected whole numbers from 0");
      return out;
    }
    out.push_back(objects_[item].number);
  }
  return out;
}

PickledTensor Interpreter::Describe(ObjectId name, const Object& tensor) {
  const Object& storage = objects_[tensor.items[0]];
  const std::string where = "tensor " + Printable(objects_[name].text) + ": ";
  PickledTensor out{.name = std::string(objects_[name].text),
                    .dtype = storage.dtype,
                    .storage = std::string(storage.text),
                    .storage_elements = storage.number,
                    .first_element = objects_[tensor.items[1]].number,
                    .shape = Naturals(tensor.items[2], where + "shape"),
                    .strides = Naturals(tensor.items[3], where + "strides")};
  if (out.first_element < 0 || out.shape.size() != out.strides.size()) {
    Fail(where + "offset or strides do not fit its shape");
  }
  return out;
}

std::vector<PickledTensor> Interpreter::Collect() {
  std::vector<PickledTensor> tensors;
  if (stack_.size() != 1 || !Is(stack_[0], Kind::kDict)) {
    Fail("expected one dictionary of tensors, found " +
         std::string(stack_.size() == 1 ? NameOf(objects_[stack_[0]].kind) : "several values"));
    return tensors;
  }
  if (at_ != bytes_.size()) {
    Fail("bytes behind the end of the pickle");
    return tensors;
  }
  const std::vector<ObjectId>& items = objects_[stack_[0]].items;
  std::unordered_set<std::string_view> names;
  for (size_t i = 0; i < items.size() && status_.ok(); i += 2) {
    const Object& key = objects_[items[i]];
    const Object& value = objects_[items[i + 1]];
    if (key.kind != Kind::kString || value.kind != Kind::kTensor) {
      Fail("expected names and tensors, found " + std::string(NameOf(value.kind)) + " under " +
           (key.kind == Kind::kString ? "\"" + Printable(key.text) + "\""
                                      : std::string(NameOf(key.kind))));
    } else if (!names.insert(key.text).second) {
      Fail("tensor " + Printable(key.text) + " stands twice");
    } else {
      tensors.push_back(Describe(items[i], value));
    }
  }
  return tensors;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadTensorPickle(std::string_view bytes) {
  return Interpreter(bytes).Run();
}

}  // namespace conclave::checkpoint
