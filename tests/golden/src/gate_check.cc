// The recorded gate tables: with the original's capacity, and, where nothing is dropped, the
// deterministic routing that is served.
#include <utility>
#include <vector>

#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/model/capacity_gate.h"
#include "conclave/model/gate.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

// One row of the file: logits of some tokens and per token its [expert, slot, weight] entries.
class GateRow {
 public:
  GateRow(const json::object& row, const kernels::Context& context, std::string name,
          Report& report)
      : row_(row), context_(context), name_(std::move(name)), report_(report) {
    const json::array& tokens = row.at("logits").as_array();
    num_rows_ = static_cast<int64_t>(tokens.size());
    num_experts_ = static_cast<int64_t>(tokens[0].as_array().size());
    for (const json::value& token : tokens) {
      for (const json::value& logit : token.as_array()) {
        logits_.push_back(logit.to_number<float>());
      }
    }
    top_k_ = row.at("k").to_number<int32_t>();
  }

  void Check() {
    ReadExpected();
    CheckCapacity();
    if (row_.at("capacity").to_number<int64_t>() >= num_rows_) {
      CheckServed();
    }
  }

 private:
  // Dense [token, expert] weights and slots: the recording lists entries by expert.
  void ReadExpected() {
    weights_.assign(logits_.size(), 0.0f);
    slots_.assign(logits_.size(), -1);
    for (int64_t t = 0; t < num_rows_; ++t) {
      for (const json::value& entry :
           row_.at("expert_slot_weight").as_array()[static_cast<size_t>(t)].as_array()) {
        const json::array& item = entry.as_array();
        const auto at = At(t, item[0].to_number<int64_t>());
        slots_[at] = item[1].to_number<int32_t>();
        weights_[at] = item[2].to_number<float>();
      }
    }
  }

  void CheckCapacity() {
    const model::CapacityRule rule{top_k_, row_.at("eval_capacity_factor").to_number<double>(),
                                   row_.at("min_capacity").to_number<int32_t>()};
    const std::string about = Str(row_.at("about")) + ": capacity";
    report_.Exact(name_, about,
                  model::ExpertCapacity(rule, num_rows_, num_experts_) ==
                      row_.at("capacity").to_number<int64_t>(),
                  std::to_string(model::ExpertCapacity(rule, num_rows_, num_experts_)));
    std::vector<float> logits = logits_;
    const absl::StatusOr<std::vector<model::ExpertSlot>> chosen =
        model::ChooseWithCapacity(context_, rule, {logits.data(), num_rows_, num_experts_});
    if (!chosen.ok()) {
      report_.Error(name_, about, MessageOf(chosen.status()));
      return;
    }
    std::vector<float> weights(logits_.size(), 0.0f);
    std::vector<int32_t> slots(logits_.size(), -1);
    for (size_t i = 0; i < chosen->size(); ++i) {
      const model::ExpertSlot& slot = (*chosen)[i];
      if (slot.expert >= 0) {
        const auto at = At(static_cast<int64_t>(i) / top_k_, slot.expert);
        slots[at] = slot.slot;
        weights[at] = slot.weight;
      }
    }
    report_.Exact(name_, about + ", slots", slots == slots_, "a slot differs");
    report_.Near(name_, about + ", weights", weights_, weights, 1e-6);
  }

  void CheckServed() {
    checkpoint::MoeSpec spec;
    spec.top_k = top_k_;
    spec.is_renormalized = top_k_ == 2;
    std::vector<int32_t> experts(static_cast<size_t>(num_rows_ * top_k_));
    std::vector<float> chosen(experts.size());
    std::vector<float> logits = logits_;
    model::ChooseExperts(context_, spec, {logits.data(), num_rows_, num_experts_},
                         {experts.data(), num_rows_, top_k_}, {chosen.data(), num_rows_, top_k_});
    std::vector<float> weights(logits_.size(), 0.0f);
    for (size_t i = 0; i < experts.size(); ++i) {
      weights[At(static_cast<int64_t>(i) / top_k_, experts[i])] = chosen[i];
    }
    report_.Near(name_, Str(row_.at("about")) + ": served", weights_, weights, 1e-6);
  }

  size_t At(int64_t token, int64_t expert) const {
    return static_cast<size_t>(token * num_experts_ + expert);
  }

  const json::object& row_;
  const kernels::Context& context_;
  const std::string name_;
  Report& report_;
  int64_t num_rows_ = 0;
  int64_t num_experts_ = 0;
  int32_t top_k_ = 0;
  std::vector<float> logits_;
  std::vector<float> weights_;
  std::vector<int32_t> slots_;  // -1: not chosen, or dropped
};

}  // namespace

void CheckGating(const std::string& root, const CheckOptions& options, Report& report) {
  const absl::StatusOr<json::value> file = ReadJson(root + "/gating.json");
  if (!file.ok()) {
    report.Error("gating", "gating.json", MessageOf(file.status()));
    return;
  }
  ThreadPool pool(options.num_threads);
  const kernels::Context context(options.isa, pool);
  int index = 0;
  for (const json::value& row : file->as_object().at("rows").as_array()) {
    GateRow(row.as_object(), context, "gating/" + std::to_string(index++), report).Check();
  }
}

}  // namespace conclave::golden
