// Random numbers of a simulation: splitmix64, so that a stream is one number and can be forked.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

namespace conclave::simulation {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // A stream of its own, so that what one part draws does not move the numbers of another.
  Random Fork(std::string_view name) const {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : name) {
      hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
    }
    Random fork(state_ ^ hash);
    (void)fork.Next();
    return fork;
  }

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  bool Chance(double p) { return Unit() < p; }
  // [low, high]
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  double LogUniform(double low, double high) {
    return low * std::exp(Unit() * std::log(high / low));
  }
  double Exponential(double mean) { return -mean * std::log1p(-Unit()); }

 private:
  uint64_t state_;
};

}  // namespace conclave::simulation
