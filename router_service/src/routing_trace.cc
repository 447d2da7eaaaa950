#include "conclave/router_service/routing_trace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <span>

#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"

namespace conclave::router_service {
namespace {

constexpr std::string_view kMagic = "CNCLVRT1";
constexpr size_t kFrameHeadBytes = 5;
constexpr size_t kFrameTailBytes = 4;
constexpr size_t kBodyBytesMax = size_t{64} << 20;
constexpr uint64_t kLayersMax = 4096;
constexpr uint64_t kExpertsMax = 65'536;
constexpr uint64_t kWorkersMax = 1024;
constexpr uint64_t kPinsMax = 65'536;
constexpr uint64_t kTextMax = 256;
constexpr uint64_t kBytesMax = uint64_t{1} << 50;
// As in load reports: sums over a recording stay exact.
constexpr uint64_t kRowsMax = uint64_t{1} << 40;
constexpr uint64_t kWindowUsMax = 86'400'000'000;
constexpr uint64_t kTimeUsMax = uint64_t{1} << 62;
// Of a whole recording.
constexpr int64_t kTotalUsMax = int64_t{31} * 86'400'000'000;
constexpr uint64_t kWorkerIdMax = 1 << 30;
constexpr double kSpeedMax = 1e9;

enum FrameType : uint8_t { kHead = 1, kWindow, kWorkers, kPlacement, kEnd };

uint32_t Checksum(std::string_view bytes) {
  return Crc32c(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

class Writer {
 public:
  explicit Writer(FrameType type) { out_.push_back(static_cast<char>(type)); }

  void Number(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      out_.push_back(static_cast<char>(value | 0x80));
    }
    out_.push_back(static_cast<char>(value));
  }
  template <typename T>
  void Signed(T value) {
    Number(static_cast<uint64_t>(value));  // never below 0 where this is called
  }
  void Text(const std::string& text) {
    Number(text.size());
    out_ += text;
  }
  void F64(double value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    Little(out_, bits, 8);
  }
  std::string Frame() const {
    std::string frame;
    frame.reserve(out_.size() + kFrameHeadBytes + kFrameTailBytes);
    Little(frame, out_.size() - 1, 4);
    frame += out_;
    Little(frame, Checksum(out_), 4);
    return frame;
  }

 private:
  static void Little(std::string& out, uint64_t value, int num_bytes) {
    for (int i = 0; i < num_bytes; ++i) {
      out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
    }
  }
  std::string out_;  // type and body
};

uint32_t ReadU32(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  }
  return value;
}

bool IsPlain(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

// A read that fails gives zeros and makes is_good false; callers look at the end and before loops.
class Body {
 public:
  explicit Body(std::string_view bytes) : bytes_(bytes) {}

  uint64_t Number(uint64_t max) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && is_good_; shift += 7) {
      Require(!bytes_.empty());
      if (!is_good_) {
        break;
      }
      const auto byte = static_cast<uint8_t>(bytes_.front());
      bytes_.remove_prefix(1);
      // The tenth byte has one bit left.
      Require(shift < 63 || byte <= 1);
      value |= uint64_t{byte & 0x7fU} << shift;
      if ((byte & 0x80) == 0) {
        Require(value <= max && (byte != 0 || shift == 0));  // in its shortest form
        return is_good_ ? value : 0;
      }
    }
    is_good_ = false;
    return 0;
  }
  int32_t I32() { return static_cast<int32_t>(Number(INT32_MAX)); }
  // A number of things that take at least one byte each.
  uint64_t Count(uint64_t max) {
    const uint64_t count = Number(max);
    Require(count <= bytes_.size());
    return is_good_ ? count : 0;
  }
  std::string Text() {
    const uint64_t length = Count(kTextMax);
    std::string text(bytes_.substr(0, is_good_ ? length : 0));
    bytes_.remove_prefix(text.size());
    Require(IsPlain(text));
    return text;
  }
  double F64() {
    Require(bytes_.size() >= 8);
    if (!is_good_) {
      return 0;
    }
    uint64_t bits = uint64_t{ReadU32(bytes_)} | uint64_t{ReadU32(bytes_.substr(4))} << 32;
    bytes_.remove_prefix(8);
    double value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  void Require(bool condition) { is_good_ = is_good_ && condition; }
  bool is_good() const { return is_good_; }
  bool is_at_end() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool is_good_ = true;
};

// What came before decides what may come: worker ids and experts that exist.
class TraceReader {
 public:
  // False: the frame must not hold this.
  bool Read(uint8_t type, std::string_view bytes);
  bool has_head() const { return has_head_; }
  bool is_version_unknown() const { return is_version_unknown_; }
  RoutingTrace Take() { return std::move(trace_); }

