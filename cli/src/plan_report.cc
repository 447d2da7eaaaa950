#include "plan_report.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "cluster_report.h"
#include "conclave/observability/log.h"
#include "table.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;
using router_service::TraceEnd;
using router_service::WhatIfAdvice;
using router_service::WhatIfCourse;
using router_service::WhatIfExpert;
using router_service::WhatIfLayer;
using router_service::WhatIfReport;
using router_service::WhatIfWorker;

// Layers of the table; --json has all.
constexpr size_t kLayersShown = 64;

// Files name workers; a terminal shows them.
std::string Safe(const std::string& text) { return observability::Printable(text, 64); }

std::string Ratio(double value) { return value == 0 ? "-" : Fixed(value, 3); }

std::string Share(double value) { return Fixed(value, 2) + "x"; }

std::string Count(int32_t value) { return value < 0 ? "-" : std::to_string(value); }

const char* NameOf(TraceEnd end) {
  switch (end) {
    case TraceEnd::kStopped:
      return "stopped";
    case TraceEnd::kFull:
      return "full";
    case TraceEnd::kGoesOn:
      return "goes_on";
    case TraceEnd::kCut:
      break;
  }
  return "cut";
}

std::string Head(const WhatIfReport& report) {
  uint64_t rows = 0;
  for (const uint64_t kind : report.rows) {
    rows += kind;
  }
  std::string out =
      "recorded: " + Fixed(report.seconds, 1) + " s, " + std::to_string(report.num_windows) +
      " windows, " + std::to_string(rows) + " rows (decode " + std::to_string(report.rows[0]) +
      " text, " + std::to_string(report.rows[1]) + " image; prefill " +
      std::to_string(report.rows[2]) + " text, " + std::to_string(report.rows[3]) + " image)\n";
  if (report.end == TraceEnd::kCut) {
    out += "the file breaks off: what follows is of its whole windows\n";
  } else if (report.end == TraceEnd::kFull) {
    out += "the recorder's memory was full: the traffic went on\n";
  }
  return out + "planned: " + std::to_string(report.num_workers) + " workers, " +
         std::to_string(report.num_experts) + " experts of " + std::to_string(report.expert_bytes) +
         " bytes, " + std::to_string(report.replication) + " replicas wanted\n";
}

std::string Courses(const WhatIfReport& report) {
  Table table;
  table.Add({"", "RECORDED", "KEPT", "PLANNED"});
  const auto row = [&](const std::string& name, auto cell) {
    table.Add({name, cell(report.recorded), cell(report.kept), cell(report.planned)});
  };
  row("imbalance", [](const WhatIfCourse& course) { return Ratio(course.imbalance); });
  row("rows unserved",
      [](const WhatIfCourse& course) { return Fixed(course.unserved * 100, 2) + "%"; });
  row("replicas loaded",
      [](const WhatIfCourse& course) { return std::to_string(course.num_loads); });
  table.Add({"bytes loaded", std::to_string(report.recorded.num_loads * report.expert_bytes), "0",
             std::to_string(report.bytes_loaded)});
  table.Add({"new placements", std::to_string(report.recorded.num_rebalances), "0", "-"});
  table.Add({"rebalances", "-", "0", std::to_string(report.planned.num_rebalances)});
  std::string out = table.Text();
  if (!report.rebalanced_at.empty()) {
    out += "rebalanced at";
    for (const double at : report.rebalanced_at) {
      out += " " + Fixed(at, 0) + "s";
    }
    out += "\n";
  }
  return out;
}

std::string Layers(const WhatIfReport& report) {
  Table table;
  table.Add({"LAYER", "RECORDED", "KEPT", "PLANNED"});
  for (size_t l = 0; l < std::min(kLayersShown, report.layers.size()); ++l) {
    const WhatIfLayer& layer = report.layers[l];
    table.Add({std::to_string(layer.layer.value()), Ratio(layer.recorded), Ratio(layer.kept),
               Ratio(layer.planned)});
  }
  std::string out = table.Text();
  if (report.layers.size() > kLayersShown) {
    out += "... and " + std::to_string(report.layers.size() - kLayersShown) +
           " more layers; --json shows all\n";
  }
  return out;
}

std::string Experts(const WhatIfReport& report) {
  Table table;
  table.Add({"HOTTEST", "OF FAIR", "TEXT", "IMAGE", "ROWS", "REPLICAS"});
  for (const WhatIfExpert& expert : report.hottest) {
    table.Add({ToString(expert.unit), Share(expert.share), Share(expert.text_share),
               Share(expert.image_share), std::to_string(expert.text + expert.image),
               std::to_string(expert.num_replicas)});
  }
  return table.Text();
}

