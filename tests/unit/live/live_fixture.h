// A board on a clock that the test moves, and a small cluster to tell it of.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "conclave/live/board.h"
#include "live_reader.h"

namespace conclave::live {

inline FrontendPicture Frontend(const std::string& name, uint64_t incarnation = 1) {
  return {.id = 65536, .name = name, .incarnation = incarnation, .epoch = 1, .has_api = true};
}

// What a frontend of a model of two layers with two experts each reports: nothing counted yet.
inline FrontendFigures EmptyFigures() {
  FrontendFigures figures;
  figures.model = {.name = "demo", .dtype = "bf16", .top_k = 2, .layers = {{1, 2}, {3, 2}}};
  const size_t experts = NumExperts(figures.model.layers);
  figures.rows.resize(experts * kCellsPerExpert);
  figures.weights.resize(experts * kModalities);
  figures.probabilities.resize(experts);
  return figures;
}

// Two workers that hold every expert, one frontend.
inline ClusterPicture SmallCluster() {
  ClusterPicture picture;
  picture.epoch = 1;
  picture.term = 1;
  picture.state = "serving";
  picture.replicas_wanted = picture.replicas_lowest = 2;
  picture.layers = {{1, 2}, {3, 2}};
  for (const int32_t id : {0, 1}) {
    WorkerPicture worker;
    worker.id = id;
    worker.name = "w" + std::to_string(id);
    worker.experts = 4;
    picture.workers.push_back(worker);
  }
  picture.frontends = {Frontend("f0")};
  picture.placement = {{0, 1}, {0, 1}, {1, 0}, {1, 0}};
  return picture;
}

class BoardTest : public ::testing::Test {
 protected:
  BoardOptions Options() {
    BoardOptions options;
    options.role = "router";
    options.version = "0.1.0";
    options.bounds.ttft = {0.5, 1};
    options.admin_reason = "no --admin-key-file";
    options.now = [this] { return now_; };
    return options;
  }

  // Takes all that came into `tick_`.
  void Tick() {
    now_ += 1;
    tick_ = ParseObject(board_.Tick());
  }
  boost::json::object Snapshot() const { return ParseObject(board_.Snapshot()); }
  // Of the last tick: "kind: text" of its events.
  std::vector<std::string> Events() const {
    std::vector<std::string> events;
    if (const boost::json::value* list = tick_.if_contains("events"); list != nullptr) {
      for (const boost::json::value& event : list->as_array()) {
        events.push_back(std::string(event.at("kind").as_string()) + ": " +
                         std::string(event.at("text").as_string()));
      }
    }
    return events;
  }
  // What happens when the cluster becomes `picture`.
  std::vector<std::string> EventsOf(const ClusterPicture& picture) {
    board_.Update(picture);
    Tick();
    return Events();
  }
  // As the last snapshot has the worker; null: not at all.
  boost::json::value Worker(int32_t id) const {
    const boost::json::object picture = Snapshot();
    for (const boost::json::value& worker : picture.at("workers").as_array()) {
      if (worker.at("id").as_int64() == id) {
        return worker;
      }
    }
    return nullptr;
  }

  double now_ = 1000;
  boost::json::object tick_;
  Board board_{Options()};
};

}  // namespace conclave::live