 private:
  void ReadHead(Body& in);
  void ReadWindow(Body& in);
  void ReadWorkers(Body& in);
  void ReadPlacement(Body& in);
  // The expert `gap` behind the last one.
  void Advance(Body& in, uint64_t gap, int64_t& last) const {
    in.Require(gap < units_.size() &&
               last + 1 + static_cast<int64_t>(gap) < static_cast<int64_t>(units_.size()));
    last += in.is_good() ? 1 + static_cast<int64_t>(gap) : 0;
  }
  ExpertUnit Unit(Body& in) const {
    const uint64_t u = in.Number(kTraceUnitsMax);
    in.Require(u < units_.size());
    return in.is_good() ? units_[u] : ExpertUnit{};
  }

  RoutingTrace trace_;
  std::vector<ExpertUnit> units_;
  std::map<WorkerId, std::string> known_;  // names of all workers so far
  int64_t total_us_ = 0;
  bool has_head_ = false;
  bool has_end_ = false;
  bool has_workers_ = false;
  bool has_placement_ = false;
  bool is_version_unknown_ = false;
};

bool TraceReader::Read(uint8_t type, std::string_view bytes) {
  Body in(bytes);
  in.Require(!has_end_ && (type == kHead) == !has_head_);
  if (!in.is_good()) {
    return false;
  }
  switch (type) {
    case kHead:
      ReadHead(in);
      break;
    case kWindow:
      ReadWindow(in);
      break;
    case kWorkers:
      ReadWorkers(in);
      break;
    case kPlacement:
      ReadPlacement(in);
      break;
    case kEnd:
      has_end_ = true;
      trace_.end = static_cast<TraceEnd>(in.Number(2));
      break;
    default:
      return false;
  }
  return in.is_good() && in.is_at_end();
}

void TraceReader::ReadHead(Body& in) {
  TraceHead& head = trace_.head;
  const uint64_t version = in.Number(UINT32_MAX);
  is_version_unknown_ = in.is_good() && version != kTraceVersion;
  in.Require(!is_version_unknown_);
  head.started_unix_us = static_cast<int64_t>(in.Number(kTimeUsMax));
  head.window = std::chrono::microseconds(in.Number(kWindowUsMax));
  head.model.manifest_hash = in.Text();
  head.model.row_width = in.I32();
  head.model.top_k = in.I32();
  head.replication = static_cast<int32_t>(in.Number(kWorkersMax));
  in.Require(head.window.count() > 0 && head.replication > 0);
  for (uint64_t i = in.Count(kLayersMax); i > 0 && in.is_good(); --i) {
    const MoeLayer layer{LayerId(in.I32()), static_cast<int32_t>(in.Number(kExpertsMax))};
    in.Require(layer.num_experts >= 1 &&
               (head.layers.empty() || head.layers.back().layer < layer.layer) &&
               static_cast<int64_t>(units_.size()) + layer.num_experts <= kTraceUnitsMax);
    for (int32_t e = 0; e < layer.num_experts && in.is_good(); ++e) {
      units_.push_back({layer.layer, ExpertId(e)});
    }
    head.layers.push_back(layer);
  }
  for (uint64_t i = in.Count(kTraceUnitsMax); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = Unit(in);
    const auto replicas = static_cast<int32_t>(in.Number(kWorkersMax));
    in.Require(replicas > 0 && (head.replicas.empty() || head.replicas.rbegin()->first < unit));
    head.replicas.emplace(unit, replicas);
  }
  for (uint64_t i = in.Count(kPinsMax); i > 0 && in.is_good(); --i) {
    const ExpertUnit unit = Unit(in);
    head.pins.emplace_back(unit, in.Text());
  }
  in.Require(!units_.empty());
  has_head_ = true;
}

void TraceReader::ReadWindow(Body& in) {
  in.Require(has_workers_ && has_placement_);
  TraceWindow window;
  window.length = std::chrono::microseconds(in.Number(kWindowUsMax));
  total_us_ += window.length.count();
  in.Require(window.length.count() > 0 && total_us_ <= kTotalUsMax);
  int64_t last = -1;
  while (in.is_good() && !in.is_at_end()) {
    const uint64_t word = in.Number(kTraceUnitsMax * 16);
    const uint64_t kinds = word & 15;
    in.Require(kinds != 0);
    Advance(in, word >> 4, last);
    if (!in.is_good()) {
      return;
    }
    ExpertRows& rows = window.rows.emplace_back();
    rows.unit = units_[static_cast<size_t>(last)];
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      if ((kinds >> kind & 1) != 0) {
        rows.rows[kind] = in.Number(kRowsMax);
        in.Require(rows.rows[kind] > 0);
      }
    }
  }
  trace_.records.emplace_back(std::move(window));
}

void TraceReader::ReadWorkers(Body& in) {
  TraceWorkers all;
  std::set<std::string> names;
  for (uint64_t i = in.Count(kWorkersMax); i > 0 && in.is_good(); --i) {
    TraceWorker worker;
    worker.id = WorkerId(static_cast<int32_t>(in.Number(kWorkerIdMax)));
    worker.name = in.Text();
    worker.host = in.Text();
    worker.speed = in.F64();
    worker.memory_bytes = static_cast<int64_t>(in.Number(kBytesMax));
    worker.expert_bytes = static_cast<int64_t>(in.Number(kBytesMax));
    worker.takes_experts = in.Number(1) == 1;
    in.Require(!worker.name.empty() && worker.name.size() <= 64 &&
               names.insert(worker.name).second && std::isfinite(worker.speed) &&
               worker.speed > 0 && worker.speed <= kSpeedMax && worker.expert_bytes > 0 &&
               (all.workers.empty() || all.workers.back().id < worker.id));
    // An id belongs to one name for the life of a cluster.
    in.Require(in.is_good() &&
               known_.try_emplace(worker.id, worker.name).first->second == worker.name &&
               known_.size() <= kTraceUnitsMax);
    all.workers.push_back(std::move(worker));
  }
  has_workers_ = true;
  trace_.records.emplace_back(std::move(all));
}

void TraceReader::ReadPlacement(Body& in) {
  TracePlacement placement;
  int64_t last = -1;
  for (uint64_t i = in.Count(kTraceUnitsMax); i > 0 && in.is_good(); --i) {
    Advance(in, in.Number(kTraceUnitsMax), last);
    std::vector<WorkerId> workers;
    for (uint64_t n = in.Count(kWorkersMax); n > 0 && in.is_good(); --n) {
      const WorkerId worker(in.I32());
      in.Require(known_.contains(worker) &&
                 std::find(workers.begin(), workers.end(), worker) == workers.end());
      workers.push_back(worker);
    }
    if (in.is_good()) {
      placement.changed.emplace_back(units_[static_cast<size_t>(last)], std::move(workers));
    }
  }
  in.Require(has_workers_ && (has_placement_ || placement.changed.size() == units_.size()));
  has_placement_ = true;
  trace_.records.emplace_back(std::move(placement));
}

absl::Status Corrupt(size_t at, const std::string& why) {
  return InvalidArgument("trace_corrupt", "byte " + std::to_string(at) + ": " + why);
}

}  // namespace

