#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

namespace conclave::golden {
namespace {

const char* WordOf(Outcome outcome) {
  switch (outcome) {
    case Outcome::kPass:
      return "pass";
    case Outcome::kFail:
      return "FAIL";
    case Outcome::kNotSupported:
      return "not yet supported";
  }
  return "?";
}

int Count(const std::vector<Line>& lines, Outcome outcome) {
  return static_cast<int>(std::count_if(
      lines.begin(), lines.end(), [outcome](const Line& line) { return line.outcome == outcome; }));
}

}  // namespace

void Report::Near(const std::string& name, const std::string& what, std::span<const float> expected,
                  std::span<const float> found, double tolerance) {
  Line line;
  line.name = name;
  line.what = what;
  char limit[32];
  std::snprintf(limit, sizeof limit, "%.1e", tolerance);
  line.limit = limit;
  if (expected.size() != found.size() || expected.empty()) {
    line.outcome = Outcome::kFail;
    line.note = "expected " + std::to_string(expected.size()) + " values, found " +
                std::to_string(found.size());
    lines_.push_back(std::move(line));
    return;
  }
  bool is_within = true;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference =
        std::abs(static_cast<double>(expected[i]) - static_cast<double>(found[i]));
    // Not "difference > tolerance": a NaN must fail.
    is_within = is_within && difference <= tolerance;
    line.max_abs = std::max(line.max_abs, difference);
    line.max_rel = std::max(
        line.max_rel, difference / std::max(std::abs(static_cast<double>(expected[i])), 1e-3));
  }
  line.outcome = is_within ? Outcome::kPass : Outcome::kFail;
  lines_.push_back(std::move(line));
}

void Report::Exact(const std::string& name, const std::string& what, bool is_equal,
                   const std::string& note) {
  lines_.push_back({name, what, 0, 0, "exact", is_equal ? Outcome::kPass : Outcome::kFail,
                    is_equal ? "" : note});
}

void Report::NotSupported(const std::string& name, const std::string& why) {
  lines_.push_back({name, "", 0, 0, "", Outcome::kNotSupported, why});
}

void Report::Error(const std::string& name, const std::string& what, const std::string& why) {
  lines_.push_back({name, what, 0, 0, "", Outcome::kFail, why});
}

int Report::num_failed() const { return Count(lines_, Outcome::kFail); }
int Report::num_passed() const { return Count(lines_, Outcome::kPass); }
int Report::num_not_supported() const { return Count(lines_, Outcome::kNotSupported); }

void Report::Print() const {
  std::printf("%-28s %-34s %10s %10s %9s  %s\n", "case", "compared", "max abs", "max rel", "limit",
              "result");
  for (const Line& line : lines_) {
    if (line.limit == "exact" || line.limit.empty()) {
      std::printf("%-28s %-34s %10s %10s %9s  %s", line.name.c_str(), line.what.c_str(), "", "",
                  line.limit.c_str(), WordOf(line.outcome));
    } else {
      std::printf("%-28s %-34s %10.2e %10.2e %9s  %s", line.name.c_str(), line.what.c_str(),
                  line.max_abs, line.max_rel, line.limit.c_str(), WordOf(line.outcome));
    }
    std::printf("%s%s\n", line.note.empty() ? "" : ": ", line.note.c_str());
  }
  std::printf("%d compared equal or within tolerance, %d failed, %d not yet supported\n",
              num_passed(), num_failed(), num_not_supported());
}

}  // namespace conclave::golden
