// What a dispatcher has counted of each worker: calls and rows, what became of them, bytes, and
// where the time of a call went. Everything only grows. Rates, means and percentiles are made by
// whoever shows them.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "conclave/base/ids.h"

namespace conclave::frontend {

// Where the time of an answered call went, in this order.
enum class DispatchStage : uint8_t {
  kSerialize,  // its rows copied and handed to the channel, by the frontend
  kNetwork,    // the round trip less the two next, there and back
  kQueue,      // waiting at the worker, as that says
  kCompute,    // its service time, as the worker says
  kCombine,    // its answer added up, by the frontend
};
inline constexpr size_t kDispatchStages = 5;
// "serialize", "network", "queue", "compute", "combine".
std::string_view NameOf(DispatchStage stage);

// Why a call had to be sent again.
enum class FailoverReason : uint8_t { kTimeout, kLinkLost, kRefused };
inline constexpr size_t kFailoverReasons = 3;
// "timeout", "link_lost", "refused".
std::string_view NameOf(FailoverReason reason);

// Upper bounds of all counts of durations here, ascending. A call through shared memory takes
// microseconds, one that had to wait for another replica seconds.
inline constexpr std::array<std::chrono::microseconds, 20> kDispatchBounds = {
    std::chrono::microseconds(2),         std::chrono::microseconds(5),
    std::chrono::microseconds(10),        std::chrono::microseconds(20),
    std::chrono::microseconds(50),        std::chrono::microseconds(100),
    std::chrono::microseconds(200),       std::chrono::microseconds(500),
    std::chrono::microseconds(1'000),     std::chrono::microseconds(2'000),
    std::chrono::microseconds(5'000),     std::chrono::microseconds(10'000),
    std::chrono::microseconds(20'000),    std::chrono::microseconds(50'000),
    std::chrono::microseconds(100'000),   std::chrono::microseconds(200'000),
    std::chrono::microseconds(500'000),   std::chrono::microseconds(1'000'000),
    std::chrono::microseconds(2'000'000), std::chrono::microseconds(5'000'000)};

struct BucketCounts {
  // [i]: durations of at most kDispatchBounds[i] and more than the bound before; the last: beyond
  // all. Their sum is the number of durations.
  std::array<uint64_t, kDispatchBounds.size() + 1> counts{};
  double sum = 0;  // seconds
};

// One worker over one carrier. Links that are lost and made again count on in the same entry; a
// worker that was first linked over another carrier has one entry for each.
struct WorkerDispatch {
  WorkerId worker;
  std::string transport;  // ExpertChannel::carrier(): "inproc", "grpc", "shm", "tcp"
  bool is_up = false;     // its link, at the last look of the dispatcher

  uint64_t calls = 0;          // sent to it: first ones, retries and hedges; probes are not counted
  uint64_t rows = 0;           // of these
  uint64_t rows_answered = 0;  // of those whose answer was combined
  uint64_t hedges = 0;         // calls that were sent to a second worker because this one was late
  uint64_t timeouts = 0;       // calls that it did not answer in time
  uint64_t link_losses = 0;    // calls that its lost link took with it
  uint64_t refusals = 0;       // calls that it answered by an error
  // Calls, and their rows, that had to be sent again because it did not answer them: of the three
  // above those that were not under way to a second worker already. A call may be divided then.
  uint64_t calls_resent = 0, rows_resent = 0;
  std::array<uint64_t, kFailoverReasons> failovers{};  // calls_resent, by reason

  // Of frames of calls and of their answers, without a CRC of the rows. Within a process nothing is
  // framed: the bytes that the frames would have.
  uint64_t bytes_dispatched = 0, bytes_combined = 0;
  // The least that `rows` and `rows_answered` need: their elements, without header, weights and
  // indices. Compare with bytes_dispatched + bytes_combined.
  uint64_t bytes_least = 0;

  // Of calls whose answer was combined.
  std::array<BucketCounts, kDispatchStages> stages{};  // by DispatchStage
  // From when it was sent to when its answer was seen. While the caller computed meanwhile, what
  // the worker says of its time and the last PING's round trip, if that is less.
  BucketCounts round_trip;
};

}  // namespace conclave::frontend