TraceEncoder::TraceEncoder(const std::vector<MoeLayer>& layers) {
  int64_t first = 0;
  for (const MoeLayer& layer : layers) {
    layers_[layer.layer] = {first, layer.num_experts};
    first += layer.num_experts;
  }
}

int64_t TraceEncoder::IndexOf(ExpertUnit unit) const {
  const auto it = layers_.find(unit.layer);
  const int64_t expert = unit.expert.value();
  return it == layers_.end() || expert < 0 || expert >= it->second.second
             ? -1
             : it->second.first + expert;
}

std::string TraceStart(const TraceHead& head) {
  Writer out(kHead);
  out.Number(kTraceVersion);
  out.Signed(std::max<int64_t>(0, head.started_unix_us));
  out.Signed(head.window.count());
  out.Text(head.model.manifest_hash);
  out.Signed(head.model.row_width);
  out.Signed(head.model.top_k);
  out.Signed(head.replication);
  out.Number(head.layers.size());
  std::map<ExpertUnit, int64_t> index;
  for (const MoeLayer& layer : head.layers) {
    out.Signed(layer.layer.value());
    out.Signed(layer.num_experts);
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      index.emplace(ExpertUnit{layer.layer, ExpertId(e)}, static_cast<int64_t>(index.size()));
    }
  }
  const auto is_known = [&](const auto& entry) { return index.contains(entry.first); };
  out.Signed(std::count_if(head.replicas.begin(), head.replicas.end(), is_known));
  for (const auto& [unit, replicas] : head.replicas) {
    if (const auto it = index.find(unit); it != index.end()) {
      out.Signed(it->second);
      out.Signed(replicas);
    }
  }
  out.Signed(std::count_if(head.pins.begin(), head.pins.end(), is_known));
  for (const auto& [unit, name] : head.pins) {
    if (const auto it = index.find(unit); it != index.end()) {
      out.Signed(it->second);
      out.Text(name);
    }
  }
  return std::string(kMagic) + out.Frame();
}

