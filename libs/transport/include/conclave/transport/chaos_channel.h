// A link on which calls and answers are lost, late, stuck or overtaken, on purpose, whatever
// carries it. In a build without failpoints there is no such link.
//
// What happens is said by two failpoints (base/failpoint.h), which draw from their seeds, so that
// the same calls in the same order meet the same faults:
//
//   l.call     when a call is dispatched
//   l.reply    when the answer to a call, a refusal too, has come
//
//     drop        it never arrives
//     delay:MS    it alone is late
//     reorder:MS  it is held until the next one of its kind on this link has passed it, MS at most
//     stall:MS    it and all behind it on this link wait, and go on in their order
//     error:CODE  l.call: Dispatch fails with it
//
// Damage and repetition strike the frames themselves, inside the channels that have some (inproc
// with frames, grpc, ucx), so that what a peer's parser and its memory of calls make of them is the
// real thing:
//
//   l.call_frame   flip, truncate, dup: the frame of a call, before it is sent
//   l.reply_frame  likewise the frame of an answer, before it is parsed
//
// A bit is flipped only where some check of the frame covers it: with a payload CRC
// (PairTerms::has_payload_crc) anywhere, else not in the rows, which the network below protects.
//
// Three points only count, with the action `note`: l.overtaken (a call or an answer that was held
// by `reorder` has been passed), l.late_reply (an answer that nobody waited for was dropped),
// l.bad_frame (a frame was refused by the frontend's parser).
#pragma once

#include <memory>

#include "conclave/base/clock.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

// The channel with faults on its way, or in a build without failpoints the channel itself. `bell`,
// which is rung when something that was held goes on, and `clock`, by which it is held, outlive it.
// The contract of ExpertChannel holds as before: a call that is lost is under way until its caller
// gives it up. Await needs the machine's clock.
std::unique_ptr<ExpertChannel> WithChaos(std::unique_ptr<ExpertChannel> channel, Doorbell& bell,
                                         const Clock& clock);

}  // namespace conclave::transport
