// The table that golden_check prints: what was compared, how far it was off, and whether that
// passes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace conclave::golden {

enum class Outcome { kPass, kFail, kNotSupported };

struct Line {
  std::string name;    // the case
  std::string what;    // what was compared
  double max_abs = 0;  // largest absolute difference; 0 where equality was asked for and held
  double max_rel = 0;  // largest difference relative to the expected value's magnitude
  std::string limit;   // "exact" or the tolerance
  Outcome outcome = Outcome::kPass;
  std::string note;
};

class Report {
 public:
  // Values within `tolerance` of the expected ones, and as many of them.
  void Near(const std::string& name, const std::string& what, std::span<const float> expected,
            std::span<const float> found, double tolerance);
  // A condition of equality; `note` says what differs when it does not hold.
  void Exact(const std::string& name, const std::string& what, bool is_equal,
             const std::string& note);
  void NotSupported(const std::string& name, const std::string& why);
  // Something that should work and did not.
  void Error(const std::string& name, const std::string& what, const std::string& why);

  int num_failed() const;
  int num_passed() const;
  int num_not_supported() const;
  // Writes the table to stdout.
  void Print() const;

 private:
  std::vector<Line> lines_;
};

}  // namespace conclave::golden
