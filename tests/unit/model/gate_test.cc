// Goal: the gate chooses and weighs experts as spec 4.3 says.
// Method: the golden rows of spec 11.1 and cases at its edges, on every ISA path.
#include "conclave/model/gate.h"

#include <gtest/gtest.h>

#include <vector>

namespace conclave::model {
namespace {

struct Chosen {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Chosen Choose(std::vector<float> logits, int32_t top_k, bool is_renormalized, kernels::Isa isa) {
  ThreadPool pool(1);
  checkpoint::MoeSpec spec;
  spec.top_k = top_k;
  spec.is_renormalized = is_renormalized;
  Chosen chosen{std::vector<int32_t>(static_cast<size_t>(top_k)),
                std::vector<float>(static_cast<size_t>(top_k))};
  const auto width = static_cast<int64_t>(logits.size());
  ChooseExperts(kernels::Context(isa, pool), spec, {logits.data(), 1, width, width},
                {chosen.experts.data(), 1, top_k, top_k}, {chosen.weights.data(), 1, top_k, top_k});
  return chosen;
}

class GateTest : public ::testing::TestWithParam<kernels::Isa> {};

TEST_P(GateTest, RowsOfTheOriginal) {
  struct Case {
    std::vector<float> logits;
    std::vector<int32_t> experts;
    std::vector<float> weights;
  };
  const Case cases[] = {
      {{1, 2, 0.5f, -1}, {1, 0}, {0.731059f, 0.268941f}},
      {{0, 0, 3, 2.5f}, {2, 3}, {0.622459f, 0.377541f}},
      {{4, -1, -1, -2}, {0, 1}, {0.993307f, 0.006693f}},  // the tie goes to the lower id
      {{0.2f, 0.1f, 0, -0.1f}, {0, 1}, {0.524979f, 0.475021f}}};
  for (const Case& c : cases) {
    const Chosen chosen = Choose(c.logits, 2, true, GetParam());
    EXPECT_EQ(chosen.experts, c.experts);
    EXPECT_NEAR(chosen.weights[0], c.weights[0], 1e-6);
    EXPECT_NEAR(chosen.weights[1], c.weights[1], 1e-6);
  }
}

TEST_P(GateTest, TopOneKeepsTheProbabilityItself) {
  const Chosen chosen = Choose({1, 2, 0.5f, -1}, 1, false, GetParam());
  EXPECT_EQ(chosen.experts[0], 1);
  EXPECT_NEAR(chosen.weights[0], 0.609460f, 1e-5);
}

TEST_P(GateTest, EqualLogitsChooseTheLowestIds) {
  const Chosen chosen = Choose({7, 7, 7, 7}, 2, true, GetParam());
  EXPECT_EQ(chosen.experts, (std::vector<int32_t>{0, 1}));
  EXPECT_FLOAT_EQ(chosen.weights[0], 0.5f);
}

TEST_P(GateTest, WeightsOfFarApartLogitsStayFinite) {
  const Chosen chosen = Choose({1000, -1000, -1000, -1000}, 2, true, GetParam());
  EXPECT_EQ(chosen.experts, (std::vector<int32_t>{0, 1}));
  EXPECT_FLOAT_EQ(chosen.weights[0], 1.0f);
  EXPECT_FLOAT_EQ(chosen.weights[1], 0.0f);
}

INSTANTIATE_TEST_SUITE_P(EveryPath, GateTest, ::testing::ValuesIn(kernels::SupportedIsas()),
                         [](const auto& param) {
                           std::string name(kernels::NameOf(param.param));
                           for (char& c : name) {
                             c = c == '-' ? '_' : c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace conclave::model
