// The recorded gate tables, where nothing is dropped: those are the deterministic routing that is
// served.
#include <algorithm>

#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/model/gate.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

// One row of the file: logits of some tokens and per token its [expert, slot, weight] entries.
void CheckRow(const json::object& row, const kernels::Context& context, const std::string& name,
              Report& report) {
  const json::array& tokens = row.at("logits").as_array();
  const auto num_rows = static_cast<int64_t>(tokens.size());
  const auto num_experts = static_cast<int64_t>(tokens[0].as_array().size());
  const auto top_k = row.at("k").to_number<int64_t>();
  const std::string about = Str(row.at("about"));
  // DeepSpeed drops what exceeds the capacity; the deterministic gate has none.
  if (row.at("capacity").to_number<int64_t>() < num_rows) {
    report.NotSupported(
        name, about + ": capacity below the number of tokens (the REF mode is not served)");
    return;
  }
  std::vector<float> logits;
  for (const json::value& token : tokens) {
    for (const json::value& logit : token.as_array()) {
      logits.push_back(logit.to_number<float>());
    }
  }
  checkpoint::MoeSpec spec;
  spec.top_k = static_cast<int32_t>(top_k);
  spec.is_renormalized = top_k == 2;
  std::vector<int32_t> experts(static_cast<size_t>(num_rows * top_k));
  std::vector<float> weights(experts.size());
  model::ChooseExperts(context, spec, {logits.data(), num_rows, num_experts, num_experts},
                       {experts.data(), num_rows, top_k, top_k},
                       {weights.data(), num_rows, top_k, top_k});
  // Dense [token, expert] weights on both sides: the recording lists entries by expert.
  std::vector<float> expected(static_cast<size_t>(num_rows * num_experts), 0.0f);
  std::vector<float> found(expected.size(), 0.0f);
  for (int64_t t = 0; t < num_rows; ++t) {
    for (const json::value& entry :
         row.at("expert_slot_weight").as_array()[static_cast<size_t>(t)].as_array()) {
      const json::array& item = entry.as_array();
      expected[static_cast<size_t>(t * num_experts + item[0].to_number<int64_t>())] =
          item[2].to_number<float>();
    }
    for (int64_t k = 0; k < top_k; ++k) {
      const auto at = static_cast<size_t>(t * top_k + k);
      found[static_cast<size_t>(t * num_experts + experts[at])] = weights[at];
    }
  }
  report.Near(name, about, expected, found, 1e-6);
}

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
    CheckRow(row.as_object(), context, "gating/" + std::to_string(index++), report);
  }
}

}  // namespace conclave::golden
