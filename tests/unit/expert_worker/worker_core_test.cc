// Goal: a worker computes the experts of the model, and a row's bits depend on that row, its
// weights and the numeric mode alone: not on its neighbours, the split over workers, the frames,
// the threads or the ISA path. Method: recorded tiny experts; values against a reference in double
// within a bound derived from the sizes, bits against other ways of asking for the same rows.
#include "conclave/expert_worker/worker_core.h"

#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/transport/inproc_channel.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

using transport::WireDtype;

struct Mode {
  DType dtype;
  kernels::Isa isa;
};

std::vector<Mode> Modes(std::initializer_list<DType> dtypes) {
  std::vector<Mode> modes;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    for (const DType dtype : dtypes) {
      modes.push_back({dtype, isa});
    }
  }
  return modes;
}

std::string NameOfMode(const ::testing::TestParamInfo<Mode>& test) {
  std::string name =
      std::string(NameOf(test.param.dtype)) + "_" + std::string(kernels::NameOf(test.param.isa));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

class WorkerCoreTest : public ::testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
  }

  std::unique_ptr<WorkerCore> Worker(const std::vector<int32_t>& experts) {
    return LoadWorker(*checkpoint_, experts, GetParam().dtype,
                      kernels::Context(GetParam().isa, pool_));
  }
  Tokens Random(uint64_t seed, size_t num_rows) const {
    return RandomTokens(seed, num_rows, transport::WireDtypeOf(GetParam().dtype));
  }

  ThreadPool pool_{1};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
};

// token → row of the reply.
using Answers = std::map<size_t, std::vector<float>>;

Answers Ask(WorkerCore& worker, const Tokens& tokens, const std::vector<size_t>& members,
            const std::vector<int32_t>& experts, int32_t layer) {
  Answers answers;
  const auto call = MakeCall(tokens, members, experts, layer);
  if (call->members.empty()) {
    return answers;
  }
  const absl::Status status = worker.Execute(call->view, call->reply);
  EXPECT_TRUE(status.ok()) << status;
  for (size_t r = 0; r < call->members.size(); ++r) {
    answers[call->members[r]] = call->ReplyRow(r);
  }
  return answers;
}

// Equal as bits: -0 and 0 differ.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void ExpectSameBits(const Answers& a, const Answers& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [token, row] : a) {
    EXPECT_TRUE(SameBits(row, b.at(token))) << "token " << token;
  }
}

// One expert in double, and how far a correct implementation may be from it.
struct Expert {
  std::vector<float> gate, up, down;  // [F, H], [F, H], [H, F]

  struct Value {
    double y = 0;
    double error = 0;
  };

  // Bounds: a dot product of n terms in f32 errs by at most n·2^-24·Σ|w||x|. It goes through the
  // activation with slope |silu'| <= 1.1 and the product with the other factor; act kernels are
  // held to 2^-20 relative. The inner row is then rounded to the wire dtype (`unit` relative), and
  // the second product errs as the first.
  std::vector<Value> Run(const std::vector<float>& x, double unit) const {
    const size_t inner = gate.size() / kWidth;
    constexpr double kF32 = 0x1p-24;
    std::vector<Value> a(inner);
    for (size_t f = 0; f < inner; ++f) {
      double g = 0, u = 0, g_abs = 0, u_abs = 0;
      for (size_t c = 0; c < kWidth; ++c) {
        const double gx = double{gate[f * kWidth + c]} * x[c];
        const double ux = double{up[f * kWidth + c]} * x[c];
        g += gx;
        u += ux;
        g_abs += std::abs(gx);
        u_abs += std::abs(ux);
      }
      const double silu = g / (1 + std::exp(-g));
      const double g_error = kWidth * kF32 * g_abs;
      const double u_error = kWidth * kF32 * u_abs;
      a[f].y = silu * u;
      a[f].error = 1.1 * g_error * (std::abs(u) + u_error) + std::abs(silu) * u_error +
                   (unit + 0x1p-20) * std::abs(silu * u);
    }
    std::vector<Value> y(kWidth);
    for (size_t h = 0; h < kWidth; ++h) {
      double abs_sum = 0;
      for (size_t f = 0; f < inner; ++f) {
        const double w = down[h * inner + f];
        y[h].y += w * a[f].y;
        y[h].error += std::abs(w) * a[f].error;
        abs_sum += std::abs(w) * (std::abs(a[f].y) + a[f].error);
      }
      y[h].error += static_cast<double>(inner) * kF32 * abs_sum;
    }
    return y;
  }
};

