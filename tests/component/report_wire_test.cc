// Goal: what a frontend has counted reaches its router as it is, told whole or as what changed.
// Method: figures that change at random, written by the frontend's side and read by the router's.
#include "report_wire.h"

#include <gtest/gtest.h>

#include <random>

#include "cluster.pb.h"
#include "live_picture.h"

namespace conclave {
namespace {

using live::FrontendFigures;

FrontendFigures Zeros() {
  FrontendFigures figures;
  figures.model = {"demo", "bf16", 2, {{1, 4}, {3, 2}}, 8, 6};
  figures.rows.resize(6 * live::kCellsPerExpert);
  figures.weights.resize(6 * live::kModalities);
  figures.probabilities.resize(6);
  return figures;
}

// Counts that only grow, in every field; some stay as they were.
void CountMore(std::mt19937& random, FrontendFigures& figures) {
  const auto more = [&random] { return random() % 3 == 0 ? random() % 1000 : 0; };
  for (uint64_t& rows : figures.rows) {
    rows += more();
  }
  for (std::vector<double>* sums : {&figures.weights, &figures.probabilities}) {
    for (double& sum : *sums) {
      sum += 0.1 * static_cast<double>(more());
    }
  }
  figures.running = static_cast<int32_t>(more());
  figures.waiting = static_cast<int32_t>(more());
  figures.kv = static_cast<double>(more()) / 1000;
  live::Serving& s = figures.serving;
  for (uint64_t* count : {&s.prompt_text, &s.prompt_image, &s.cached, &s.generated, &s.images,
                          &s.image_hits, &s.preemptions, &s.requests_touched, &s.rescued,
                          &s.finished[0], &s.finished[1], &s.finished[2], &s.finished[3]}) {
    *count += more();
  }
  s.ttft = {more(), more()};
  s.itl = {more()};
  s.recovery = {more(), more(), more()};
  figures.workers.clear();
  for (int32_t id = 0; id < static_cast<int32_t>(random() % 4); ++id) {
    figures.workers.push_back({2 * id,
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               more(),
                               {more(), more()}});
  }
  if (random() % 2 == 0) {
    figures.pathways[random() % 2] = {more(), more(), more(), {{{3, 1}, 9}, {{0, 0}, more()}}};
  }
}

void ExpectEqual(const FrontendFigures& a, const FrontendFigures& b) {
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.probabilities, b.probabilities);
  EXPECT_EQ(a.running, b.running);
  EXPECT_EQ(a.waiting, b.waiting);
  EXPECT_EQ(a.kv, b.kv);
  EXPECT_EQ(a.serving, b.serving);
  EXPECT_EQ(a.workers, b.workers);
  EXPECT_EQ(a.pathways, b.pathways);
}

TEST(ReportWireTest, WholeAndWhatChangedGiveTheSameFigures) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    FrontendFigures counted = Zeros();
    FrontendFigures followed;
    for (int step = 0; step < 20; ++step) {
      const FrontendFigures before = counted;
      CountMore(random, counted);
      v1::FrontendReport delta;
      frontend::ToWire(step == 0 ? nullptr : &before, counted, delta);
      EXPECT_EQ(delta.is_whole(), step == 0);
      ASSERT_EQ(router_service::ApplyReport(delta, followed), absl::OkStatus());
      ExpectEqual(followed, counted);

      v1::FrontendReport whole;
      frontend::ToWire(nullptr, counted, whole);
      FrontendFigures fresh = Zeros();
      fresh.rows[0] = 77;  // of a stream before
      ASSERT_EQ(router_service::ApplyReport(whole, fresh), absl::OkStatus());
      ExpectEqual(fresh, counted);
    }
  }
}

TEST(ReportWireTest, OfFiguresThatStayOnlyWhatIsAlwaysToldIsSent) {
  std::mt19937 random(1);
  FrontendFigures counted = Zeros();
  CountMore(random, counted);
  v1::FrontendReport report;
  frontend::ToWire(&counted, counted, report);
  EXPECT_FALSE(report.has_model());
  EXPECT_EQ(report.rows_size() + report.weights_size() + report.probabilities_size(), 0);
  EXPECT_EQ(report.pathways_size(), 0);
  EXPECT_EQ(report.workers_size(), static_cast<int>(counted.workers.size()));
  FrontendFigures followed = counted;
  ASSERT_EQ(router_service::ApplyReport(report, followed), absl::OkStatus());
  ExpectEqual(followed, counted);
}

}  // namespace
}  // namespace conclave
