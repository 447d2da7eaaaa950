// Goal: whoever takes a snapshot and all deltas behind it holds what the next snapshot says, and a
// cluster in which nothing happens costs next to nothing. Method: a reader as the page has it,
// beside a board whose cluster changes at random.
#include "conclave/live/board.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "live_fixture.h"

namespace conclave::live {
namespace {

namespace json = boost::json;

// Changes one thing of a cluster and of what its frontends have counted.
class RandomCluster {
 public:
  explicit RandomCluster(uint32_t seed) : random_(seed) {}

  void Step(Board& board) {
    WorkerPicture* worker =
        picture.workers.empty() ? nullptr : &picture.workers[Pick(picture.workers.size())];
    switch (Pick(8)) {
      case 0:
        if (worker != nullptr) {
          worker->state = static_cast<WorkerState>(Pick(5));
          worker->heartbeat_age = 0.1 * static_cast<double>(Pick(30));
        }
        break;
      case 1:
        Replace();
        break;
      case 2:
        if (worker != nullptr) {
          worker->busy = 0.01 * static_cast<double>(Pick(100));
          worker->loading = static_cast<int32_t>(Pick(3));
          worker->is_distrusted = Pick(4) == 0;
        }
        break;
      case 3:
        ++picture.epoch;
        picture.placement[Pick(4)] = std::vector<int32_t>(Pick(2), 1);
        picture.replicas_lowest = static_cast<int32_t>(Pick(3));
        break;
      case 4:
        picture.frontends.assign(Pick(3), Frontend("f0", Pick(3)));
        break;
      default:
        Count();
        board.Report("f" + std::to_string(Pick(2)), Pick(3), figures);
    }
    board.Update(picture);
  }

  ClusterPicture picture = SmallCluster();
  FrontendFigures figures = EmptyFigures();