Expert ReadExpert(const checkpoint::Checkpoint& checkpoint, int32_t layer, int32_t expert) {
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  const std::string prefix = checkpoint::ExpertPrefix(desc.names, layer, expert);
  const auto read = [&](const std::string& name) {
    const checkpoint::TensorView* tensor = checkpoint.Find(prefix + name + ".weight");
    EXPECT_NE(tensor, nullptr) << prefix << name;
    auto values = checkpoint::ToFloats(*tensor);
    EXPECT_TRUE(values.ok()) << values.status();
    return *std::move(values);
  };
  return {read(desc.names.ffn_gate), read(desc.names.ffn_up), read(desc.names.ffn_down)};
}

// Of int8 a bound in the worst case says nothing: ffn_test compares q8 with its parts, bit by bit.
using WorkerCoreReferenceTest = WorkerCoreTest;

TEST_P(WorkerCoreReferenceTest, AgreesWithTheReferenceWithinTheDerivedBound) {
  constexpr uint64_t kSeed = 41;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  const auto worker = Worker(AllExperts());
  const Tokens tokens = Random(kSeed, 24);
  const double unit = GetParam().dtype == DType::kF32 ? 0x1p-24 : 0x1p-8;
  double largest = 0;
  for (const int32_t layer : {0, 2}) {
    std::vector<Expert> experts;
    experts.reserve(AllExperts().size());
    for (const int32_t expert : AllExperts()) {
      experts.push_back(ReadExpert(*checkpoint_, layer, expert));
    }
    const Answers answers = Ask(*worker, tokens, AllOf(tokens), AllExperts(), layer);
    for (const auto& [token, row] : answers) {
      std::vector<Expert::Value> want(kWidth);
      for (const Choice& choice : tokens.choices[token]) {
        const std::vector<Expert::Value> y = experts[choice.expert].Run(tokens.rows[token], unit);
        for (size_t c = 0; c < kWidth; ++c) {
          const double term = choice.weight * y[c].y;
          want[c].y += term;
          // The term is rounded by its product and to the wire, the sum by its addition and to the
          // wire.
          want[c].error += choice.weight * y[c].error + 4 * unit * std::abs(term);
        }
      }
      for (size_t c = 0; c < kWidth; ++c) {
        ASSERT_NEAR(row[c], want[c].y, want[c].error + 1e-30)
            << "layer " << layer << " token " << token << " column " << c;
        largest = std::max(largest, std::abs(want[c].y) / (want[c].error + 1e-30));
      }
    }
  }
  // The bound must be far below the values, or the comparison would say nothing.
  EXPECT_GT(largest, 20.0);
}

TEST_P(WorkerCoreTest, RowsAloneEqualRowsInABatch) {
  const auto worker = Worker(AllExperts());
  const Tokens tokens = Random(1, 40);
  const Answers batch = Ask(*worker, tokens, AllOf(tokens), AllExperts(), 2);
  Answers alone;
  for (size_t token = 0; token < tokens.rows.size(); ++token) {
    alone.merge(Ask(*worker, tokens, {token}, AllExperts(), 2));
  }
  ExpectSameBits(batch, alone);
}

TEST_P(WorkerCoreTest, AnyGroupingIntoCallsGivesTheSameBits) {
  const auto worker = Worker(AllExperts());
  const Tokens tokens = Random(2, 50);
  const Answers batch = Ask(*worker, tokens, AllOf(tokens), AllExperts(), 0);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    std::vector<size_t> order = AllOf(tokens);
    std::shuffle(order.begin(), order.end(), rng);
    Answers pieces;
    for (size_t first = 0; first < order.size();) {
      const size_t count = std::min<size_t>(1 + rng() % 17, order.size() - first);
      const std::vector<size_t> members(order.begin() + static_cast<std::ptrdiff_t>(first),
                                        order.begin() + static_cast<std::ptrdiff_t>(first + count));
      pieces.merge(Ask(*worker, tokens, members, AllExperts(), 0));
      first += count;
    }
    ExpectSameBits(batch, pieces);
  }
}

// What the frontend does with the rows of two workers: wire(f32(t_a) + f32(t_b)).
Answers Combine(const Answers& a, const Answers& b, WireDtype dtype) {
  const DenormalsOff denormals_off;
  Answers sum = a;
  for (const auto& [token, row] : b) {
    const auto [it, is_new] = sum.emplace(token, row);
    if (is_new) {
      continue;
    }
    for (size_t c = 0; c < row.size(); ++c) {
      const float total = it->second[c] + row[c];
      it->second[c] = dtype == WireDtype::kF32 ? total : ToFloat(ToBf16(total));
    }
  }
  return sum;
}

