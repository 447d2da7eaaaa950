// Distinct integer types for ids, so that a layer cannot be passed where an expert is meant.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace conclave {

template <typename Tag, typename Rep>
class Id {
 public:
  constexpr Id() = default;
  constexpr explicit Id(Rep value) : value_(value) {}

  constexpr Rep value() const { return value_; }

  friend constexpr auto operator<=>(const Id&, const Id&) = default;

 private:
  Rep value_ = 0;
};

// Index of a decoder layer, counted from 0 over all layers, dense ones included.
using LayerId = Id<struct LayerIdTag, int32_t>;
// The model's own number of an expert within its layer; never an index into what a worker holds.
using ExpertId = Id<struct ExpertIdTag, int32_t>;
using WorkerId = Id<struct WorkerIdTag, int32_t>;
// Version of a placement: term << 32 | n. It only grows.
using Epoch = Id<struct EpochTag, uint64_t>;
// One token stream of the engine, unique within a process.
using SequenceId = Id<struct SequenceIdTag, uint64_t>;

}  // namespace conclave

template <typename Tag, typename Rep>
struct std::hash<conclave::Id<Tag, Rep>> {
  size_t operator()(const conclave::Id<Tag, Rep>& id) const { return std::hash<Rep>()(id.value()); }
};
