#include "conclave/router_service/router_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::router_service {
namespace {

// Counts and lengths beyond these are no state of ours; they keep a wrong count from taking memory.
constexpr uint32_t kItemsMax = 1 << 20;
constexpr uint32_t kTextMax = 4096;

class Writer {
 public:
  void U32(uint32_t value) { Little(value, 4); }
  void U64(uint64_t value) { Little(value, 8); }
  void I32(int32_t value) { U32(static_cast<uint32_t>(value)); }
  void I64(int64_t value) { U64(static_cast<uint64_t>(value)); }
  void F64(double value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    U64(bits);
  }
  void Text(const std::string& text) {
    U32(static_cast<uint32_t>(text.size()));
    out_ += text;
  }
  void Count(size_t count) { U32(static_cast<uint32_t>(count)); }
  void Hash(const WeightHash& hash) { out_.append(hash.begin(), hash.end()); }
  void Unit(ExpertUnit unit) {
    I32(unit.layer.value());
    I32(unit.expert.value());
  }
  void Numeric(const NumericMode& numeric) {
    Text(numeric.dtype);
    Text(numeric.isa);
    U32(numeric.kernel_revision);
  }
  void Model(const ModelIdentity& model) {
    Text(model.manifest_hash);
    I32(model.row_width);
    I32(model.top_k);
  }
  std::string Take() { return std::move(out_); }

 private:
  void Little(uint64_t value, size_t num_bytes) {
    for (size_t i = 0; i < num_bytes; ++i) {
      out_.push_back(static_cast<char>(value >> (8 * i) & 0xff));
    }
  }
  std::string out_;
};

// Every read of a value that is not there gives zeros and makes is_good false; callers look once,
// at the end and before loops.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  uint32_t U32() { return static_cast<uint32_t>(Little(4)); }
  uint64_t U64() { return Little(8); }
  int32_t I32() { return static_cast<int32_t>(U32()); }
  int64_t I64() { return static_cast<int64_t>(U64()); }
  double F64() {
    const uint64_t bits = U64();
    double value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  std::string Text() {
    const uint32_t length = U32();
    Require(length <= kTextMax && length <= bytes_.size());
    if (!is_good_) {
      return {};
    }
    std::string text(bytes_.substr(0, length));
    bytes_.remove_prefix(length);
    return text;
  }
  uint32_t Count() {
    const uint32_t count = U32();
    Require(count <= kItemsMax && count <= bytes_.size());
    return is_good_ ? count : 0;
  }
  WeightHash Hash() {
    WeightHash hash{};
    Require(bytes_.size() >= hash.size());
    if (is_good_) {
      std::memcpy(hash.data(), bytes_.data(), hash.size());
      bytes_.remove_prefix(hash.size());
    }
    return hash;
  }
  ExpertUnit Unit() {
    const LayerId layer(I32());
    const ExpertId expert(I32());
    Require(layer.value() >= 0 && expert.value() >= 0);
    return {layer, expert};
  }
  NumericMode Numeric() {
    NumericMode numeric;
    numeric.dtype = Text();
    numeric.isa = Text();
    numeric.kernel_revision = U32();
    return numeric;
  }
  ModelIdentity Model() {
    ModelIdentity model;
    model.manifest_hash = Text();
    model.row_width = I32();
    model.top_k = I32();
    return model;
  }
  void Require(bool condition) { is_good_ = is_good_ && condition; }
  bool is_good() const { return is_good_; }
  bool is_at_end() const { return bytes_.empty(); }

 private:
  uint64_t Little(size_t num_bytes) {
    Require(bytes_.size() >= num_bytes);
    if (!is_good_) {
      return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < num_bytes; ++i) {
      value |= uint64_t{static_cast<uint8_t>(bytes_[i])} << (8 * i);
    }
    bytes_.remove_prefix(num_bytes);
    return value;
  }
  std::string_view bytes_;
  bool is_good_ = true;
};

void WriteMember(Writer& out, const WorkerRegistration& member) {
  out.Text(member.name);
  out.U64(member.incarnation);
  out.Text(member.data_address);
  out.Text(member.host_id);
  out.Count(member.channels.size());
  for (const std::string& channel : member.channels) {
    out.Text(channel);
  }
  out.Numeric(member.numeric);
  out.I64(member.memory_bytes);
  out.F64(member.speed);
  out.I64(member.expert_bytes);
}

WorkerRegistration ReadMember(Reader& in, const ModelIdentity& model) {
  WorkerRegistration member;
  member.name = in.Text();
  member.incarnation = in.U64();
  member.data_address = in.Text();
  member.host_id = in.Text();
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    member.channels.push_back(in.Text());
  }
  member.numeric = in.Numeric();
  member.memory_bytes = in.I64();
  member.speed = in.F64();
  member.expert_bytes = in.I64();
  member.model = model;
  in.Require(member.memory_bytes >= 0 && member.expert_bytes > 0 && std::isfinite(member.speed) &&
             member.speed > 0);
  return member;
}

void ReadLayers(Reader& in, RouterState& state) {
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    MoeLayer layer;
    layer.layer = LayerId(in.I32());
    layer.num_experts = in.I32();
    in.Require(layer.layer.value() >= 0 && layer.num_experts >= 1 && layer.num_experts <= 65536 &&
               (state.layers.empty() || state.layers.back().layer < layer.layer));
    state.layers.push_back(layer);
  }
}