TEST_P(WorkerCoreTest, EverySplitOverTwoWorkersGivesTheBitsOfOne) {
  const Tokens tokens = Random(3, 40);
  const auto whole = Worker(AllExperts());
  const Answers one = Ask(*whole, tokens, AllOf(tokens), AllExperts(), 2);
  const std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> splits = {
      {{0, 2}, {1, 3}}, {{0, 1}, {2, 3}}, {{3}, {0, 1, 2}}};
  for (const auto& [left, right] : splits) {
    const auto a = Worker(left);
    const auto b = Worker(right);
    const Answers from_a = Ask(*a, tokens, AllOf(tokens), left, 2);
    const Answers from_b = Ask(*b, tokens, AllOf(tokens), right, 2);
    ExpectSameBits(one, Combine(from_a, from_b, tokens.dtype));
    ExpectSameBits(one, Combine(from_b, from_a, tokens.dtype));
  }
}

TEST_P(WorkerCoreTest, ThreadsDoNotChangeBits) {
  const Tokens tokens = Random(4, 60);
  const auto worker = Worker(AllExperts());
  const Answers one = Ask(*worker, tokens, AllOf(tokens), AllExperts(), 0);
  ThreadPool three(3);
  const auto threaded = LoadWorker(*checkpoint_, AllExperts(), GetParam().dtype,
                                   kernels::Context(GetParam().isa, three));
  ExpectSameBits(one, Ask(*threaded, tokens, AllOf(tokens), AllExperts(), 0));
}

TEST_P(WorkerCoreTest, IsaPathsDoNotChangeBits) {
  const Tokens tokens = Random(5, 30);
  const auto worker = Worker(AllExperts());
  const auto scalar = LoadWorker(*checkpoint_, AllExperts(), GetParam().dtype,
                                 kernels::Context(kernels::Isa::kScalar, pool_));
  ExpectSameBits(Ask(*scalar, tokens, AllOf(tokens), AllExperts(), 2),
                 Ask(*worker, tokens, AllOf(tokens), AllExperts(), 2));
}

TEST_P(WorkerCoreTest, AnswersThroughTheChannelAreTheSameWithAndWithoutFrames) {
  const Tokens tokens = Random(6, 20);
  const auto worker = Worker(AllExperts());
  const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  ASSERT_TRUE(worker->Execute(call->view, call->reply).ok());
  for (const bool use_frames : {false, true}) {
    transport::InprocOptions options;
    options.limits = {.num_slots = 1,
                      .max_rows = 64,
                      .max_pairs = 128,
                      .row_width = kWidth,
                      .dtype = tokens.dtype};
    options.use_frames = use_frames;
    const auto channel = transport::MakeInprocChannel(*worker, options);
    transport::CallSlot* slot = channel->Acquire();
    std::copy(call->weights.begin(), call->weights.end(), slot->pair_weight.begin());
    std::copy(call->pair_rows.begin(), call->pair_rows.end(), slot->pair_row.begin());
    std::copy(call->pair_experts.begin(), call->pair_experts.end(), slot->pair_expert.begin());
    std::memcpy(slot->rows.data(), call->view.rows.data(), call->view.rows.size());
    const size_t pairs = call->weights.size();
    slot->call.layer = LayerId(2);
    slot->call.num_rows = call->view.num_rows;
    slot->call.pair_weight = slot->pair_weight.first(pairs);
    slot->call.pair_row = slot->pair_row.first(pairs);
    slot->call.pair_expert = slot->pair_expert.first(pairs);
    slot->call.rows = slot->rows.first(call->view.rows.size());
    ASSERT_TRUE(channel->Dispatch(slot).ok());
    const absl::Status status = channel->Await(slot);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(slot->reply.rows.size(), call->reply.rows.size());
    EXPECT_EQ(
        std::memcmp(slot->reply.rows.data(), call->reply.rows.data(), call->reply.rows.size()), 0);
    channel->Release(slot);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, WorkerCoreTest,
                         ::testing::ValuesIn(Modes({DType::kF32, DType::kBf16, DType::kQ8})),
                         NameOfMode);
INSTANTIATE_TEST_SUITE_P(Modes, WorkerCoreReferenceTest,
                         ::testing::ValuesIn(Modes({DType::kF32, DType::kBf16})), NameOfMode);

class WorkerLoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
  }

  ThreadPool pool_{1};
  kernels::Context compute_{kernels::Isa::kScalar, pool_};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
};

