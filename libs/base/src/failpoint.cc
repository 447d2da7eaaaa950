#include "conclave/base/failpoint.h"

#ifdef CONCLAVE_FAILPOINTS

#include <signal.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"

namespace conclave {
namespace {

// What stands behind the colon of an action.
enum class Argument : uint8_t { kNone, kNumber, kNumberOrAny, kTimeRange };

struct ActionWord {
  std::string_view word;
  FailpointAction action;
  Argument argument;
};
constexpr ActionWord kActions[] = {
    {"kill9", FailpointAction::kKill9, Argument::kNone},
    {"stop", FailpointAction::kStop, Argument::kNone},
    {"sleep", FailpointAction::kSleep, Argument::kNumber},
    {"oom", FailpointAction::kError, Argument::kNone},
    {"rst", FailpointAction::kRst, Argument::kNone},
    {"drop", FailpointAction::kDrop, Argument::kNone},
    {"truncate", FailpointAction::kTruncate, Argument::kNumberOrAny},
    {"flip", FailpointAction::kFlip, Argument::kNumberOrAny},
    {"dup", FailpointAction::kDup, Argument::kNone},
    {"delay", FailpointAction::kDelay, Argument::kTimeRange},
    {"stall", FailpointAction::kStall, Argument::kTimeRange},
    {"reorder", FailpointAction::kReorder, Argument::kTimeRange},
    {"note", FailpointAction::kNote, Argument::kNone},
};

struct CodeWord {
  std::string_view word;
  absl::StatusCode code;
};
constexpr CodeWord kCodes[] = {
    {"ENOMEM", absl::StatusCode::kResourceExhausted},
    {"RESOURCE_EXHAUSTED", absl::StatusCode::kResourceExhausted},
    {"UNAVAILABLE", absl::StatusCode::kUnavailable},
    {"INTERNAL", absl::StatusCode::kInternal},
    {"DATA_LOSS", absl::StatusCode::kDataLoss},
    {"DEADLINE_EXCEEDED", absl::StatusCode::kDeadlineExceeded},
    {"FAILED_PRECONDITION", absl::StatusCode::kFailedPrecondition},
    {"NOT_FOUND", absl::StatusCode::kNotFound},
    {"INVALID_ARGUMENT", absl::StatusCode::kInvalidArgument},
    {"CANCELLED", absl::StatusCode::kCancelled},
};

absl::Status Unreadable(std::string_view part, std::string_view expected) {
  return InvalidArgument("failpoint_syntax", "CONCLAVE_FAILPOINTS: expected " +
                                                 std::string(expected) + ", found \"" +
                                                 std::string(part) + "\"");
}

std::optional<int64_t> NumberOf(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  return is_whole && value >= 0 ? std::optional<int64_t>(value) : std::nullopt;
}

std::optional<double> ChanceOf(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  return is_whole && value >= 0 && value <= 1 ? std::optional<double>(value) : std::nullopt;
}

// Calls fn(part) for the parts of `text` between `separator`s, until one is refused.
template <typename Fn>
absl::Status ForEachPart(std::string_view text, char separator, const Fn& fn) {
  while (true) {
    const size_t end = text.find(separator);
    CONCLAVE_RETURN_IF_ERROR(fn(text.substr(0, end)));
    if (end == std::string_view::npos) {
      return absl::OkStatus();
    }
    text.remove_prefix(end + 1);
  }
}

struct Point {
  std::string name;
  FailpointHit hit;
  int64_t argument_max = 0;  // above hit.argument: the argument is drawn between the two
  std::optional<int64_t> layer;
  std::optional<int64_t> step;
  std::optional<std::string> phase;
  std::optional<int64_t> hit_number;
  std::optional<double> chance;
  int64_t seed = 1;

  Mutex mu;
  int64_t num_hits ABSL_GUARDED_BY(mu) = 0;
  int64_t num_acts ABSL_GUARDED_BY(mu) = 0;
  std::mt19937_64 random ABSL_GUARDED_BY(mu);

  absl::Status ReadAction(std::string_view text);
  absl::Status ReadArgument(const ActionWord& word, std::string_view text);
  absl::Status ReadCondition(std::string_view text);

