// Failures on purpose, at named points of the code.
//
//   const FailpointHit hit = CONCLAVE_FAILPOINT("w.before_compute", {.layer = 3, .phase =
//   "decode"});
//
// Compiled in where the build defines CONCLAVE_FAILPOINTS (every preset but `release`); elsewhere
// the macro is an empty hit, and neither the name nor anything else of a point is in the program.
// Whether code that a point alone reaches is compiled is up to the optimizer, so it must not hold
// names of points.
//
// What happens is set by the variable CONCLAVE_FAILPOINTS, read at the first point that is reached,
// and anew by SetFailpoints (PUT /debug/failpoints of the admin listener):
//
//   CONCLAVE_FAILPOINTS="w.before_compute=sleep:200@prob=0.1,seed=7;w.after_reply=kill9@layer=2,hit=3"
//
//   NAME=ACTION[@CONDITION,...][;...]
//   actions     kill9, stop    this process gets SIGKILL or SIGSTOP, at the point
//               sleep:MS       the thread sleeps, at the point
//               error:CODE     the point's code gets an error: ENOMEM (kResourceExhausted) or a
//                              canonical code in capitals, such as UNAVAILABLE
//               oom            as error:ENOMEM
//               rst, drop      the link of the thread's CONCLAVE_FAILPOINT_LINK: resets it; makes
//                              it swallow everything from now on
//               truncate:N, flip:BYTE
//                              the point's code does it: cuts what it sends after N bytes; flips a
//                              bit of byte BYTE (modulo the length)
//   conditions  layer=N, step=N, phase=WORD   equal to what the point says of itself; a point that
//                              does not say it never matches
//               hit=N          only the N-th time that all other conditions are met, from 1
//               prob=P         with this chance, by a generator of `seed` (1)
//               seed=N         also of what the action draws
//
// A name may stand several times: the first setting whose conditions are met acts.
//
// A setting that cannot be read aborts the process at the first point: a test that silently tests
// nothing is worse.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave {

enum class FailpointAction : uint8_t {
  kNone,
  kKill9,
  kStop,
  kSleep,
  kError,
  kRst,
  kDrop,
  kTruncate,
  kFlip,
  kDup,
  kDelay,
  kStall,
  kReorder,
  kNote
};

// A connection that actions `rst` and `drop` can act on.
class FailpointLink {
 public:
  virtual ~FailpointLink() = default;
  // kRst: resets the connection. kDrop: from now on it swallows what comes and what is to go, and
  // stays open. Any thread.
  virtual void Disrupt(FailpointAction how) = 0;
};

// What a point says of itself. Views need not outlive the call.
struct FailpointContext {
  int64_t layer = -1;
  int64_t step = -1;
  std::string_view phase = {};
};

// What the point's code is to do. For kKill9, kStop, kSleep, kRst and kDrop it has been done
// already. Points that cannot do an action ignore it.
struct FailpointHit {
  FailpointAction action = FailpointAction::kNone;
  int64_t argument =
      0;  // by action: bytes, an index; milliseconds of a sleep, microseconds of what
          // the point's code holds back
  absl::StatusCode code = absl::StatusCode::kInternal;  // kError

  bool is_hit() const { return action != FailpointAction::kNone; }
  // The error of kError ("failpoint"), otherwise OK.
  absl::Status status() const;
};

// The points of one setting; the process has one, tests make their own. Any thread.
class Failpoints {
 public:
  // kInvalidArgument ("failpoint_syntax") naming the part that cannot be read.
  static absl::StatusOr<Failpoints> Parse(std::string_view setting);

  Failpoints(Failpoints&&) noexcept;
  ~Failpoints();

  // Which action the point takes now, without doing it. Counts the hit.
  FailpointHit Decide(std::string_view name, const FailpointContext& context) const;

  // How often each point acted so far, a line each in the order of the setting: "NAME TIMES".
  std::string Report() const;

 private:
  struct State;
  explicit Failpoints(State* state);
  State* state_;
};

// Decides by the process's own setting and does what can be done anywhere. Called by the macro.
FailpointHit HitFailpoint(std::string_view name, const FailpointContext& context);

// The rest is there only in a build with failpoints.

// While it lives, `rst` and `drop` of the points that its thread reaches act on the link; null: on
// none. Made by CONCLAVE_FAILPOINT_LINK.
class FailpointScope {
 public:
  explicit FailpointScope(std::shared_ptr<FailpointLink> link);
  ~FailpointScope();
  FailpointScope(const FailpointScope&) = delete;
  FailpointScope& operator=(const FailpointScope&) = delete;

 private:
  std::shared_ptr<FailpointLink> outer_;
};

// Replaces the setting of the process, with new counts; the error of Failpoints::Parse leaves the
// old one. Any thread.
absl::Status SetFailpoints(std::string_view setting);

// Failpoints::Report of the process; empty without a setting. Any thread.
std::string FailpointReport();

}  // namespace conclave

// CONCLAVE_FAILPOINT(name, {context}): an expression of type FailpointHit. A build without
// failpoints drops the arguments before the compiler sees them: when CONCLAVE_FAILPOINTS is defined
// as 1, CONCLAVE_FAILPOINT_SHIFT_1 brings a comma that moves the second choice into the first's
// place (as IS_ENABLED of Linux does), because a public header has no conditional compilation.
#define CONCLAVE_FAILPOINT_SHIFT_1 unused,
#define CONCLAVE_FAILPOINT_SECOND(first, second, ...) second
#define CONCLAVE_FAILPOINT_PICK_3(...) CONCLAVE_FAILPOINT_SECOND(__VA_ARGS__)
#define CONCLAVE_FAILPOINT_PICK_2(value)                                            \
  CONCLAVE_FAILPOINT_PICK_3(CONCLAVE_FAILPOINT_SHIFT_##value CONCLAVE_FAILPOINT_ON, \
                            CONCLAVE_FAILPOINT_OFF, unused)
#define CONCLAVE_FAILPOINT_PICK(value) CONCLAVE_FAILPOINT_PICK_2(value)
#define CONCLAVE_FAILPOINT_ON(name, ...) \
  ::conclave::HitFailpoint(name, ::conclave::FailpointContext __VA_ARGS__)
#define CONCLAVE_FAILPOINT_OFF(...) (::conclave::FailpointHit{})
#define CONCLAVE_FAILPOINT(...) CONCLAVE_FAILPOINT_PICK(CONCLAVE_FAILPOINTS)(__VA_ARGS__)

// CONCLAVE_FAILPOINT_LINK(link): a declaration, good until the end of the block; nothing, and
// `link` not evaluated, in a build without failpoints.
#define CONCLAVE_FAILPOINT_LINK_ON(link) const ::conclave::FailpointScope failpoint_scope(link)
#define CONCLAVE_FAILPOINT_LINK_OFF(...) static_assert(true)
#define CONCLAVE_FAILPOINT_LINK_2(value)                                                 \
  CONCLAVE_FAILPOINT_PICK_3(CONCLAVE_FAILPOINT_SHIFT_##value CONCLAVE_FAILPOINT_LINK_ON, \
                            CONCLAVE_FAILPOINT_LINK_OFF, unused)
#define CONCLAVE_FAILPOINT_LINK_1(value) CONCLAVE_FAILPOINT_LINK_2(value)
#define CONCLAVE_FAILPOINT_LINK(...) CONCLAVE_FAILPOINT_LINK_1(CONCLAVE_FAILPOINTS)(__VA_ARGS__)