TEST_F(WorkerLoadTest, HoldsNoMoreThanItsExperts) {
  const auto all = LoadWorker(*checkpoint_, AllExperts(), DType::kBf16, compute_);
  const auto half = LoadWorker(*checkpoint_, {1, 3}, DType::kBf16, compute_);
  const auto none = LoadWorker(*checkpoint_, {}, DType::kBf16, compute_);
  EXPECT_EQ(half->weight_bytes() * 2, all->weight_bytes());
  EXPECT_EQ(none->weight_bytes(), 0u);
}

TEST_F(WorkerLoadTest, ReportsProgressPerUnit) {
  std::vector<std::pair<int64_t, int64_t>> steps;
  WorkerCoreOptions options;
  options.compute = compute_;
  const auto worker =
      WorkerCore::Load(*checkpoint_, Units({0, 2}), options, [&](int64_t done, int64_t total) {
        steps.push_back({done, total});
      });
  ASSERT_TRUE(worker.ok()) << worker.status();
  EXPECT_EQ(steps, (std::vector<std::pair<int64_t, int64_t>>{{1, 4}, {2, 4}, {3, 4}, {4, 4}}));
}

TEST_F(WorkerLoadTest, CountsRowsByUnitPhaseAndModality) {
  const auto worker = LoadWorker(*checkpoint_, {1, 2}, DType::kBf16, compute_);
  Tokens tokens = RandomTokens(7, 5, WireDtype::kBf16);
  // Image rows are the first two. Expert 1 sees rows 0, 1, 2, 4; expert 2 sees rows 1, 3.
  tokens.choices = {{{1, 0.5f}}, {{1, 0.5f}, {2, 0.5f}}, {{1, 0.5f}}, {{2, 0.5f}}, {{1, 0.5f}}};
  const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  call->view.image_rows = 2;
  call->view.phase = transport::Phase::kPrefill;
  ASSERT_TRUE(worker->Execute(call->view, call->reply).ok());
  call->view.phase = transport::Phase::kDecode;
  call->view.image_rows = 0;
  ASSERT_TRUE(worker->Execute(call->view, call->reply).ok());
  ASSERT_TRUE(worker->Execute(call->view, call->reply).ok());

  const std::vector<ExpertLoad> loads = worker->Loads();
  ASSERT_EQ(loads.size(), 4u);
  const auto expect = [](const ExpertLoad& load, int32_t layer, int32_t expert,
                         std::array<uint64_t, 4> rows) {
    EXPECT_EQ(load.unit, (placement::ExpertUnit{LayerId(layer), ExpertId(expert)}));
    EXPECT_EQ(load.rows[0][0], rows[0]);  // decode, text
    EXPECT_EQ(load.rows[0][1], rows[1]);  // decode, image
    EXPECT_EQ(load.rows[1][0], rows[2]);  // prefill, text
    EXPECT_EQ(load.rows[1][1], rows[3]);  // prefill, image
  };
  expect(loads[0], 0, 1, {0, 0, 0, 0});
  expect(loads[1], 0, 2, {0, 0, 0, 0});
  expect(loads[2], 2, 1, {8, 0, 2, 2});
  expect(loads[3], 2, 2, {4, 0, 1, 1});
}

TEST_F(WorkerLoadTest, ACallThatIsDeliveredTwiceCountsOnce) {
  const auto worker = LoadWorker(*checkpoint_, {1, 2}, DType::kBf16, compute_);
  Tokens tokens = RandomTokens(8, 1, WireDtype::kBf16);
  tokens.choices = {{{1, 1.0f}}};
  const auto call = MakeCall(tokens, AllOf(tokens), AllExperts(), 2);
  const auto rows_after = [&](uint32_t slot, uint64_t seq) {
    call->view.slot = slot;
    call->view.seq = seq;
    EXPECT_TRUE(worker->Execute(call->view, call->reply).ok());
    uint64_t sum = 0;
    for (const ExpertLoad& load : worker->Loads()) {
      sum += load.rows[0][0] + load.rows[0][1] + load.rows[1][0] + load.rows[1][1];
    }
    return sum;
  };
  EXPECT_EQ(rows_after(0, 5), 1u);
  EXPECT_EQ(rows_after(0, 5), 1u);
  EXPECT_EQ(rows_after(1, 5), 2u);
  EXPECT_EQ(rows_after(1, 6), 3u);
}

}  // namespace
}  // namespace conclave::expert_worker
