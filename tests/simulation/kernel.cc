#include "kernel.h"

#include <algorithm>
#include <cstdio>

#include "conclave/base/status.h"

namespace conclave::simulation {
namespace {

constexpr uint64_t kFnvPrime = 0x100000001b3;

absl::Status Gone(const std::string& why) {
  return Error(absl::StatusCode::kUnavailable, "stream_lost", why);
}

}  // namespace

Kernel::Kernel(const Plan& plan, const RunOptions& options)
    : plan_(plan),
      options_(options),
      random_(Random(plan.seed).Fork("world")),
      ties_(Random(plan.seed).Fork("ties")),
      network_(Random(plan.seed).Fork("network")),
      processes_(static_cast<size_t>(plan.num_nodes())),
      cut_until_(static_cast<size_t>(plan.num_nodes() * plan.num_nodes())) {
  outcome_.trace_hash = 0xcbf29ce484222325;
  Random clocks = Random(plan.seed).Fork("clocks");
  for (Process& process : processes_) {
    process.rate = plan.has_clock_rates ? 0.98 + 0.04 * clocks.Unit() : 1;
    process.offset = std::chrono::seconds(clocks.Between(100, 1'000'000));
  }
}

MonotonicTime Kernel::LocalNow(int node) const {
  const Process& p = process(node);
  return MonotonicTime(p.offset + std::chrono::nanoseconds(static_cast<int64_t>(
                                      static_cast<double>(now_) * 1000 * p.rate)));
}

Micros Kernel::WorldTimeOf(int node, MonotonicTime local) const {
  constexpr double kFarUs = 4e15;
  const Process& p = process(node);
  const auto ns = static_cast<double>((local.time_since_epoch() - p.offset).count());
  // One more: never before it is due by the node's own clock.
  return static_cast<Micros>(std::clamp(ns / 1000 / p.rate, 0.0, kFarUs)) + 1;
}

void Kernel::Push(Item item) {
  item.number = ++num_items_;
  queue_.push(std::move(item));
}

void Kernel::At(Micros when, Act act) {
  Push({std::max(when, now_), ties_.Next(), 0, -1, 0, std::move(act)});
}

void Kernel::AtNode(Micros when, int node, Act act) {
  Push({std::max(when, now_), ties_.Next(), 0, node, process(node).life, std::move(act)});
}

void Kernel::Timer(int node, MonotonicTime local, Act act) {
  constexpr double kLatenessMaxUs = 500'000;
  Micros when = WorldTimeOf(node, local);
  if (plan_.lateness > 0 && random_.Chance(plan_.lateness)) {
    when += static_cast<Micros>(random_.LogUniform(1'000, kLatenessMaxUs));
  }
  AtNode(when, node, std::move(act));
}

void Kernel::RunUntil(Micros when) {
  // A pause of all nodes leaves some thousands.
  constexpr uint64_t kAtOnceMax = 200'000;
  while (!is_over_ && !queue_.empty() && queue_.top().at <= when) {
    Item item = std::move(const_cast<Item&>(queue_.top()));  // popped at once
    queue_.pop();
    num_at_once_ = item.at == now_ ? num_at_once_ + 1 : 0;
    now_ = item.at;
    if (num_at_once_ > kAtOnceMax) {
      Violate("SPIN", "events without end at one moment: a timer that stays due");
      is_over_ = true;  // time would never go on
      return;
    }
    if (item.node >= 0) {
      Process& p = process(item.node);
      if (!p.is_up || p.life != item.life) {
        continue;
      }
      if (p.paused_until > now_ || !p.waiting.empty()) {
        p.waiting.push_back(std::move(item.act));
        continue;
      }
    }
    ++outcome_.num_events;
    item.act();
  }
  if (!is_over_) {
    now_ = std::max(now_, when);
  }
}

Micros Kernel::UnpausedTime(int node) const {
  const Process& p = process(node);
  return now_ - p.paused_total + (p.paused_until > now_ ? p.paused_until - now_ : 0);
}

void Kernel::StartProcess(int node) {
  Process& p = process(node);
  p.is_up = true;
  ++p.life;
  p.paused_until = 0;
  p.paused_total = 0;
  Note("start", node, p.life);
}

void Kernel::CrashProcess(int node) {
  Process& p = process(node);
  if (!p.is_up) {
    return;
  }
  Note("crash", node, p.life);
  p.is_up = false;
  ++p.life;
  p.paused_until = 0;
  p.waiting.clear();
  // The kernel resets what the process had, as far as its word reaches.
  for (const auto& [id, stream] : streams_) {
    const int end = stream->node[0] == node ? 0 : stream->node[1] == node ? 1 : -1;
    if (end < 0) {
      continue;
    }
    stream->is_open[end] = false;
    const int other = stream->node[1 - end];
    if (!IsCut(node, other)) {
      At(now_ + network_.Between(100, 12'000),
         [this, s = stream, end] { LoseEnd(s, 1 - end, Gone("reset by peer")); });
    } else {
      WatchKeepalive(node, other);
    }
  }
}

void Kernel::Pause(int node, Micros until) {
  Process& p = process(node);
  if (!p.is_up || p.paused_until >= until) {
    return;
  }
  Note("pause", node, static_cast<uint64_t>(until));
  p.paused_total += until - std::max(now_, p.paused_until);
  p.paused_until = until;
  At(until, [this, node] { Resume(node); });
  for (int other = 0; other < plan_.num_nodes(); ++other) {
    if (other != node) {
      WatchKeepalive(node, other);
    }
  }
}

// What came meanwhile is found in the order in which it came, timers among it.
void Kernel::Resume(int node) {
  if (process(node).paused_until > now_) {
    return;
  }
  Note("resume", node);
  std::deque<Act> waiting = std::move(process(node).waiting);
  process(node).waiting.clear();
  for (Act& act : waiting) {
    Push({now_, 0, 0, node, process(node).life, std::move(act)});
  }
}

void Kernel::Cut(int from, int to, Micros until) {
  Micros& cut = cut_until_[Index(from, to)];
  if (until <= cut) {
    return;
  }
  cut = until;
  Note("cut", from, static_cast<uint64_t>(to), static_cast<uint64_t>(until));
  WatchKeepalive(from, to);
  At(until, [this, from, to] {
    if (!IsCut(from, to)) {
      FlushHeld(from, to);
    }
  });
}

void Kernel::HealAll() {
  Note("heal");
  std::fill(cut_until_.begin(), cut_until_.end(), Micros{0});
  for (int node = 0; node < plan_.num_nodes(); ++node) {
    Process& p = process(node);
    if (p.paused_until > now_) {
      p.paused_total -= p.paused_until - now_;
      p.paused_until = now_;
      Resume(node);
    }
    for (int other = 0; other < plan_.num_nodes(); ++other) {
      if (other != node) {
        FlushHeld(node, other);
      }
    }
  }
}

// What was under way in a cut link comes when TCP sends it again.
void Kernel::FlushHeld(int from, int to) {
  for (const auto& [id, stream] : streams_) {
    const int end = stream->node[0] == from && stream->node[1] == to   ? 0
                    : stream->node[1] == from && stream->node[0] == to ? 1
                                                                       : -1;
    if (end < 0) {
      continue;
    }
    if (!stream->is_open[end]) {
      At(now_ + network_.Between(100, 200'000),
         [this, s = stream, end] { LoseEnd(s, 1 - end, Gone("closed by peer")); });
    }
    std::deque<Act> held = std::move(stream->held[end]);
    stream->held[end].clear();
    Micros at = std::max(stream->last_at[end], now_ + network_.Between(100, 200'000));
    for (Act& act : held) {
      stream->last_at[end] = ++at;
      At(at, [this, s = stream, end, deliver = std::move(act)] { Arrive(s, end, deliver); });
    }
  }
}

StreamPtr Kernel::OpenStream(int member, int router, std::function<void(absl::Status)> on_lost) {
  ForgetClosed();
  auto stream = std::make_shared<Stream>();
  stream->id = ++num_streams_;
  stream->node[0] = member;
  stream->node[1] = router;
  stream->life[0] = process(member).life;
  stream->life[1] = process(router).life;
  stream->is_open[0] = true;
  stream->is_open[1] = true;
  stream->on_lost[0] = std::move(on_lost);
  streams_.emplace(stream->id, stream);
  if (!process(router).is_up) {
    stream->is_open[1] = false;
    if (!IsCutEitherWay(member, router)) {
      At(now_ + NetworkDelay(), [this, stream] { LoseEnd(stream, 0, Gone("connection refused")); });
    }
  }
  return stream;
}

void Kernel::Send(const StreamPtr& stream, int from, Act deliver) {
  if (!stream->is_open[from]) {
    return;
  }
  Micros& last = stream->last_at[from];
  last = std::max(last + 1, now_ + NetworkDelay());
  At(last, [this, stream, from, act = std::move(deliver)] { Arrive(stream, from, act); });
}

void Kernel::Arrive(const StreamPtr& stream, int from, const Act& deliver) {
  const int to = 1 - from;
  if (IsCut(stream->node[from], stream->node[to]) || !stream->held[from].empty()) {
    stream->held[from].push_back(deliver);
    return;
  }
  const Process& p = process(stream->node[to]);
  if (!stream->is_open[to] || !p.is_up || p.life != stream->life[to]) {
    return;
  }
  AtNode(now_, stream->node[to], [stream, to, deliver] {
    if (stream->is_open[to]) {
      deliver();
    }
  });
}

void Kernel::LoseEnd(const StreamPtr& stream, int end, const absl::Status& why) {
  const Process& p = process(stream->node[end]);
  if (!stream->is_open[end] || !p.is_up || p.life != stream->life[end]) {
    return;
  }
  AtNode(now_, stream->node[end], [this, stream, end, why] {
    if (stream->is_open[end]) {
      stream->is_open[end] = false;
      // The other end hears of it when it can.
      if (!IsCut(stream->node[end], stream->node[1 - end])) {
        At(now_ + NetworkDelay(),
           [this, stream, end] { LoseEnd(stream, 1 - end, Gone("closed by peer")); });
      }
      if (stream->on_lost[end]) {
        stream->on_lost[end](why);
      }
    }
  });
}

void Kernel::Close(const StreamPtr& stream, int end, const absl::Status& why) {
  if (!stream->is_open[end]) {
    return;
  }
  // Behind what was sent before.
  Send(stream, end, [stream, end, why] {
    stream->is_open[1 - end] = false;
    if (stream->on_lost[1 - end]) {
      stream->on_lost[1 - end](why);
    }
  });
  stream->is_open[end] = false;
  if (IsCut(stream->node[end], stream->node[1 - end])) {
    WatchKeepalive(stream->node[end], stream->node[1 - end]);
  }
}

void Kernel::ResetStreams(int a, int b) {
  for (const auto& [id, stream] : streams_) {
    if ((stream->node[0] == a && stream->node[1] == b) ||
        (stream->node[0] == b && stream->node[1] == a)) {
      for (const int end : {0, 1}) {
        At(now_ + network_.Between(0, 5'000),
           [this, s = stream, end] { LoseEnd(s, end, Gone("reset")); });
      }
    }
  }
}

void Kernel::WatchKeepalive(int a, int b) {
  constexpr Micros kKeepaliveMin = 1'500'000;
  constexpr Micros kKeepaliveMax = 3'000'000;
  for (const auto& [id, stream] : streams_) {
    const bool is_between = (stream->node[0] == a && stream->node[1] == b) ||
                            (stream->node[0] == b && stream->node[1] == a);
    if (!is_between) {
      continue;
    }
    for (const int end : {0, 1}) {
      if (!stream->is_open[end]) {
        continue;
      }
      At(now_ + network_.Between(kKeepaliveMin, kKeepaliveMax), [this, s = stream, end] {
        const int other = s->node[1 - end];
        const Process& p = process(other);
        const bool answers = p.is_up && p.life == s->life[1 - end] && p.paused_until <= now_ &&
                             s->is_open[1 - end] && !IsCutEitherWay(s->node[0], s->node[1]);
        if (!answers) {
          LoseEnd(s, end, Gone("no answer to keepalive"));
        }
      });
    }
  }
}

void Kernel::ForgetClosed() {
  std::erase_if(streams_, [](const auto& entry) {
    return !entry.second->is_open[0] && !entry.second->is_open[1];
  });
}

Micros Kernel::NetworkDelay() { return network_.Between(50, 400); }

void Kernel::Note(std::string_view what, int node, uint64_t x, uint64_t y) {
  uint64_t hash = outcome_.trace_hash;
  for (const char c : what) {
    hash = (hash ^ static_cast<uint8_t>(c)) * kFnvPrime;
  }
  for (const uint64_t value : {static_cast<uint64_t>(now_), static_cast<uint64_t>(node), x, y}) {
    hash = (hash ^ value) * kFnvPrime;
    hash ^= hash >> 29;
  }
  outcome_.trace_hash = hash;
  if (options_.prints_trace) {
    std::printf("%11.6f %-3s %.*s %llu %llu\n", static_cast<double>(now_) * 1e-6,
                node < 0 ? "-" : plan_.NodeName(node).c_str(), static_cast<int>(what.size()),
                what.data(), static_cast<unsigned long long>(x),
                static_cast<unsigned long long>(y));
  }
}

void Kernel::Say(std::string_view what, int node) {
  if (options_.prints_trace) {
    std::printf("%11.6f %-3s   %.*s\n", static_cast<double>(now_) * 1e-6,
                plan_.NodeName(node).c_str(), static_cast<int>(what.size()), what.data());
  }
}

void Kernel::Violate(std::string_view invariant, std::string what) {
  Note(std::string("VIOLATION ") + std::string(invariant) + " " + what);
  const bool is_known =
      std::any_of(outcome_.violations.begin(), outcome_.violations.end(),
                  [&](const Violation& violation) { return violation.invariant == invariant; });
  if (!is_known) {
    outcome_.violations.push_back({std::string(invariant), std::move(what), now_});
  }
  is_over_ = is_over_ || options_.stops_at_first;
}

}  // namespace conclave::simulation