void ReadNames(Reader& in, RouterState& state) {
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const std::string name = in.Text();
    KnownName known;
    known.id = WorkerId(in.I32());
    known.incarnation = in.U64();
    known.key = in.U64();
    const uint32_t is_draining = in.U32();
    known.is_draining = is_draining == 1;
    in.Require(is_draining <= 1 && known.id.value() >= 0 &&
               known.id.value() < state.next_worker_id && !name.empty());
    in.Require(state.names.emplace(name, known).second);
  }
}

void ReadPlacement(Reader& in, RouterState& state) {
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = in.Unit();
    std::vector<WorkerId> workers;
    for (uint32_t w = in.Count(); w > 0 && in.is_good(); --w) {
      const WorkerId worker(in.I32());
      in.Require(worker.value() >= 0 && worker.value() < state.next_worker_id &&
                 std::find(workers.begin(), workers.end(), worker) == workers.end());
      workers.push_back(worker);
    }
    in.Require(state.placement.emplace(unit, std::move(workers)).second);
  }
}

void ReadWeights(Reader& in, RouterState& state) {
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = in.Unit();
    in.Require(state.weight_hashes.emplace(unit, in.Hash()).second);
  }
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    CanaryKey key;
    key.weight_hash = in.Hash();
    key.dtype = in.Text();
    key.isa = in.Text();
    in.Require(state.canaries.emplace(key, in.U32()).second);
  }
}

void ReadWishes(Reader& in, RouterState& state) {
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = in.Unit();
    state.pins.emplace_back(unit, in.Text());
  }
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = in.Unit();
    const int32_t replicas = in.I32();
    in.Require(replicas >= 1 && state.replicas.emplace(unit, replicas).second);
  }
}

// What no single field shows.
bool IsConsistent(const RouterState& state) {
  std::vector<WorkerId> ids;
  for (const auto& [name, known] : state.names) {
    ids.push_back(known.id);
  }
  std::sort(ids.begin(), ids.end());
  if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) {
    return false;
  }
  return std::all_of(state.placement.begin(), state.placement.end(), [&](const auto& entry) {
    return std::all_of(entry.second.begin(), entry.second.end(),
                       [&](WorkerId id) { return state.members.find(id) != state.members.end(); });
  });
}

}  // namespace

std::string Serialize(const RouterState& state) {
  Writer out;
  out.U32(state.term);
  out.U32(state.epoch_n);
  out.I32(state.next_worker_id);
  out.Model(state.model);
  out.Numeric(state.numeric);
  out.Count(state.layers.size());
  for (const MoeLayer& layer : state.layers) {
    out.I32(layer.layer.value());
    out.I32(layer.num_experts);
  }
  out.Count(state.names.size());
  for (const auto& [name, known] : state.names) {
    out.Text(name);
    out.I32(known.id.value());
    out.U64(known.incarnation);
    out.U64(known.key);
    out.U32(known.is_draining ? 1 : 0);
  }
  out.Count(state.members.size());
  for (const auto& [id, member] : state.members) {
    out.I32(id.value());
    WriteMember(out, member);
  }
  out.Count(state.placement.size());
  for (const auto& [unit, workers] : state.placement) {
    out.Unit(unit);
    out.Count(workers.size());
    for (const WorkerId worker : workers) {
      out.I32(worker.value());
    }
  }
  out.Count(state.weight_hashes.size());
  for (const auto& [unit, hash] : state.weight_hashes) {
    out.Unit(unit);
    out.Hash(hash);
  }
  out.Count(state.canaries.size());
  for (const auto& [key, checksum] : state.canaries) {
    out.Hash(key.weight_hash);
    out.Text(key.dtype);
    out.Text(key.isa);
    out.U32(checksum);
  }
  out.Count(state.pins.size());
  for (const auto& [unit, worker] : state.pins) {
    out.Unit(unit);
    out.Text(worker);
  }
  out.Count(state.replicas.size());
  for (const auto& [unit, replicas] : state.replicas) {
    out.Unit(unit);
    out.I32(replicas);
  }
  return out.Take();
}

absl::StatusOr<RouterState> ParseRouterState(std::string_view blob) {
  Reader in(blob);
  RouterState state;
  state.term = in.U32();
  state.epoch_n = in.U32();
  state.next_worker_id = in.I32();
  in.Require(state.next_worker_id >= 0);
  state.model = in.Model();
  state.numeric = in.Numeric();
  ReadLayers(in, state);
  ReadNames(in, state);
  for (uint32_t i = in.Count(); i > 0 && in.is_good(); --i) {
    const WorkerId id(in.I32());
    WorkerRegistration member = ReadMember(in, state.model);
    const auto known = state.names.find(member.name);
    in.Require(known != state.names.end() && known->second.id == id);
    in.Require(state.members.emplace(id, std::move(member)).second);
  }
  ReadPlacement(in, state);
  ReadWeights(in, state);
  ReadWishes(in, state);
  if (!in.is_good() || !in.is_at_end() || !IsConsistent(state)) {
    return InvalidArgument("state_corrupt", "expected the state of a router, found " +
                                                std::to_string(blob.size()) +
                                                " bytes that are none");
  }
  return state;
}

}  // namespace conclave::router_service
