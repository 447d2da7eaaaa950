// Calls that own their memory, for tests of frames and channels.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"

namespace conclave::transport {

inline FrameLimits SampleLimits(WireDtype dtype = WireDtype::kBf16) {
  FrameLimits limits;
  limits.max_rows = 16;
  limits.max_pairs = 32;
  limits.row_width = 24;
  limits.dtype = dtype;
  limits.num_layers = 8;
  limits.num_experts_max = 4;
  limits.top_k = 2;
  limits.num_models = 2;
  return limits;
}

struct SampleCall {
  std::vector<float> weights;
  std::vector<uint16_t> rows_of_pairs;
  std::vector<uint16_t> experts_of_pairs;
  AlignedBuffer rows;
  CallView view;

  // After a test changed the vectors.
  void Refresh() {
    view.pair_weight = weights;
    view.pair_row = rows_of_pairs;
    view.pair_expert = experts_of_pairs;
  }
};

// A legal call: every row has one or two pairs of distinct experts; the rows' bits are finite and
// otherwise random.
inline SampleCall MakeSampleCall(uint64_t seed, const FrameLimits& limits, uint16_t num_rows) {
  std::mt19937_64 rng(seed);
  SampleCall call;
  std::set<std::pair<uint16_t, uint16_t>> pairs;  // (expert, row): the order of a call
  for (uint16_t row = 0; row < num_rows; ++row) {
    const size_t k = 1 + rng() % limits.top_k;
    std::set<uint16_t> experts;
    while (experts.size() < k) {
      experts.insert(static_cast<uint16_t>(rng() % limits.num_experts_max));
    }
    for (const uint16_t expert : experts) {
      pairs.insert({expert, row});
    }
  }
  for (const auto& [expert, row] : pairs) {
    call.experts_of_pairs.push_back(expert);
    call.rows_of_pairs.push_back(row);
    call.weights.push_back(static_cast<float>(rng() % 1000) / 2000.0f);
  }
  const size_t row_bytes = RowBytes(num_rows, limits.row_width, limits.dtype);
  call.rows = AlignedBuffer(row_bytes);
  // Clearing the top exponent bit leaves no infinity and no NaN.
  if (limits.dtype == WireDtype::kF32) {
    for (size_t i = 0; i < row_bytes / 4; ++i) {
      call.rows.As<uint32_t>()[i] = static_cast<uint32_t>(rng()) & ~0x40000000u;
    }
  } else {
    for (size_t i = 0; i < row_bytes / 2; ++i) {
      call.rows.As<uint16_t>()[i] = static_cast<uint16_t>(rng() & ~uint64_t{0x4000});
    }
  }
  CallView& view = call.view;
  view.epoch = Epoch(rng());
  view.frontend = static_cast<uint32_t>(rng());
  view.slot = static_cast<uint32_t>(rng());
  view.seq = rng();
  view.model = static_cast<uint16_t>(rng() % limits.num_models);
  view.layer = LayerId(static_cast<int32_t>(rng() % limits.num_layers));
  view.phase = rng() % 2 == 0 ? Phase::kDecode : Phase::kPrefill;
  view.micro_batch = static_cast<uint8_t>(rng());
  view.attempt = static_cast<uint8_t>(rng());
  view.deadline_us = static_cast<uint32_t>(rng());
  view.image_rows = static_cast<uint16_t>(rng() % (num_rows + 1u));
  view.dtype = limits.dtype;
  view.row_width = limits.row_width;
  view.num_rows = num_rows;
  view.rows = {call.rows.As<std::byte>(), row_bytes};
  call.Refresh();
  return call;
}

// Exactly as many bytes as the frame has, aligned as a frame must be, so that a sanitizer sees
// every byte too far.
class FrameBytes {
 public:
  FrameBytes(const std::byte* bytes, size_t size)
      : memory_(static_cast<std::byte*>(operator new(size, std::align_val_t(kFrameAlignment)))),
        size_(size) {
    std::memcpy(memory_, bytes, size);
  }
  FrameBytes(const FrameBytes& other) : FrameBytes(other.memory_, other.size_) {}
  FrameBytes& operator=(const FrameBytes&) = delete;
  ~FrameBytes() { operator delete(memory_, std::align_val_t(kFrameAlignment)); }

  static FrameBytes OfCall(const CallView& call, bool with_payload_crc, const FrameLimits& limits) {
    AlignedBuffer room(MaxFrameBytes(limits));
    const size_t size =
        EncodeCall(call, with_payload_crc, {room.As<std::byte>(), room.size_bytes()});
    return FrameBytes(room.As<std::byte>(), size);
  }
  static FrameBytes OfReply(const CallView& call, const ReplyView& reply, bool with_payload_crc,
                            const FrameLimits& limits) {
    AlignedBuffer room(MaxFrameBytes(limits));
    const size_t size =
        EncodeReply(call, reply, with_payload_crc, {room.As<std::byte>(), room.size_bytes()});
    return FrameBytes(room.As<std::byte>(), size);
  }

  FrameBytes Prefix(size_t size) const { return FrameBytes(memory_, size); }

  std::span<const std::byte> bytes() const { return {memory_, size_}; }
  std::byte* data() { return memory_; }
  size_t size() const { return size_; }

  FrameHeader header() const {
    FrameHeader header;
    std::memcpy(&header, memory_, sizeof(header));
    return header;
  }

  // Stores `header` with the right CRC for it and the `array_bytes` after it: a peer that computes
  // CRCs, but lies.
  void Seal(FrameHeader header, size_t array_bytes) {
    header.crc = 0;
    const uint32_t of_header = Crc32c(std::as_bytes(std::span(&header, 1)));
    header.crc = Crc32c(bytes().subspan(kFrameHeaderBytes, array_bytes), of_header);
    std::memcpy(memory_, &header, sizeof(header));
  }

 private:
  std::byte* memory_;
  size_t size_;
};

}  // namespace conclave::transport
