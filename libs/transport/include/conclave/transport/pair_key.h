// Proof that the router knows a pair of frontend and worker.
#pragma once

#include <cstdint>

namespace conclave::transport {

// The first 8 bytes, little-endian, of HMAC-SHA256 with the worker's key (8 bytes, little-endian)
// over frontend_id (4 bytes, little-endian). The router, which gave the worker its key, gives this
// to the frontend; the worker computes it for itself. Any thread.
uint64_t PairKey(uint64_t worker_key, uint32_t frontend_id);

}  // namespace conclave::transport
