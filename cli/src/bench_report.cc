#include "bench_report.h"

#include <algorithm>
#include <boost/json.hpp>
#include <functional>
#include <optional>

#include "table.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr double kGiga = 1e-9;

double LeastReadSeconds(const Round& round) {
  return round.read > 0 ? round.bytes / round.read : 0;
}
double LeastArithmeticSeconds(const Round& round) {
  return round.peak > 0 ? round.operations / round.peak : 0;
}

template <typename Item, typename Fn>
std::vector<double> Each(const std::vector<Item>& items, const Fn& fn) {
  std::vector<double> out;
  out.reserve(items.size());
  for (const Item& item : items) {
    out.push_back(fn(item));
  }
  return out;
}

std::vector<double> RatesOf(const BenchCase& one, double Round::*amount) {
  return Each(one.rounds, [amount](const Round& round) {
    return round.seconds > 0 ? round.*amount / round.seconds : 0.0;
  });
}

std::vector<double> SecondsOf(const BenchCase& one) {
  return Each(one.rounds, [](const Round& round) { return round.seconds; });
}

std::vector<double> TokenRatesOf(const BenchCase& one) {
  return Each(one.rounds, [&one](const Round& round) {
    return round.seconds > 0 ? static_cast<double>(one.tokens) / round.seconds : 0.0;
  });
}

std::vector<double> SharesOf(const BenchCase& one) {
  return Each(one.rounds, [&one](const Round& round) { return ShareOf(round, one.against); });
}

// "12.3 (12.1 .. 12.5)"
std::string InWords(const Spread& spread, double scale, int digits) {
  return Fixed(spread.median * scale, digits) + " (" + Fixed(spread.min * scale, digits) + " .. " +
         Fixed(spread.max * scale, digits) + ")";
}

const char* WordOf(Limit limit) { return limit == Limit::kMemory ? "memory" : "arithmetic"; }

// What a case was measured against, in its own words.
std::string BoundOf(const BenchCase& one) {
  switch (one.against) {
    case Against::kMemory:
      return WordOf(Limit::kMemory);
    case Against::kArithmetic:
      return WordOf(Limit::kArithmetic);
    case Against::kBoth:
      return one.rounds.empty() ? "" : WordOf(LimitOf(one.rounds.front()));
    case Against::kNothing:
      return "";
  }
  return "";
}

using PeakOf = std::function<std::optional<double>(const kernels::ArithmeticPeaks&)>;

struct Named {
  const char* name;
  PeakOf of;
};

const std::vector<Named>& Peaks() {
  static const std::vector<Named> peaks = {
      {"f32_fma", [](const kernels::ArithmeticPeaks& p) { return p.f32_fma; }},
      {"bf16_dot", [](const kernels::ArithmeticPeaks& p) { return p.bf16_dot; }},
      {"bf16_gemm", [](const kernels::ArithmeticPeaks& p) { return p.bf16_gemm(); }},
      {"int8_dot", [](const kernels::ArithmeticPeaks& p) { return p.int8_dot; }}};
  return peaks;
}

// Of every sample; empty where a path lacks the instruction.
std::vector<double> PeakValues(const BenchReport& report, const PeakOf& of) {
  std::vector<double> values;
  for (const BoundsSample& sample : report.bounds) {
    if (const std::optional<double> value = of(sample.peaks); value.has_value()) {
      values.push_back(*value);
    }
  }
  return values;
}

std::vector<double> ReadValues(const BenchReport& report) {
  return Each(report.bounds, [](const BoundsSample& sample) { return sample.read; });
}

json::object Values(const std::vector<double>& values) {
  const Spread spread = SpreadOf(values);
  return json::object{{"median", spread.median},
                      {"min", spread.min},
                      {"max", spread.max},
                      {"samples", json::value_from(values)}};
}

json::object Bounds(const BenchReport& report) {
  json::object bounds{{"read_bytes_per_second", report.bounds.empty()
                                                    ? json::value()
                                                    : json::value(Values(ReadValues(report)))}};
  for (const Named& peak : Peaks()) {
    const std::vector<double> values = PeakValues(report, peak.of);
    bounds[std::string(peak.name) + "_operations_per_second"] =
        values.empty() ? json::value() : json::value(Values(values));
  }
  bounds["probe_bytes"] = report.probe_bytes;
  return bounds;
}

json::object CaseObject(const BenchCase& one) {
  json::object out{{"name", one.name}, {"seconds", Values(SecondsOf(one))}};
  if (one.rows > 0) {
    out["rows"] = one.rows;
  }
  if (one.tokens > 0) {
    out["tokens"] = one.tokens;
    out["context"] = one.context;
    out["tokens_per_second"] = Values(TokenRatesOf(one));
  }
  if (one.against != Against::kNothing) {
    const auto amount = [&one](double Round::*of) {
      return Values(Each(one.rounds, [of](const Round& round) { return round.*of; }));
    };
    out["bytes"] = amount(&Round::bytes);
    out["operations"] = amount(&Round::operations);
    out["bytes_per_second"] = Values(RatesOf(one, &Round::bytes));
    out["operations_per_second"] = Values(RatesOf(one, &Round::operations));
    out["bound"] = BoundOf(one);
    const std::vector<double> shares = SharesOf(one);
    const bool is_known = std::all_of(shares.begin(), shares.end(), [](double s) { return s > 0; });
    out["share"] = is_known ? json::value(Values(shares)) : json::value();
  }
  return out;
}

