// Goal: whatever happens in whatever order, no epoch falls or is told before it is durable, nothing
// is retired that is routed to (the driver checks both after every step), and once all is well
// again every expert has its replicas, workers hold what the placement says, and nothing moves any
// more.
// Method: random walks of faults and wishes from a seed, then rest. The seed is in the test's name.
#include <algorithm>
#include <random>

#include "core_driver.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

class Walk {
 public:
  // With tight memory workers have room for their share and one expert more: every move needs the
  // place that another one leaves.
  explicit Walk(uint32_t seed, bool is_tight = false) : random_(seed), driver_(Options(seed)) {
    const uint32_t num_workers = 2 + Draw(4);
    const auto num_replicas = static_cast<uint32_t>(2 * 2 * driver_.num_experts);
    const int64_t share = (num_replicas + num_workers - 1) / num_workers;
    for (uint32_t i = 0; i < num_workers; ++i) {
      TestWorker& worker = driver_.Add(std::string(1, static_cast<char>('a' + i)));
      worker.memory_experts = is_tight ? share + 1 : 8 + Draw(12);
      worker.load_time = milliseconds(20 + Draw(800));
      worker.host = "host-" + std::to_string(Draw(3));
      names_.push_back(worker.name);
    }
  }

  void Run(int num_steps) {
    for (int i = 0; i < num_steps && !::testing::Test::HasFailure(); ++i) {
      Step();
      driver_.Run(milliseconds(50 * (1 + Draw(20))));
    }
  }

  void Heal() {
    driver_.disk = absl::OkStatus();
    for (const std::string& name : names_) {
      driver_.workers[name].is_silent = false;
    }
    // Whose stream was ended comes again, more than once if need be.
    for (int i = 0; i < 4; ++i) {
      JoinAll();
      driver_.Run(milliseconds(4000));
    }
    for (const std::string& name : names_) {
      (void)driver_.Ask(DrainCommand{name, true});
    }
    for (const ExpertUnit unit : TestUnits(driver_.num_experts)) {
      (void)driver_.Ask(ReplicateCommand{unit, 0});
    }
    for (auto& [name, frontend] : driver_.frontends) {
      frontend.acks = true;
      frontend.acked = frontend.view;
      if (frontend.session.has_value() && frontend.view != nullptr) {
        driver_.Send(EpochAckEvent{*frontend.session, frontend.view->epoch});
      }
    }
    driver_.Run(milliseconds(60'000));
  }

  void CheckRest() {
    const RouterStatus status = driver_.Status();
    ASSERT_EQ(status.state, "serving");
    EXPECT_EQ(status.workers.size(), names_.size());
    EXPECT_EQ(status.plan_id, 0u);
    int64_t memory = 0;
    for (const std::string& name : names_) {
      memory += driver_.workers[name].memory_experts;
    }
    const int64_t num_units = 2 * driver_.num_experts;
    if (memory >= 2 * num_units) {
      EXPECT_EQ(status.replication_lowest, 2) << "memory of " << memory;
    } else {
      EXPECT_GE(status.replication_lowest, 1);
    }
    std::map<WorkerId, std::set<ExpertUnit>> placed;
    for (const ExpertStatus& expert : status.experts) {
      for (const WorkerId worker : expert.workers) {
        placed[worker].insert(expert.unit);
      }
    }
    for (const std::string& name : names_) {
      const TestWorker& worker = driver_.workers[name];
      std::set<ExpertUnit> held;
      for (const auto& [unit, expert] : worker.held) {
        held.insert(unit);
      }
      EXPECT_EQ(held, placed[*worker.id]) << name;
    }
    driver_.Run(milliseconds(20'000));
    EXPECT_EQ(driver_.Status().epoch, status.epoch) << "it never comes to rest";
  }

 private:
  static CoreOptions Options(uint32_t seed) {
    CoreOptions options = CoreDriver::Defaults();
    options.load_experts_max = 1 + static_cast<int32_t>(seed % 4);
    return options;
  }
  uint32_t Draw(uint32_t below) { return static_cast<uint32_t>(random_()) % below; }
  TestWorker& Any() { return driver_.workers[names_[Draw(static_cast<uint32_t>(names_.size()))]]; }
  ExpertUnit AnyUnit() {
    return Unit(Draw(2) == 0 ? 1 : 3,
                static_cast<int32_t>(Draw(static_cast<uint32_t>(driver_.num_experts))));
  }
  void JoinAll() {
    for (const std::string& name : names_) {
      TestWorker& worker = driver_.workers[name];
      if (!worker.session.has_value()) {
        driver_.Join(worker);
      }
    }
  }

  void Step() {
    TestWorker& worker = Any();
    switch (Draw(14)) {
      case 0:
        driver_.Kill(worker);
        ++worker.incarnation;
        return;
      case 1:
        worker.is_silent = true;
        return;
      case 2:
        worker.is_silent = false;
        return;
      case 3:
        driver_.Pause(milliseconds(Draw(4000)));
        return;
      case 4:
        driver_.disk = Draw(2) == 0 ? absl::UnavailableError("no space") : absl::OkStatus();
        return;
      case 5:
        (void)driver_.Ask(DrainCommand{worker.name, Draw(2) == 0});
        return;
      case 6:
        (void)driver_.Ask(ReplicateCommand{AnyUnit(), static_cast<int32_t>(Draw(4))});
        return;
      case 7:
        (void)driver_.Ask(RebalanceCommand{Draw(2) == 0});
        return;
      case 8:
        driver_.Restart(Draw(4) != 0, std::string(16, static_cast<char>('a' + Draw(6))));
        JoinAll();
        return;
      case 9: {
        const std::string name = Draw(2) == 0 ? "f" : "g";
        driver_.frontends[name].acks = Draw(3) != 0;
        driver_.AddFrontend(name);
        return;
      }
      case 10:
        for (auto& [name, frontend] : driver_.frontends) {
          if (frontend.session.has_value()) {
            const SessionId session = *frontend.session;
            frontend.session.reset();
            driver_.Send(SessionClosedEvent{session});
            return;
          }
        }
        return;
      default:
        JoinAll();
        return;
    }
  }

  std::mt19937 random_;
  CoreDriver driver_;
  std::vector<std::string> names_;
};

class CoreRandomTest : public ::testing::TestWithParam<uint32_t> {};

TEST_P(CoreRandomTest, AfterAnyFaultsTheClusterComesToRest) {
  Walk walk(GetParam());
  walk.Run(150);
  ASSERT_FALSE(HasFailure());
  walk.Heal();
  walk.CheckRest();
}

TEST_P(CoreRandomTest, AfterAnyFaultsTightMemoryIsUsedInFull) {
  Walk walk(GetParam(), /*is_tight=*/true);
  walk.Run(150);
  ASSERT_FALSE(HasFailure());
  walk.Heal();
  walk.CheckRest();
}

INSTANTIATE_TEST_SUITE_P(Seeds, CoreRandomTest, ::testing::Range(1u, 61u));

}  // namespace
}  // namespace conclave::router_service
