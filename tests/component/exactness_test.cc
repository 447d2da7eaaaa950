// Goal: the same request gives the same logits, bit by bit, however it is served: split over 1, 2
// or 4 workers, on 1 or 2 threads, alone or beside others in any phase, in chunks of any size, with
// frames or without, from reused KV blocks or not, on every ISA path of this machine.
// Method: eight questions on the demo model, greedy, through the engine stepped by hand. The first
// configuration is the reference; a set of configurations that covers every pair of axis values is
// compared with it byte for byte.
#include "exactness.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "requests.h"

namespace conclave {
namespace {

using testing::Config;
using testing::Served;

class ExactnessTest : public ::testing::TestWithParam<std::tuple<DType, kernels::Isa>> {
 protected:
  static Served Serve(kernels::Isa isa, const Config& config, int32_t num_tokens, bool again) {
    return testing::Serve(
        {testing::DemoFolder(), std::get<0>(GetParam()), isa, config, again},
        [num_tokens](cli::Assembly& model) {
          std::vector<frontend::SequenceRequest> requests;
          for (const testing::Question& question : testing::Questions()) {
            frontend::SequenceRequest request;
            request.tokens = testing::PromptIds(model, question);
            request.max_tokens = num_tokens;
            if (!question.picture.empty()) {
              request.images.push_back(testing::Features(model, question.picture));
            }
            requests.push_back(std::move(request));
          }
          return requests;
        });
  }
};

TEST_P(ExactnessTest, LogitsDoNotDependOnHowTheyAreServed) {
  const auto [dtype, isa] = GetParam();
  // The scalar path is for reference, not for speed: fewer tokens keep its share of the time in
  // bounds. q8 goes the ways of bf16 but for its products.
  const int32_t num_tokens = isa == kernels::Isa::kScalar || dtype == DType::kQ8 ? 6 : 24;
  const Served expected = Serve(isa, {}, num_tokens, false);
  ASSERT_EQ(expected.logits.size(), testing::Questions().size());
  int total = expected.num_tokens;
  std::vector<Config> configs = testing::CoveringConfigs();
  if (isa == kernels::Isa::kScalar && dtype == DType::kQ8) {
    // A minute for what the other modes show on this path; its products are compared below.
    configs.resize(3);
  }
  for (const Config& config : configs) {
    const bool again = config[3] == 1;
    const Served found = Serve(isa, config, num_tokens, again);
    total += found.num_tokens;
    testing::ExpectSame(expected, found,
                        testing::Describe(config) + (again ? ", second time" : ""));
    if (HasFatalFailure()) {
      return;
    }
  }
  RecordProperty("tokens", total);
  std::printf("%s %s: %d generated tokens with equal logits\n", std::string(NameOf(dtype)).c_str(),
              std::string(kernels::NameOf(isa)).c_str(), total);
}

TEST_P(ExactnessTest, LogitsAreThoseOfTheScalarPath) {
  const kernels::Isa isa = std::get<1>(GetParam());
  testing::ExpectSame(Serve(kernels::Isa::kScalar, {}, 4, false),
                      Serve(isa, {0, 1, 2, 1, 1}, 4, false), std::string(NameOf(isa)));
}

INSTANTIATE_TEST_SUITE_P(EveryPath, ExactnessTest,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kBf16,
                                                              DType::kQ8),
                                            ::testing::ValuesIn(testing::PathsToServe())),
                         [](const auto& param) {
                           std::string name(NameOf(std::get<0>(param.param)));
                           for (const char c : kernels::NameOf(std::get<1>(param.param))) {
                             name += c == '-' ? '_' : c;
                           }
                           return name;
                         });

}  // namespace
}  // namespace conclave