 private:
  size_t Pick(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  // A worker leaves, or one comes (back).
  void Replace() {
    const auto id = static_cast<int32_t>(Pick(4));
    auto& workers = picture.workers;
    const auto it = std::find_if(workers.begin(), workers.end(),
                                 [id](const WorkerPicture& w) { return w.id >= id; });
    if (it != workers.end() && it->id == id) {
      workers.erase(it);
      return;
    }
    WorkerPicture worker;
    worker.id = id;
    worker.name = "w" + std::to_string(id);
    workers.insert(it, worker);
  }
  void Count() {
    figures.rows[Pick(figures.rows.size())] += Pick(100);
    figures.weights[Pick(figures.weights.size())] += 0.125 * static_cast<double>(Pick(10));
    figures.probabilities[Pick(figures.probabilities.size())] +=
        0.01 * static_cast<double>(Pick(9));
    figures.running = static_cast<int32_t>(Pick(9));
    ++figures.serving.finished[Pick(4)];
    figures.serving.ttft.resize(3);
    ++figures.serving.ttft[Pick(3)];
    figures.workers.resize(1);
    figures.workers[0].calls_resent += Pick(2);
    figures.workers[0].seconds = {1, Pick(9)};
    figures.pathways[Pick(2)].top = {{{1, 0}, Pick(50)}};
  }

  std::mt19937 random_;
};

TEST_F(BoardTest, ASnapshotAndTheDeltasBehindItAreTheNextSnapshot) {
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Board board(Options());
    RandomCluster cluster(seed);
    (void)board.Tick();
    LiveReader reader(board.Snapshot());
    for (int step = 0; step < 150; ++step) {
      now_ += step % 40 == 0 ? 400 : 1;  // long enough for the dead to be forgotten
      cluster.Step(board);
      reader.Apply(board.Tick());
      ASSERT_EQ(reader.picture(), ParseObject(board.Snapshot())) << "step " << step;
    }
  }
}

TEST_F(BoardTest, OfAQuietClusterADeltaSaysItsNumberAndTheTime) {
  ClusterPicture picture = SmallCluster();
  board_.Update(picture);
  board_.Report("f0", 1, EmptyFigures());
  Tick();
  for (int i = 1; i <= 3; ++i) {
    picture.placement_age += 1;
    picture.workers[0].heartbeat_age = 0.1 * i;
    picture.workers[0].busy = 0.001 * i;
    board_.Update(picture);
    board_.Report("f0", 1, EmptyFigures());
    now_ += 1;
    EXPECT_EQ(board_.Tick(), R"({"seq":)" + std::to_string(1 + i) + R"(,"time":)" +
                                 std::to_string(static_cast<int>(now_)) + "}");
  }
}

TEST_F(BoardTest, BeforeAnythingIsKnownTheSnapshotHasAllItsKeys) {
  Tick();
  const json::object picture = Snapshot();
  for (const char* key :
       {"schema",  "seq",      "time",      "started",   "role",      "version", "model",
        "cluster", "workers",  "frontends", "placement", "rows",      "weights", "probabilities",
        "serving", "pathways", "bounds",    "events",    "incidents", "admin"}) {
    EXPECT_TRUE(picture.contains(key)) << key;
  }
  EXPECT_EQ(picture.size(), 20u);
  EXPECT_TRUE(picture.at("model").is_null());
  EXPECT_EQ(picture.at("started"), 1000);
  EXPECT_EQ(picture.at("bounds").at("ttft"), (json::array{0.5, 1}));
  EXPECT_EQ(json::serialize(picture.at("admin")),
            R"({"is_enabled":false,"reason":"no --admin-key-file"})");
}

TEST_F(BoardTest, TheClusterKnowsTheLayersBeforeAFrontendNamesTheModel) {
  board_.Update(SmallCluster());
  Tick();
  EXPECT_EQ(json::serialize(Snapshot().at("model").at("layers")),
            R"([{"layer":1,"experts":2},{"layer":3,"experts":2}])");
  EXPECT_EQ(Snapshot().at("rows").as_array().size(), 4 * kCellsPerExpert);
  LiveReader reader(board_.Snapshot());
  FrontendFigures figures = EmptyFigures();
  figures.model.image_rows = figures.model.image_columns = 8;
  figures.rows[5] = 7;
  board_.Report("f0", 1, figures);
  reader.Apply(board_.Tick());
  EXPECT_EQ(reader.picture(), Snapshot());
  EXPECT_EQ(reader.picture().at("model").at("name"), "demo");
  EXPECT_EQ(json::serialize(reader.picture().at("model").at("image")), R"({"rows":8,"columns":8})");
  EXPECT_EQ(reader.picture().at("rows").at(5), 7);
}

TEST_F(BoardTest, WorkersHaveTheStateThatTheyAreTold) {
  using enum WorkerState;
  for (const auto& [state, name] :
       {std::pair(kJoining, "joining"), std::pair(kLive, "live"), std::pair(kSuspect, "suspect"),
        std::pair(kDraining, "draining"), std::pair(kDrained, "drained")}) {
    ClusterPicture picture = SmallCluster();
    picture.workers[1].state = state;
    board_.Update(picture);
    Tick();
    EXPECT_EQ(Worker(1).at("state"), name);
  }
}

TEST_F(BoardTest, WhoIsGoneStaysInTheListForAQuarterOfAnHour) {
  ClusterPicture picture = SmallCluster();
  picture.workers[0].state = WorkerState::kDrained;
  board_.Update(picture);
  Tick();
  picture.workers.clear();
  board_.Update(picture);
  Tick();
  EXPECT_EQ(Worker(0).at("state"), "left");
  EXPECT_EQ(Worker(1).at("state"), "dead");
  EXPECT_EQ(Worker(1).at("experts"), 0);
  now_ += 15 * 60 - 2;
  Tick();
  EXPECT_TRUE(Worker(1).is_object());
  now_ += 1;
  Tick();
  EXPECT_TRUE(Worker(1).is_null());
  EXPECT_EQ(json::serialize(tick_.at("workers_gone")), "[0,1]");
  EXPECT_EQ(board_.WorkerName(1), "");
}

TEST_F(BoardTest, AWorkerThatComesBackIsThereOnce) {
  ClusterPicture picture = SmallCluster();
  board_.Update(picture);
  const std::vector<WorkerPicture> all = picture.workers;
  picture.workers.pop_back();
  board_.Update(picture);
  EXPECT_EQ(board_.WorkerName(1), "w1");
  picture.workers = all;
  board_.Update(picture);
  Tick();
  EXPECT_EQ(Snapshot().at("workers").as_array().size(), 2u);
  EXPECT_EQ(Worker(1).at("state"), "live");
}

TEST_F(BoardTest, ThePlacementAloneIsOfTheSameTick) {
  board_.Update(SmallCluster());
  Tick();
  const json::object placement = ParseObject(board_.PlacementJson());
  for (const char* key : {"model", "cluster", "workers", "placement", "seq", "time"}) {
    EXPECT_EQ(placement.at(key), Snapshot().at(key)) << key;
  }
  EXPECT_EQ(json::serialize(placement.at("placement")),
            R"({"epoch":1,"experts":[[0,1],[0,1],[1,0],[1,0]]})");
  EXPECT_EQ(placement.at("cluster").at("experts_served"), 4);
  EXPECT_EQ(placement.at("cluster").at("experts_total"), 4);
}

TEST_F(BoardTest, AStateAloneChangesNoMember) {
  board_.Update(SmallCluster());
  Tick();
  board_.SetState("standby", "another router leads");
  Tick();
  EXPECT_EQ(tick_.size(), 3u);
  EXPECT_EQ(tick_.at("cluster").at("state"), "standby");
  EXPECT_EQ(tick_.at("cluster").at("blocked"), "another router leads");
}

}  // namespace
}  // namespace conclave::live
