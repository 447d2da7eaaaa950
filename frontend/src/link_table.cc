#include "link_table.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace conclave::frontend {
namespace {

// What a further call to a worker costs beside its rows: frames, wake-ups.
constexpr double kCallUs = 80;
// A second copy of a prefill row, as a part of the row's own time.
constexpr double kCopyShare = 0.25;
// Dividing an expert's rows has to end the layer earlier by this factor.
constexpr double kSplitGain = 1.1;
// Loads within this factor count as equal: the hash decides, and stays with its choice.
constexpr double kNearlyEqual = 1.05;

uint32_t Mix(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca6bu ^ (c + 0x165667b1u) * 0xc2b2ae35u;
  h ^= h >> 15;
  h *= 0x2c1b3c6du;
  return h ^ h >> 13;
}

}  // namespace

void LinkEntry::OnGivenUp(MonotonicTime now) {
  if (num_given_up == 0) {
    late_replies = link.channel->counters().late_replies;
  }
  ++num_given_up;
  given_up_at = now;
}

void LinkEntry::NoteLateAnswers(MonotonicTime now) {
  constexpr std::chrono::seconds kLateMax{1};
  if (num_given_up == 0 || !is_up()) {
    return;
  }
  const uint64_t late = link.channel->counters().late_replies;
  for (; late_replies < late && num_given_up > 0; ++late_replies, --num_given_up) {
    health.OnFalseAlarm();
  }
  late_replies = late;
  if (now - given_up_at > kLateMax) {
    num_given_up = 0;
  }
}

LinkTable::LinkTable(const LinkSettings& settings, double expert_us, double row_us,
                     uint32_t frontend)
    : settings_(settings), expert_us_(expert_us), row_us_(row_us), frontend_(frontend) {}

std::optional<size_t> LinkTable::Find(WorkerId worker) const {
  const auto id = static_cast<size_t>(worker.value());
  if (id >= index_of_.size() || index_of_[id] < 0) {
    return std::nullopt;
  }
  return static_cast<size_t>(index_of_[id]);
}

transport::ExpertChannel* LinkTable::Add(const WorkerLink& link) {
  if (const std::optional<size_t> found = Find(link.worker)) {
    LinkEntry& entry = *entries_[*found];
    transport::ExpertChannel* old = entry.link.channel;
    if (entry.link.incarnation != link.incarnation) {
      entry.health = LinkHealth(settings_);
      entry.health.SetEstimate(expert_us_, row_us_);
    }
    entry.link = link;
    entry.num_given_up = 0;
    return old;
  }
  if (entries_.size() == kMaxLinks) {
    return link.channel;
  }
  const auto id = static_cast<size_t>(link.worker.value());
  if (id >= index_of_.size()) {
    index_of_.resize(id + 1, -1);
  }
  index_of_[id] = static_cast<int32_t>(entries_.size());
  entries_.push_back(std::make_unique<LinkEntry>(link, settings_));
  entries_.back()->health.SetEstimate(expert_us_, row_us_);
  assigned_us_.resize(entries_.size());
  candidates_.reserve(entries_.size());
  return nullptr;
}

size_t LinkTable::AddUnlisted(const WorkerLink& link) {
  entries_.push_back(std::make_unique<LinkEntry>(link, settings_));
  entries_.back()->health.SetEstimate(expert_us_, row_us_);
  assigned_us_.resize(entries_.size());
  return entries_.size() - 1;
}

transport::ExpertChannel* LinkTable::Remove(WorkerId worker) {
  const std::optional<size_t> found = Find(worker);
  return found ? std::exchange(entries_[*found]->link.channel, nullptr) : nullptr;
}

void LinkTable::SetSuspects(std::span<const WorkerId> suspects) {
  for (const auto& entry : entries_) {
    entry->is_suspected_by_router =
        std::find(suspects.begin(), suspects.end(), entry->link.worker) != suspects.end();
  }
}

void LinkTable::BeginChoice() { std::fill(assigned_us_.begin(), assigned_us_.end(), 0.0); }

double LinkTable::CostOf(size_t index, const Demand& demand) const {
  const LinkHealth& health = entries_[index]->health;
  const int copies = demand.rows_placed - demand.rows_elsewhere[index];
  // A decode row is answered when the slower of its workers is, so rows stay together, up to the
  // time of two experts: beyond that a second worker is worth its messages.
  const double copying = copies == 0         ? 0
                         : demand.is_prefill ? kCallUs + copies * kCopyShare * health.row_us()
                                             : std::min(2, 1 + copies) * expert_us_;
  const double call = assigned_us_[index] > 0 ? 0 : kCallUs;
  return health.outstanding_rows() * health.row_us() + assigned_us_[index] + call + expert_us_ +
         demand.rows * health.row_us() + copying;
}