std::vector<std::string> CaseRow(const BenchCase& one) {
  const auto rates = [&one](double Round::*of) {
    const Spread spread = SpreadOf(RatesOf(one, of));
    return spread.max > 0 ? Fixed(spread.median * kGiga, 1) : std::string("-");
  };
  const Spread share = SpreadOf(SharesOf(one));
  return {one.name,
          one.rows > 0 ? std::to_string(one.rows) : "-",
          one.tokens > 0 ? std::to_string(one.context) : "-",
          InWords(SpreadOf(SecondsOf(one)), 1e3, 2),
          one.tokens > 0 ? InWords(SpreadOf(TokenRatesOf(one)), 1, 2) : "-",
          rates(&Round::bytes),
          rates(&Round::operations),
          share.max > 0 ? InWords(share, 100, 1) + " % of " + BoundOf(one) : "-"};
}

}  // namespace

Spread SpreadOf(std::vector<double> values) {
  if (values.empty()) {
    return {};
  }
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

BoundsSample Larger(const BoundsSample& a, const BoundsSample& b) {
  // nullopt is less than any value.
  return {std::max(a.read, b.read),
          {.f32_fma = std::max(a.peaks.f32_fma, b.peaks.f32_fma),
           .bf16_dot = std::max(a.peaks.bf16_dot, b.peaks.bf16_dot),
           .int8_dot = std::max(a.peaks.int8_dot, b.peaks.int8_dot)}};
}

Limit LimitOf(const Round& round) {
  return LeastArithmeticSeconds(round) > LeastReadSeconds(round) ? Limit::kArithmetic
                                                                 : Limit::kMemory;
}

double ShareOf(const Round& round, Against against) {
  if (round.seconds <= 0) {
    return 0;
  }
  switch (against) {
    case Against::kMemory:
      return LeastReadSeconds(round) / round.seconds;
    case Against::kArithmetic:
      return LeastArithmeticSeconds(round) / round.seconds;
    case Against::kBoth:
      return std::max(LeastReadSeconds(round), LeastArithmeticSeconds(round)) / round.seconds;
    case Against::kNothing:
      return 0;
  }
  return 0;
}

std::string ToText(const BenchReport& report) {
  std::string out;
  const auto line = [&out](std::string name, const std::string& value) {
    name.resize(11, ' ');
    out += name + value + "\n";
  };
  line("model", report.model + " (" + report.model_type + "), " +
                    Fixed(static_cast<double>(report.num_parameters) * kGiga, 3) +
                    " B parameters, " + Fixed(static_cast<double>(report.weight_bytes) * kGiga, 3) +
                    " GB of weights in memory, " + std::string(NameOf(report.dtype)));
  line("machine", (report.cpu_model.empty() ? "unknown CPU" : report.cpu_model) + ", " +
                      std::to_string(report.num_cores) + " cores, load average " +
                      Fixed(report.load_before, 2) + " before and " + Fixed(report.load_after, 2) +
                      " after");
  line("run", std::to_string(report.threads) + " threads, isa " +
                  std::string(kernels::NameOf(report.isa)) + ", " + std::to_string(report.repeat) +
                  " rounds; median (least .. most)");
  line("build", "conclave " + report.version + ", " + report.compiler + ", " + report.build_flags);
  if (report.bounds.empty()) {
    line("bounds", "not measured");
  } else {
    line("read", InWords(SpreadOf(ReadValues(report)), kGiga, 1) + " GB/s, best way of reading " +
                     Fixed(static_cast<double>(report.probe_bytes) * kGiga, 2) + " GB");
  }
  for (const Named& peak : Peaks()) {
    if (report.bounds.empty()) {
      break;
    }
    const std::vector<double> values = PeakValues(report, peak.of);
    line(peak.name, values.empty() ? "no such instructions on this path"
                                   : InWords(SpreadOf(values), kGiga, 0) + " Gop/s");
  }
  Table table;
  table.Add({"case", "rows", "context", "ms", "tokens/s", "GB/s", "Gop/s", "share"});
  for (const BenchCase& one : report.cases) {
    table.Add(CaseRow(one));
  }
  out += "\n" + table.Text();
  for (const auto& [name, value] : report.extras) {
    out += name + " " + Fixed(value, value < 1000 ? 3 : 0) + "\n";
  }
  return out;
}

std::string ToJson(const BenchReport& report) {
  json::array cases;
  for (const BenchCase& one : report.cases) {
    cases.push_back(CaseObject(one));
  }
  json::object extras;
  for (const auto& [name, value] : report.extras) {
    extras[name] = value;
  }
  const json::object object{
      {"bench", report.bench},
      {"version", report.version},
      {"build", json::object{{"compiler", report.compiler}, {"flags", report.build_flags}}},
      {"machine", json::object{{"cpu", report.cpu_model},
                               {"cores", report.num_cores},
                               {"load_before", report.load_before},
                               {"load_after", report.load_after}}},
      {"model", json::object{{"name", report.model},
                             {"type", report.model_type},
                             {"parameters", report.num_parameters},
                             {"weight_bytes", report.weight_bytes}}},
      {"run", json::object{{"dtype", NameOf(report.dtype)},
                           {"isa", kernels::NameOf(report.isa)},
                           {"threads", report.threads},
                           {"repeat", report.repeat}}},
      {"bounds", Bounds(report)},
      {"cases", cases},
      {"extras", extras}};
  return json::serialize(object) + "\n";
}

}  // namespace conclave::cli