  // What to do, when the conditions are met.
  std::optional<FailpointHit> Meet(const FailpointContext& context) {
    if ((layer && *layer != context.layer) || (step && *step != context.step) ||
        (phase && *phase != context.phase)) {
      return std::nullopt;
    }
    MutexLock lock(mu);
    if (chance && std::uniform_real_distribution<double>()(random) >= *chance) {
      return std::nullopt;
    }
    ++num_hits;
    if (hit_number && num_hits != *hit_number) {
      return std::nullopt;
    }
    ++num_acts;
    FailpointHit now = hit;
    if (argument_max > now.argument) {
      now.argument = std::uniform_int_distribution<int64_t>(now.argument, argument_max)(random);
    }
    return now;
  }
};

absl::Status Point::ReadAction(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view word = text.substr(0, colon);
  const std::string_view rest =
      colon == std::string_view::npos ? std::string_view() : text.substr(colon + 1);
  if (word == "error") {
    hit.action = FailpointAction::kError;
    for (const CodeWord& code : kCodes) {
      if (rest == code.word) {
        hit.code = code.code;
        return absl::OkStatus();
      }
    }
    return Unreadable(text, "error:CODE with ENOMEM or a canonical code");
  }
  for (const ActionWord& action : kActions) {
    if (word == action.word) {
      hit.action = action.action;
      hit.code = absl::StatusCode::kResourceExhausted;  // of oom
      if ((action.argument == Argument::kNone) != (colon == std::string_view::npos)) {
        return Unreadable(
            text, action.argument == Argument::kNone ? "no number" : "a number behind the action");
      }
      return ReadArgument(action, rest);
    }
  }
  return Unreadable(text, "an action");
}

absl::Status Point::ReadArgument(const ActionWord& word, std::string_view text) {
  if (word.argument == Argument::kNone) {
    return absl::OkStatus();
  }
  if (word.argument == Argument::kNumberOrAny && text == "any") {
    argument_max = std::numeric_limits<int64_t>::max();
    return absl::OkStatus();
  }
  const bool is_range = word.argument == Argument::kTimeRange;
  const size_t dash = is_range ? text.find('-') : std::string_view::npos;
  const std::optional<int64_t> first = NumberOf(text.substr(0, dash));
  const std::optional<int64_t> last =
      dash == std::string_view::npos ? first : NumberOf(text.substr(dash + 1));
  // An hour is longer than any test, and far from where microseconds overflow.
  constexpr int64_t kLongestMs = 3'600'000;
  if (!first || !last || *last < *first || (is_range && *last > kLongestMs)) {
    return Unreadable(text, is_range ? "MS or MS-MS, an hour at most" : "a number or \"any\"");
  }
  hit.argument = is_range ? *first * 1000 : *first;
  argument_max = is_range ? *last * 1000 : *last;
  return absl::OkStatus();
}

absl::Status Point::ReadCondition(std::string_view text) {
  const size_t equals = text.find('=');
  const std::string_view key = text.substr(0, equals);
  const std::string_view value =
      equals == std::string_view::npos ? std::string_view() : text.substr(equals + 1);
  if (key == "phase" && !value.empty()) {
    phase = std::string(value);
    return absl::OkStatus();
  }
  if (key == "prob") {
    chance = ChanceOf(value);
    return chance ? absl::OkStatus() : Unreadable(text, "prob=P with 0 <= P <= 1");
  }
  const std::optional<int64_t> number = NumberOf(value);
  if (!number.has_value() || (key == "hit" && *number == 0)) {
    return Unreadable(text, "a condition");
  }
  if (key == "layer") {
    layer = number;
  } else if (key == "step") {
    step = number;
  } else if (key == "hit") {
    hit_number = number;
  } else if (key == "seed") {
    seed = *number;
  } else {
    return Unreadable(text, "layer=, step=, phase=, hit=, prob= or seed=");
  }
  return absl::OkStatus();
}

// Null without a setting: then a point costs a look at this, and allocates nothing.
std::atomic<const Failpoints*>& OfProcess() {
  static std::atomic<const Failpoints*> points([]() -> const Failpoints* {
    // Points are reached by threads, when nobody changes the environment any more.
    const char* setting = std::getenv("CONCLAVE_FAILPOINTS");  // NOLINT(concurrency-mt-unsafe)
    if (setting == nullptr || *setting == '\0') {
      return nullptr;
    }
    auto parsed = Failpoints::Parse(setting);
    if (!parsed.ok()) {
      std::fprintf(stderr, "%s\n", MessageOf(parsed.status()).c_str());
      std::abort();
    }
    return new Failpoints(*std::move(parsed));
  }());
  return points;
}

std::shared_ptr<FailpointLink>& LinkOfThread() {
  thread_local std::shared_ptr<FailpointLink> link;
  return link;
}

}  // namespace

FailpointScope::FailpointScope(std::shared_ptr<FailpointLink> link)
    : outer_(std::exchange(LinkOfThread(), std::move(link))) {}
FailpointScope::~FailpointScope() { LinkOfThread() = std::move(outer_); }

struct Failpoints::State {
  std::deque<Point> points;  // a point does not move: it has a lock
};

Failpoints::Failpoints(State* state) : state_(state) {}
Failpoints::Failpoints(Failpoints&& other) noexcept : state_(other.state_) {
  other.state_ = nullptr;
}
Failpoints::~Failpoints() { delete state_; }

absl::StatusOr<Failpoints> Failpoints::Parse(std::string_view setting) {
  Failpoints parsed(new State);
  if (setting.empty()) {
    return parsed;
  }
  const absl::Status status = ForEachPart(setting, ';', [&parsed](std::string_view part) {
    if (part.empty()) {
      return absl::OkStatus();  // a semicolon at the end
    }
    const size_t equals = part.find('=');
    if (equals == 0 || equals == std::string_view::npos) {
      return Unreadable(part, "NAME=ACTION[@CONDITION,...]");
    }
    Point& point = parsed.state_->points.emplace_back();
    point.name = std::string(part.substr(0, equals));
    const std::string_view rest = part.substr(equals + 1);
    const size_t at = rest.find('@');
    CONCLAVE_RETURN_IF_ERROR(point.ReadAction(rest.substr(0, at)));
    if (at != std::string_view::npos) {
      CONCLAVE_RETURN_IF_ERROR(ForEachPart(
          rest.substr(at + 1), ',',
          [&point](std::string_view condition) { return point.ReadCondition(condition); }));
    }
    MutexLock lock(point.mu);
    point.random.seed(static_cast<uint64_t>(point.seed));
    return absl::OkStatus();
  });
  CONCLAVE_RETURN_IF_ERROR(status);
  return parsed;
}

FailpointHit Failpoints::Decide(std::string_view name, const FailpointContext& context) const {
  for (Point& point : state_->points) {
    if (point.name != name) {
      continue;
    }
    if (const std::optional<FailpointHit> hit = point.Meet(context); hit.has_value()) {
      return *hit;
    }
  }
  return {};
}

std::string Failpoints::Report() const {
  std::string report;
  for (Point& point : state_->points) {
    MutexLock lock(point.mu);
    report += point.name + ' ' + std::to_string(point.num_acts) + '\n';
  }
  return report;
}

absl::Status SetFailpoints(std::string_view setting) {
  CONCLAVE_ASSIGN_OR_RETURN(Failpoints parsed, Failpoints::Parse(setting));
  const bool is_empty = setting.empty();
  // No setting is ever freed: a thread may be at one of its points.
  static Mutex mu;
  static auto& kept = *new std::deque<Failpoints>();
  MutexLock lock(mu);
  OfProcess().store(is_empty ? nullptr : &kept.emplace_back(std::move(parsed)));
  return absl::OkStatus();
}

std::string FailpointReport() {
  const Failpoints* points = OfProcess().load();
  return points == nullptr ? std::string() : points->Report();
}

absl::Status FailpointHit::status() const {
  return action == FailpointAction::kError ? Error(code, "failpoint", "a failpoint's error")
                                           : absl::OkStatus();
}

FailpointHit HitFailpoint(std::string_view name, const FailpointContext& context) {
  const Failpoints* points = OfProcess().load(std::memory_order_acquire);
  if (points == nullptr) {
    return {};
  }
  const FailpointHit hit = points->Decide(name, context);
  if (hit.action == FailpointAction::kKill9) {
    ::raise(SIGKILL);
  } else if (hit.action == FailpointAction::kStop) {
    ::raise(SIGSTOP);
  } else if (hit.action == FailpointAction::kSleep) {
    std::this_thread::sleep_for(std::chrono::milliseconds(hit.argument));
  } else if (hit.action == FailpointAction::kRst || hit.action == FailpointAction::kDrop) {
    // A copy: what is done to the link may end the scope's last other owner.
    if (const std::shared_ptr<FailpointLink> link = LinkOfThread()) {
      link->Disrupt(hit.action);
    }
  }
  return hit;
}

}  // namespace conclave

#else

namespace conclave {

absl::Status FailpointHit::status() const { return absl::OkStatus(); }

}  // namespace conclave

#endif