int LinkTable::TierOf(const LinkEntry& entry, MonotonicTime now) {
  const bool is_trusted = entry.health.TrustAt(now) == LinkHealth::Trust::kFull;
  return !is_trusted ? 2 : entry.is_suspected_by_router ? 1 : 0;
}

std::optional<size_t> LinkTable::Choose(const placement::Placement& placement,
                                        placement::ExpertUnit unit, const Demand& demand,
                                        const LinkSet& excluded, MonotonicTime now) {
  constexpr int kNoTier = 3;
  std::optional<size_t> best;
  int best_tier = kNoTier;
  double best_cost = std::numeric_limits<double>::infinity();
  uint32_t best_hash = 0;
  for (const WorkerId worker : placement.WorkersOf(unit)) {
    const std::optional<size_t> index = Find(worker);
    if (!index || !entries_[*index]->is_up() || excluded.test(*index)) {
      continue;
    }
    const LinkEntry& entry = *entries_[*index];
    const int tier = TierOf(entry, now);
    const double cost = CostOf(*index, demand);
    const uint32_t hash = Mix(frontend_, static_cast<uint32_t>(unit.layer.value()),
                              static_cast<uint32_t>(worker.value()));
    const bool is_equal = cost <= best_cost * kNearlyEqual && best_cost <= cost * kNearlyEqual;
    if (tier < best_tier ||
        (tier == best_tier && (is_equal ? hash < best_hash : cost < best_cost))) {
      best = index;
      best_tier = tier;
      best_cost = cost;
      best_hash = hash;
    }
  }
  if (best) {
    double& assigned = assigned_us_[*best];
    assigned +=
        (assigned > 0 ? 0 : kCallUs) + expert_us_ + demand.rows * entries_[*best]->health.row_us();
  }
  return best;
}

bool LinkTable::ChooseParts(const placement::Placement& placement, placement::ExpertUnit unit,
                            const Demand& demand, const LinkSet& excluded, MonotonicTime now,
                            std::vector<Part>& parts) {
  parts.clear();
  candidates_.clear();
  for (const WorkerId worker : placement.WorkersOf(unit)) {
    const std::optional<size_t> index = Find(worker);
    if (!index || !entries_[*index]->is_up() || excluded.test(*index) ||
        entries_[*index]->link.is_inline || TierOf(*entries_[*index], now) != 0) {
      continue;
    }
    const LinkHealth& health = entries_[*index]->health;
    const double assigned = assigned_us_[*index];
    candidates_.push_back({*index,
                           health.outstanding_rows() * health.row_us() + assigned +
                               (assigned > 0 ? 0 : kCallUs) + expert_us_,
                           std::max(health.row_us(), 1e-3),
                           Mix(frontend_, static_cast<uint32_t>(unit.layer.value()),
                               static_cast<uint32_t>(worker.value()))});
  }
  if (candidates_.size() < 2) {
    return false;
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.begin_us, a.hash) < std::tie(b.begin_us, b.hash);
  });
  // Filled like water: with the first n links, the level at which they are done together. A link
  // that begins above it gets nothing.
  double alone = std::numeric_limits<double>::infinity();
  double speeds = 0;   // rows per us
  double pending = 0;  // rows that the links would have done between 0 and their begin
  double level = 0;
  size_t num_links = 0;
  for (const Candidate& candidate : candidates_) {
    alone = std::min(alone, candidate.begin_us + demand.rows * candidate.row_us);
    if (num_links > 0 && candidate.begin_us >= level) {
      break;
    }
    speeds += 1 / candidate.row_us;
    pending += candidate.begin_us / candidate.row_us;
    level = (demand.rows + pending) / speeds;
    ++num_links;
  }
  if (num_links < 2 || level * kSplitGain > alone) {
    return false;
  }
  int left = demand.rows;
  for (size_t i = 0; i < num_links; ++i) {
    const Candidate& candidate = candidates_[i];
    const auto share =
        static_cast<int>(std::llround((level - candidate.begin_us) / candidate.row_us));
    const int rows = i + 1 == num_links ? left : std::clamp(share, 0, left);
    left -= rows;
    if (rows > 0) {
      parts.push_back({candidate.link, rows});
      assigned_us_[candidate.link] = candidate.begin_us + rows * candidate.row_us -
                                     entries_[candidate.link]->health.outstanding_rows() *
                                         entries_[candidate.link]->health.row_us();
    }
  }
  return true;
}

}  // namespace conclave::frontend
