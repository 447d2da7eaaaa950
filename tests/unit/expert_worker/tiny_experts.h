// The experts of a recorded tiny checkpoint (4 experts in layers 0 and 2, H = 64, F = 96, gated
// SiLU, bf16), workers over subsets of them, and calls to send them.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/worker_core.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/rows.h"
#include "gtest/gtest.h"

namespace conclave::expert_worker {

inline constexpr int64_t kWidth = 64;
inline constexpr char kTinyCheckpoint[] =
    CONCLAVE_SOURCE_DIR "/tests/golden/data/cases/stablelm-clip/checkpoint";

inline std::unique_ptr<checkpoint::Checkpoint> OpenTiny(
    const std::string& folder = kTinyCheckpoint) {
  auto opened = checkpoint::Checkpoint::Open(folder);
  EXPECT_TRUE(opened.ok()) << opened.status();
  return opened.ok() ? *std::move(opened) : nullptr;
}

inline std::vector<placement::ExpertUnit> Units(const std::vector<int32_t>& experts) {
  std::vector<placement::ExpertUnit> units;
  for (const int32_t layer : {0, 2}) {
    for (const int32_t expert : experts) {
      units.push_back({LayerId(layer), ExpertId(expert)});
    }
  }
  return units;
}

// A worker that holds `experts` of both layers.
inline std::unique_ptr<WorkerCore> LoadWorker(const checkpoint::Checkpoint& checkpoint,
                                              const std::vector<int32_t>& experts, DType dtype,
                                              const kernels::Context& compute,
                                              uint16_t max_rows = 64) {
  WorkerCoreOptions options;
  options.dtype = dtype;
  options.compute = compute;
  options.max_rows = max_rows;
  options.max_pairs = static_cast<uint16_t>(2 * max_rows);
  auto worker = WorkerCore::Load(checkpoint, Units(experts), options, nullptr);
  EXPECT_TRUE(worker.ok()) << worker.status();
  return worker.ok() ? *std::move(worker) : nullptr;
}

struct Choice {
  uint16_t expert;
  float weight;
};

// Tokens as the gate leaves them: a row and its experts, in no order of a call.
struct Tokens {
  transport::WireDtype dtype = transport::WireDtype::kBf16;
  std::vector<std::vector<float>> rows;  // already rounded to `dtype`
  std::vector<std::vector<Choice>> choices;
};

inline Tokens RandomTokens(uint64_t seed, size_t num_rows, transport::WireDtype dtype) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(0.05f, 0.95f);
  Tokens tokens;
  tokens.dtype = dtype;
  for (size_t r = 0; r < num_rows; ++r) {
    std::vector<float> row(kWidth);
    for (float& x : row) {
      x = normal(rng);
      x = dtype == transport::WireDtype::kBf16 ? ToFloat(ToBf16(x)) : x;
    }
    const auto first = static_cast<uint16_t>(rng() % 4);
    const auto second = static_cast<uint16_t>((first + 1 + rng() % 3) % 4);
    const float weight = uniform(rng);
    tokens.rows.push_back(row);
    // One row in eight has a single expert, as with top-1.
    if (rng() % 8 == 0) {
      tokens.choices.push_back({{first, weight}});
    } else {
      tokens.choices.push_back({{first, weight}, {second, 1.0f - weight}});
    }
  }
  return tokens;
}

// A call and the memory behind it: the rows of `tokens` listed in `members` that choose an expert
// of `experts`.
struct OwnedCall {
  std::vector<float> weights;
  std::vector<uint16_t> pair_rows;
  std::vector<uint16_t> pair_experts;
  AlignedBuffer rows;
  AlignedBuffer reply_rows;
  std::vector<size_t> members;  // token of each row of the call
  transport::CallView view;
  transport::ReplyView reply;

  std::vector<float> ReplyRow(size_t row) const {
    std::vector<float> out(kWidth);
    for (size_t c = 0; c < out.size(); ++c) {
      const size_t at = row * kWidth + c;
      out[c] = view.dtype == transport::WireDtype::kF32 ? reply_rows.As<float>()[at]
                                                        : ToFloat(reply_rows.As<Bf16>()[at]);
    }
    return out;
  }
};

inline std::unique_ptr<OwnedCall> MakeCall(const Tokens& tokens, const std::vector<size_t>& members,
                                           const std::vector<int32_t>& experts, int32_t layer) {
  auto call = std::make_unique<OwnedCall>();
  const auto is_sent = [&experts](const Choice& choice) {
    return std::find(experts.begin(), experts.end(), choice.expert) != experts.end();
  };
  for (const size_t token : members) {
    if (std::any_of(tokens.choices[token].begin(), tokens.choices[token].end(), is_sent)) {
      call->members.push_back(token);
    }
  }
  for (uint16_t expert = 0; expert < 4; ++expert) {
    for (size_t r = 0; r < call->members.size(); ++r) {
      for (const Choice& choice : tokens.choices[call->members[r]]) {
        if (choice.expert == expert && is_sent(choice)) {
          call->weights.push_back(choice.weight);
          call->pair_rows.push_back(static_cast<uint16_t>(r));
          call->pair_experts.push_back(expert);
        }
      }
    }
  }
  const size_t num_rows = call->members.size();
  const size_t bytes = transport::RowBytes(num_rows, kWidth, tokens.dtype);
  call->rows = AlignedBuffer(bytes);
  call->reply_rows = AlignedBuffer(bytes);
  for (size_t r = 0; r < num_rows; ++r) {
    for (size_t c = 0; c < kWidth; ++c) {
      const float x = tokens.rows[call->members[r]][c];
      if (tokens.dtype == transport::WireDtype::kF32) {
        call->rows.As<float>()[r * kWidth + c] = x;
      } else {
        call->rows.As<Bf16>()[r * kWidth + c] = ToBf16(x);
      }
    }
  }
  transport::CallView& view = call->view;
  view.layer = LayerId(layer);
  view.dtype = tokens.dtype;
  view.row_width = kWidth;
  view.num_rows = static_cast<uint16_t>(num_rows);
  view.pair_weight = call->weights;
  view.pair_row = call->pair_rows;
  view.pair_expert = call->pair_experts;
  view.rows = {call->rows.As<std::byte>(), bytes};
  call->reply.rows = {call->reply_rows.As<std::byte>(), bytes};
  return call;
}

inline std::vector<size_t> AllOf(const Tokens& tokens) {
  std::vector<size_t> members(tokens.rows.size());
  for (size_t i = 0; i < members.size(); ++i) {
    members[i] = i;
  }
  return members;
}

inline std::vector<int32_t> AllExperts() { return {0, 1, 2, 3}; }

}  // namespace conclave::expert_worker