std::string Workers(const WhatIfReport& report) {
  Table table;
  table.Add({"WORKER", "EXPERTS", "LOST WITH IT", "PLANNED", "LOST WITH IT"});
  for (const WhatIfWorker& worker : report.workers) {
    table.Add({Safe(worker.name), Count(worker.recorded), Count(worker.recorded_alone),
               Count(worker.planned), Count(worker.planned_alone)});
  }
  return table.Text();
}

std::string Advice(const WhatIfReport& report) {
  if (report.advice.empty()) {
    return "no further replica would make a layer 5% more even\n";
  }
  std::string out = "more even with further replicas:\n";
  for (const WhatIfAdvice& advice : report.advice) {
    out += "  conclave cluster replicate " + ToString(advice.unit) + " " +
           std::to_string(advice.num_replicas) + "   # layer " +
           std::to_string(advice.unit.layer.value()) + ": " + Fixed(advice.before, 3) + " -> " +
           Fixed(advice.after, 3) + "\n";
  }
  return out;
}

json::object CourseJson(const WhatIfCourse& course) {
  return {{"imbalance", course.imbalance},
          {"unserved", course.unserved},
          {"loads", course.num_loads},
          {"rebalances", course.num_rebalances}};
}

}  // namespace

std::string PlanText(const WhatIfReport& report) {
  return Head(report) + "\n" + Courses(report) + "\n" + Layers(report) + "\n" + Experts(report) +
         "\n" + Workers(report) + "\n" + Advice(report);
}

std::string PlanJson(const WhatIfReport& report) {
  json::object rows;
  const char* const kinds[] = {"decode_text", "decode_image", "prefill_text", "prefill_image"};
  for (size_t kind = 0; kind < router_service::kNumRowKinds; ++kind) {
    rows[kinds[kind]] = report.rows[kind];
  }
  json::array layers;
  for (const WhatIfLayer& layer : report.layers) {
    layers.push_back(json::object{{"layer", layer.layer.value()},
                                  {"recorded", layer.recorded},
                                  {"kept", layer.kept},
                                  {"planned", layer.planned}});
  }
  json::array hottest;
  for (const WhatIfExpert& expert : report.hottest) {
    hottest.push_back(json::object{{"layer", expert.unit.layer.value()},
                                   {"expert", expert.unit.expert.value()},
                                   {"text", expert.text},
                                   {"image", expert.image},
                                   {"share", expert.share},
                                   {"text_share", expert.text_share},
                                   {"image_share", expert.image_share},
                                   {"replicas", expert.num_replicas}});
  }
  json::array workers;
  for (const WhatIfWorker& worker : report.workers) {
    workers.push_back(json::object{{"name", worker.name},
                                   {"recorded", worker.recorded},
                                   {"recorded_alone", worker.recorded_alone},
                                   {"planned", worker.planned},
                                   {"planned_alone", worker.planned_alone}});
  }
  json::array advice;
  for (const WhatIfAdvice& one : report.advice) {
    advice.push_back(json::object{{"layer", one.unit.layer.value()},
                                  {"expert", one.unit.expert.value()},
                                  {"replicas", one.num_replicas},
                                  {"before", one.before},
                                  {"after", one.after}});
  }
  json::array rebalanced_at(report.rebalanced_at.begin(), report.rebalanced_at.end());
  json::object planned = CourseJson(report.planned);
  planned["bytes"] = report.bytes_loaded;
  planned["rebalanced_at"] = std::move(rebalanced_at);
  return json::serialize(json::object{{"seconds", report.seconds},
                                      {"windows", report.num_windows},
                                      {"end", NameOf(report.end)},
                                      {"rows", std::move(rows)},
                                      {"workers_planned", report.num_workers},
                                      {"experts", report.num_experts},
                                      {"expert_bytes", report.expert_bytes},
                                      {"replicas_wanted", report.replication},
                                      {"recorded", CourseJson(report.recorded)},
                                      {"kept", CourseJson(report.kept)},
                                      {"planned", std::move(planned)},
                                      {"layers", std::move(layers)},
                                      {"hottest", std::move(hottest)},
                                      {"workers", std::move(workers)},
                                      {"advice", std::move(advice)}}) +
         "\n";
}

}  // namespace conclave::cli
