// Goal: a frontend's report is taken whole or not at all, and a bad field is named. Method: a good
// report with one thing made wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "cluster.pb.h"
#include "conclave/base/status.h"
#include "live_picture.h"

namespace conclave::router_service {
namespace {

using ::testing::StartsWith;

// Of a model of one layer with three experts.
v1::FrontendReport GoodReport() {
  v1::FrontendReport report;
  report.set_is_whole(true);
  v1::LiveModel& model = *report.mutable_model();
  model.set_name("demo");
  model.set_top_k(2);
  v1::MoeLayer& layer = *model.add_layers();
  layer.set_layer(2);
  layer.set_num_experts(3);
  report.add_row_cells(23);
  report.add_rows(5);
  report.add_weight_cells(5);
  report.add_weights(2.5);
  report.add_probability_cells(2);
  report.add_probabilities(1.25);
  report.set_kv(1);
  for (int i = 0; i < 4; ++i) {
    report.mutable_serving()->add_finished(7);
  }
  report.add_workers()->set_worker(4);
  for (int i = 0; i < 2; ++i) {
    v1::PathCount& path = *report.add_pathways()->add_top();
    path.add_experts(1);
    path.set_rows(3);
  }
  return report;
}

TEST(WireReportTest, AGoodReportIsTaken) {
  live::FrontendFigures figures;
  ASSERT_EQ(ApplyReport(GoodReport(), figures), absl::OkStatus());
  EXPECT_EQ(figures.model.layers, (std::vector<live::MoeLayer>{{2, 3}}));
  EXPECT_EQ(figures.rows.size(), 24u);
  EXPECT_EQ(figures.rows[23], 5u);
  EXPECT_EQ(figures.weights[5], 2.5);
  EXPECT_EQ(figures.probabilities[2], 1.25);
  EXPECT_EQ(figures.serving.finished[3], 7u);
  EXPECT_EQ(figures.workers[0].worker, 4);
  EXPECT_EQ(figures.pathways[1].top[0], (live::Path{{1}, 3}));
}

TEST(WireReportTest, WhatChangesNeedsAWholeReportInFrontOfIt) {
  v1::FrontendReport report = GoodReport();
  report.set_is_whole(false);
  live::FrontendFigures figures;
  EXPECT_EQ(MessageOf(ApplyReport(report, figures)), "report.rows: expected cells below 0");
}

TEST(WireReportTest, APeersEmptyReportIsOne) {
  live::FrontendFigures figures;
  EXPECT_EQ(ApplyReport({}, figures), absl::OkStatus());
  EXPECT_TRUE(figures.rows.empty());
}

struct BadReport {
  std::string field;
  std::function<void(v1::FrontendReport&)> spoil;
};

TEST(WireReportTest, ABadFieldIsNamedAndNothingIsTaken) {
  using Report = v1::FrontendReport;
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const auto layer = [](Report& r) { return r.mutable_model()->mutable_layers(0); };
  const BadReport cases[] = {
      {"model.name", [](Report& r) { r.mutable_model()->set_name(std::string(257, 'x')); }},
      {"model.name", [](Report& r) { r.mutable_model()->set_dtype(std::string(257, 'x')); }},
      {"model.top_k", [](Report& r) { r.mutable_model()->set_top_k(-1); }},
      {"model.top_k", [](Report& r) { r.mutable_model()->set_top_k(65); }},
      {"model.layers", [&](Report& r) { layer(r)->set_layer(-1); }},
      {"model.layers", [&](Report& r) { layer(r)->set_num_experts(0); }},
      {"model.layers", [&](Report& r) { layer(r)->set_num_experts(65'537); }},
      {"model.layers", [&](Report& r) { *r.mutable_model()->add_layers() = *layer(r); }},
      {"model.layers",
       [&](Report& r) {
         for (int i = 0; i < 4096; ++i) {
           r.mutable_model()->add_layers()->set_num_experts(1);
           r.mutable_model()->mutable_layers(i + 1)->set_layer(3 + i);
         }
       }},
      {"model.layers",
       [&](Report& r) {
         for (int i = 0; i < 3; ++i) {
           r.mutable_model()->add_layers()->set_num_experts(65'536);
           r.mutable_model()->mutable_layers(i + 1)->set_layer(3 + i);
         }
       }},
      {"model.image_rows", [](Report& r) { r.mutable_model()->set_image_rows(-1); }},
      {"model.image_rows", [](Report& r) { r.mutable_model()->set_image_columns(1025); }},
      {"rows", [](Report& r) { r.set_row_cells(0, 24); }},
      {"rows", [](Report& r) { r.add_rows(1); }},
      {"weights", [](Report& r) { r.set_weight_cells(0, 6); }},
      {"weights", [](Report& r) { r.set_weights(0, -0.5); }},
      {"weights", [](Report& r) { r.set_weights(0, kNan); }},
      {"probabilities", [](Report& r) { r.set_probability_cells(0, UINT32_MAX); }},
      {"probabilities",
       [](Report& r) { r.set_probabilities(0, std::numeric_limits<double>::infinity()); }},
      {"running", [](Report& r) { r.set_running(UINT32_MAX); }},
      {"running", [](Report& r) { r.set_waiting(UINT32_MAX); }},
      {"kv", [](Report& r) { r.set_kv(1.01); }},
      {"kv", [](Report& r) { r.set_kv(kNan); }},
      {"serving.finished", [](Report& r) { r.mutable_serving()->add_finished(1); }},
      {"serving.ttft", [](Report& r) { r.mutable_serving()->mutable_ttft()->Resize(65, 0); }},
      {"serving.itl", [](Report& r) { r.mutable_serving()->mutable_itl()->Resize(65, 0); }},
      {"serving.recovery",
       [](Report& r) { r.mutable_serving()->mutable_recovery()->Resize(65, 0); }},
      {"workers", [](Report& r) { r.add_workers()->set_worker(4); }},
      {"workers",
       [](Report& r) {
         for (int i = 0; i < 4096; ++i) {
           r.add_workers()->set_worker(5 + i);
         }
       }},
      {"workers", [](Report& r) { r.mutable_workers(0)->set_worker(-1); }},
      {"workers.seconds",
       [](Report& r) { r.mutable_workers(0)->mutable_seconds()->Resize(65, 0); }},
      {"pathways", [](Report& r) { r.mutable_pathways()->RemoveLast(); }},
      {"pathways.top", [](Report& r) { r.mutable_pathways(1)->mutable_top(0)->add_experts(1); }},
      {"pathways.top",
       [](Report& r) { r.mutable_pathways(0)->mutable_top(0)->set_experts(0, -1); }},
      {"pathways.top",
       [](Report& r) {
         for (int i = 0; i < 64; ++i) {
           r.mutable_pathways(0)->add_top()->add_experts(0);
         }
       }},
  };
  for (size_t i = 0; i < std::size(cases); ++i) {
    SCOPED_TRACE(std::to_string(i) + ": " + cases[i].field);
    v1::FrontendReport report = GoodReport();
    report.set_rows(0, 6);
    report.set_running(9);
    cases[i].spoil(report);
    live::FrontendFigures figures;
    ASSERT_EQ(ApplyReport(GoodReport(), figures), absl::OkStatus());
    const absl::Status status = ApplyReport(report, figures);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(status), "message_field");
    EXPECT_EQ(ParamOf(status), "report." + cases[i].field);
    EXPECT_THAT(MessageOf(status), StartsWith("report." + cases[i].field + ": expected "));
    EXPECT_EQ(figures.rows[23], 5u);
    EXPECT_EQ(figures.running, 0);
    EXPECT_EQ(figures.model.layers, (std::vector<live::MoeLayer>{{2, 3}}));
  }
}

}  // namespace
}  // namespace conclave::router_service