std::string TraceEncoder::Window(std::chrono::microseconds length,
                                 const std::vector<ExpertRows>& rows) const {
  std::map<int64_t, std::array<uint64_t, kNumRowKinds>> sums;
  for (const ExpertRows& expert : rows) {
    if (const int64_t u = IndexOf(expert.unit); u >= 0) {
      for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
        uint64_t& sum = sums[u][kind];
        sum = std::min(kRowsMax, sum + std::min(kRowsMax, expert.rows[kind]));
      }
    }
  }
  Writer out(kWindow);
  out.Number(std::clamp<uint64_t>(static_cast<uint64_t>(length.count()), 1, kWindowUsMax));
  int64_t last = -1;
  for (const auto& [u, kinds] : sums) {
    uint64_t bits = 0;
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      bits |= uint64_t{kinds[kind] > 0} << kind;
    }
    if (bits == 0) {
      continue;
    }
    out.Number(static_cast<uint64_t>(u - last - 1) << 4 | bits);
    last = u;
    for (const uint64_t count : kinds) {
      if (count > 0) {
        out.Number(count);
      }
    }
  }
  return out.Frame();
}

std::string TraceEncoder::Workers(const std::vector<TraceWorker>& workers) const {
  Writer out(kWorkers);
  out.Number(workers.size());
  for (const TraceWorker& worker : workers) {
    out.Signed(worker.id.value());
    out.Text(worker.name);
    out.Text(worker.host);
    out.F64(worker.speed);
    out.Signed(worker.memory_bytes);
    out.Signed(worker.expert_bytes);
    out.Number(worker.takes_experts ? 1 : 0);
  }
  return out.Frame();
}

std::string TraceEncoder::Placement(const TracePlacement& placement) const {
  Writer out(kPlacement);
  out.Number(placement.changed.size());
  int64_t last = -1;
  for (const auto& [unit, workers] : placement.changed) {
    const int64_t u = IndexOf(unit);
    out.Signed(u - last - 1);
    last = u;
    out.Number(workers.size());
    for (const WorkerId worker : workers) {
      out.Signed(worker.value());
    }
  }
  return out.Frame();
}

std::string TraceEncoder::End(TraceEnd end) const {
  Writer out(kEnd);
  out.Number(static_cast<uint64_t>(end));
  return out.Frame();
}

absl::StatusOr<RoutingTrace> ReadTrace(std::string_view bytes) {
  if (!bytes.starts_with(kMagic)) {
    return Corrupt(0, "expected a recording of `conclave cluster record save`, which starts with " +
                          std::string(kMagic));
  }
  TraceReader reader;
  size_t at = kMagic.size();
  while (bytes.size() - at >= kFrameHeadBytes) {
    const size_t length = ReadU32(bytes.substr(at));
    if (length > kBodyBytesMax) {
      return Corrupt(
          at, "expected a part of at most 64 MiB, found " + std::to_string(length) + " bytes");
    }
    if (bytes.size() - at < kFrameHeadBytes + length + kFrameTailBytes) {
      break;
    }
    const std::string_view sealed = bytes.substr(at + kFrameHeadBytes - 1, length + 1);
    if (ReadU32(bytes.substr(at + kFrameHeadBytes + length)) != Checksum(sealed)) {
      return Corrupt(at, "the checksum of this part does not fit: the file was changed");
    }
    if (!reader.Read(static_cast<uint8_t>(sealed.front()), sealed.substr(1))) {
      if (reader.is_version_unknown()) {
        return Error(absl::StatusCode::kFailedPrecondition, "trace_version_unsupported",
                     "expected version " + std::to_string(kTraceVersion) +
                         " of the format, found another; use the conclave that recorded it");
      }
      return Corrupt(at, "this part holds what a recording does not");
    }
    at += kFrameHeadBytes + length + kFrameTailBytes;
  }
  if (!reader.has_head()) {
    return Corrupt(at, "the file ends before its head does");
  }
  RoutingTrace trace = reader.Take();
  if (at != bytes.size() && trace.end != TraceEnd::kCut) {
    return Corrupt(at, "expected nothing behind the end of the recording");
  }
  return trace;
}

}  // namespace conclave::router_service
