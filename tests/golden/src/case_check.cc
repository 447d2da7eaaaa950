// A recorded checkpoint: everything that the original computes on its prompts, in f32.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "assembly.h"
#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/model/sampler.h"
#include "conclave/text/prompt_template.h"
#include "pictures.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

using model::GateChoice;

struct GateRecord {
  std::vector<float> logits, probabilities, weights;
  std::vector<int32_t> experts;
};

template <typename T>
void Append(std::vector<T>& out, MatView<const T> rows) {
  for (int64_t r = 0; r < rows.rows; ++r) {
    out.insert(out.end(), rows.Row(r), rows.Row(r) + rows.cols);
  }
}

// E · Σ_e F_e · G_e with F_e the share of first choices and G_e the mean probability (spec 4.4).
float BalanceLoss(const GateRecord& gate, size_t top_k) {
  const size_t num_rows = gate.experts.size() / top_k;
  const size_t num_experts = gate.probabilities.size() / num_rows;
  double sum = 0;
  for (size_t e = 0; e < num_experts; ++e) {
    double first = 0;
    double mean = 0;
    for (size_t r = 0; r < num_rows; ++r) {
      first += gate.experts[r * top_k] == static_cast<int32_t>(e) ? 1.0 : 0.0;
      mean += static_cast<double>(gate.probabilities[r * num_experts + e]);
    }
    sum += first * mean / static_cast<double>(num_rows * num_rows);
  }
  return static_cast<float>(sum * static_cast<double>(num_experts));
}

class StepRecorder : public model::StepObserver {
 public:
  void OnHidden(int32_t layer, MatView<const float> hidden_rows) override {
    Append(hidden[layer], hidden_rows);
  }
  void OnGate(int32_t layer, MatView<const float> logits, MatView<const float> probabilities,
              const GateChoice& choice) override {
    GateRecord& gate = gates[layer];
    Append(gate.logits, logits);
    Append(gate.probabilities, probabilities);
    Append(gate.experts, choice.experts);
    Append(gate.weights, choice.weights);
  }
  void OnFinalNorm(MatView<const float> normed) override { Append(final_norm, normed); }

  std::map<int32_t, std::vector<float>> hidden;
  std::map<int32_t, GateRecord> gates;
  std::vector<float> final_norm;
};

class VisionRecorder : public model::VisionObserver {
 public:
  void OnHidden(int32_t /*index*/, MatView<const float> rows) override { Append(hidden, rows); }
  void OnFeatures(MatView<const float> rows) override { Append(features, rows); }

  std::vector<float> hidden, features;
};

class CaseCheck {
 public:
  CaseCheck(const std::string& folder, const std::string& images, const CheckOptions& options,
            Report& report)
      : folder_(folder),
        images_(images),
        options_(options),
        report_(report),
        pool_(options.num_threads) {}

  void Run();

 private:
  absl::Status Load();
  void CheckPrompt(const json::object& prompt);
  // Input rows of a prompt: embeddings with pictures spliced in. Checks the vision path on the way.
  std::optional<std::vector<float>> BuildInput(const std::string& name, const json::object& prompt,
                                               std::vector<bool>& is_image);
  // As the engine has it with EmbeddingScaling::kReference.
  static bool IsScaled(bool has_images, bool is_prefill) { return !has_images || !is_prefill; }
  std::optional<std::vector<float>> CheckVision(const std::string& name,
                                                const json::object& prompt);
  void CheckPrefill(const std::string& name, const std::vector<float>& input,
                    const std::vector<bool>& is_image);
  void CheckGreedy(const std::string& name, const json::object& prompt,
                   const std::vector<float>& input, const std::vector<bool>& is_image);
  // The recording's batch: its prompts as sequences of one step.
  void CheckBatch(const json::object& batch);
  void CheckTokens(const std::string& name, const json::object& prompt);
  void CheckGates(const std::string& prefix, const std::string& name, const StepRecorder& seen,
                  bool with_logits);

  absl::StatusOr<MatView<const float>> Step(const float* input, const std::vector<bool>& is_image,
                                            int32_t first, int32_t count, bool all_logits,
                                            bool is_prefill, model::KvPool& kv,
                                            model::StepObserver* observer);
  model::KvPool MakePool(int32_t length) const;

  // Compares when the recording has the tensor.
  void Near(const std::string& name, const std::string& tensor, const std::string& tolerance,
            std::span<const float> found);
  double Tolerance(const std::string& key) const { return tolerances_.at(key).to_number<double>(); }

  const std::string folder_;
  const std::string images_;
  const CheckOptions options_;
  Report& report_;
  ThreadPool pool_;
  std::string id_;
  json::object case_;
  json::object tolerances_;
  observability::Metrics metrics_;
  std::unique_ptr<cli::Membership> membership_;  // outlives the dispatcher, which uses its links
  std::unique_ptr<cli::Assembly> model_;
  TensorFile expected_;
  std::vector<int32_t> block_table_;
  struct Input {
    std::vector<float> rows;
    std::vector<bool> is_image;
  };
  std::map<std::string, Input> inputs_;  // by prompt
};

absl::Status CaseCheck::Load() {
  int32_t num_rows = 0;
  for (const json::value& prompt : case_.at("prompts").as_array()) {
    num_rows += prompt.as_object().at("length").to_number<int32_t>();
  }
  CONCLAVE_ASSIGN_OR_RETURN(model_,
                            cli::Assembly::Open(folder_ + "/" + Str(case_.at("checkpoint"))));
  cli::AssemblyOptions load;
  load.dtype = DType::kF32;
  load.compute = kernels::Context(options_.isa, pool_);
  load.num_workers = options_.num_workers;
  load.use_frames = true;
  load.max_rows = num_rows;
  load.max_logit_rows = num_rows;
  if (options_.cluster.has_value()) {
    cli::EmbeddedOptions joining;
    joining.model_dir = folder_ + "/" + Str(case_.at("checkpoint"));
    joining.dtype = load.dtype;
    joining.isa = options_.isa;
    membership_ = std::make_unique<cli::Membership>(*options_.cluster, options_.tls);
    CONCLAVE_RETURN_IF_ERROR(membership_->Join(joining, metrics_));
    load.links = joining.links;
  }
  CONCLAVE_RETURN_IF_ERROR(model_->Load(load, nullptr));
  if (membership_ != nullptr) {
    CONCLAVE_RETURN_IF_ERROR(membership_->WaitForPlacement());
  }
  CONCLAVE_ASSIGN_OR_RETURN(expected_, TensorFile::Open(folder_ + "/expected.safetensors"));
  return absl::OkStatus();
}

void CaseCheck::Run() {
  const absl::StatusOr<json::value> file = ReadJson(folder_ + "/case.json");
  if (!file.ok()) {
    report_.Error(folder_, "case.json", MessageOf(file.status()));
    return;
  }
  case_ = file->as_object();
  id_ = Str(case_.at("id"));
  tolerances_ = case_.at("tolerance").as_object();
  if (const absl::Status status = Load(); !status.ok()) {
    report_.Error(id_, "load", status.ToString());
    return;
  }
  report_.Exact(id_, "vocabulary rows, tokenizer length",
                model_->desc().vocab_rows == case_.at("vocab_rows").to_number<int32_t>() &&
                    model_->tokenizer->size() == case_.at("tokenizer_length").to_number<int32_t>(),
                "found " + std::to_string(model_->desc().vocab_rows) + ", " +
                    std::to_string(model_->tokenizer->size()));
  for (const json::value& prompt : case_.at("prompts").as_array()) {
    CheckPrompt(prompt.as_object());
  }
  for (const json::value& batch : case_.at("batches").as_array()) {
    CheckBatch(batch.as_object());
  }
}

void CaseCheck::CheckBatch(const json::object& batch) {
  const std::string name = Str(batch.at("name"));
  const TensorFile::Tensor* expected_norm = expected_.Find(name + ".final_norm");
  const TensorFile::Tensor* expected_logits = expected_.Find(name + ".last_logits");
  if (expected_norm == nullptr || expected_logits == nullptr) {
    return;
  }
  const auto dim = static_cast<size_t>(model_->desc().hidden_dim);
  const auto padded = static_cast<size_t>(expected_norm->shape[1]);
  const std::vector<float> padded_norm = expected_norm->Floats();
  std::vector<float> valid_norm;
  std::vector<model::StepRow> rows;
  std::vector<std::vector<int32_t>> tables(batch.at("rows").as_array().size());
  std::vector<int32_t> logit_rows;
  std::vector<size_t> last_rows;
  model::KvPool kv = MakePool(static_cast<int32_t>(padded * tables.size()) + 64);
  // The original stretches a batch by its padded length.
  const int32_t rope_table = model_->decoder->RopeTable(static_cast<int32_t>(padded));
  for (size_t b = 0; b < tables.size(); ++b) {
    const Input& input = inputs_.at(Str(batch.at("rows").as_array()[b]));
    const size_t length = input.is_image.size();
    for (size_t have = 0; have < length; have += static_cast<size_t>(kernels::kKvBlockTokens)) {
      tables[b].push_back(*kv.Allocate());
    }
    std::copy(input.rows.begin(), input.rows.end(),
              model_->decoder->input().Row(static_cast<int64_t>(rows.size())));
    for (size_t r = 0; r < length; ++r) {
      logit_rows.push_back(static_cast<int32_t>(rows.size()));
      rows.push_back(
          {static_cast<int32_t>(r), tables[b].data(), input.is_image[r], true, rope_table});
    }
    last_rows.push_back(rows.size() - 1);
    const auto first = padded_norm.begin() + static_cast<ptrdiff_t>(b * padded * dim);
    valid_norm.insert(valid_norm.end(), first, first + static_cast<ptrdiff_t>(length * dim));
  }
  StepRecorder seen;
  const absl::StatusOr<MatView<const float>> logits =
      model_->decoder->Step(rows, logit_rows, kv, *model_->dispatcher, &seen);
  if (!logits.ok()) {
    report_.Error(id_, name, logits.status().ToString());
    return;
  }
  report_.Near(id_, name + ": final norm", valid_norm, seen.final_norm, Tolerance("final_norm"));
  std::vector<float> last;
  for (const size_t row : last_rows) {
    const std::span<const float> values = logits->RowSpan(static_cast<int64_t>(row));
    last.insert(last.end(), values.begin(), values.end());
  }
  report_.Near(id_, name + ": last logits", expected_logits->Floats(), last, Tolerance("logits"));
}

void CaseCheck::CheckPrompt(const json::object& prompt) {
  const std::string name = Str(prompt.at("name"));
  CheckTokens(name, prompt);
  std::vector<bool> is_image;
  const std::optional<std::vector<float>> input = BuildInput(name, prompt, is_image);
  if (!input.has_value()) {
    return;
  }
  Near(name + ": embeds", name + ".embeds", "hidden", *input);
  inputs_[name] = {*input, is_image};
  CheckPrefill(name, *input, is_image);
  if (prompt.contains("greedy") && !prompt.at("greedy").is_null()) {
    CheckGreedy(name, prompt, *input, is_image);
  }
}

void CaseCheck::CheckTokens(const std::string& name, const json::object& prompt) {
  // The recorded dialogue through the template, as a request would go.
  std::vector<text::Turn> turns;
  bool is_user = true;
  for (const json::value& turn : prompt.at("turns").as_array()) {
    text::Turn rendered;
    rendered.is_user = is_user;
    is_user = !is_user;
    if (!turn.is_null()) {
      std::vector<std::string> pieces;
      std::string rest = Str(turn);
      for (size_t at = rest.find("<image>"); at != std::string::npos; at = rest.find("<image>")) {
        pieces.push_back(rest.substr(0, at));
        rest = rest.substr(at + 7);
      }
      pieces.push_back(rest);
      rendered.text_pieces = std::move(pieces);
    }
    turns.push_back(std::move(rendered));
  }
  const text::PromptTemplate* prompt_template = text::FindTemplate(Str(prompt.at("template")));
  if (prompt_template == nullptr) {
    report_.Error(id_, name + ": template", "no template named " + Str(prompt.at("template")));
    return;
  }
  const std::vector<text::PromptSpan> spans =
      text::Render(*prompt_template, turns, std::nullopt, *model_->tokenizer);
  report_.Exact(id_, name + ": prompt text", text::Flatten(spans) == Str(prompt.at("prompt")),
                text::Flatten(spans));
  report_.Exact(id_, name + ": input ids",
                text::EncodePrompt(*model_->tokenizer, spans) == Ints(prompt.at("input_ids")),
                "ids differ");
}

std::optional<std::vector<float>> CaseCheck::CheckVision(const std::string& name,
                                                         const json::object& prompt) {
  std::vector<float> all_pixels, all_features, all_projected, hidden;
  for (const json::value& file : prompt.at("images").as_array()) {
    const absl::StatusOr<std::vector<float>> pixels =
        PixelsOf(images_ + "/" + Str(file), model_->desc().vision);
    if (!pixels.ok()) {
      report_.Error(id_, name + ": picture", MessageOf(pixels.status()));
      return std::nullopt;
    }
    VisionRecorder seen;
    std::vector<float> projected;
    model_->tower->Encode(*pixels, projected, &seen);
    all_pixels.insert(all_pixels.end(), pixels->begin(), pixels->end());
    all_features.insert(all_features.end(), seen.features.begin(), seen.features.end());
    all_projected.insert(all_projected.end(), projected.begin(), projected.end());
    hidden = seen.hidden;
  }
  if (const TensorFile::Tensor* pixels = expected_.Find(name + ".pixel_values")) {
    report_.Exact(id_, name + ": pixel values", pixels->Floats() == all_pixels, "a pixel differs");
  }
  Near(name + ": vision features", name + ".vision_features", "vision_features", all_features);
  Near(name + ": projected", name + ".projected", "projected", all_projected);
  if (name == "image") {
    // The recording has all states of the tower; those after the selected one are never computed
    // here.
    if (const TensorFile::Tensor* states = expected_.Find("vision_hidden")) {
      std::vector<float> first = states->Floats();
      first.resize(std::min(first.size(), hidden.size()));
      report_.Near(id_, name + ": vision hidden states", first, hidden,
                   Tolerance("vision_features"));
    }
  }
  return all_projected;
}

std::optional<std::vector<float>> CaseCheck::BuildInput(const std::string& name,
                                                        const json::object& prompt,
                                                        std::vector<bool>& is_image) {
  std::vector<float> projected;
  if (!prompt.at("images").as_array().empty()) {
    std::optional<std::vector<float>> rows = CheckVision(name, prompt);
    if (!rows.has_value()) {
      return std::nullopt;
    }
    projected = *std::move(rows);
  }
  const auto dim = static_cast<size_t>(model_->desc().hidden_dim);
  std::vector<float> input;
  size_t next_image = 0;
  for (const int32_t id : Ints(prompt.at("input_ids"))) {
    if (id == text::kImageToken) {
      const size_t count = static_cast<size_t>(model_->tower->num_features()) * dim;
      input.insert(input.end(), projected.begin() + static_cast<ptrdiff_t>(next_image),
                   projected.begin() + static_cast<ptrdiff_t>(next_image + count));
      next_image += count;
      is_image.insert(is_image.end(), count / dim, true);
    } else {
      input.resize(input.size() + dim);
      const bool has_images = !prompt.at("images").as_array().empty();
      model_->decoder->Embed(id, IsScaled(has_images, true), std::span(input).last(dim));
      is_image.push_back(false);
    }
  }
  const auto length = prompt.at("length").to_number<size_t>();
  report_.Exact(
      id_, name + ": spliced length", is_image.size() == length,
      "expected " + std::to_string(length) + ", found " + std::to_string(is_image.size()));
  return input;
}

model::KvPool CaseCheck::MakePool(int32_t length) const {
  return {model_->decoder->kv_layout(), model_->desc().num_layers,
          static_cast<int32_t>(length / kernels::kKvBlockTokens + 1)};
}

absl::StatusOr<MatView<const float>> CaseCheck::Step(const float* input,
                                                     const std::vector<bool>& is_image,
                                                     int32_t first, int32_t count, bool all_logits,
                                                     bool is_prefill, model::KvPool& kv,
                                                     model::StepObserver* observer) {
  while (static_cast<int64_t>(block_table_.size()) * kernels::kKvBlockTokens < first + count) {
    block_table_.push_back(*kv.Allocate());
  }
  std::copy_n(input, static_cast<int64_t>(count) * model_->desc().hidden_dim,
              model_->decoder->input().data);
  std::vector<model::StepRow> rows;
  std::vector<int32_t> logit_rows;
  for (int32_t r = 0; r < count; ++r) {
    const auto position = static_cast<size_t>(first) + static_cast<size_t>(r);
    rows.push_back({first + r, block_table_.data(),
                    position < is_image.size() && is_image[position], is_prefill,
                    model_->decoder->RopeTable(static_cast<int32_t>(is_image.size()))});
    if (all_logits || r + 1 == count) {
      logit_rows.push_back(r);
    }
  }
  return model_->decoder->Step(rows, logit_rows, kv, *model_->dispatcher, observer);
}

void CaseCheck::Near(const std::string& what, const std::string& tensor,
                     const std::string& tolerance, std::span<const float> found) {
  if (const TensorFile::Tensor* expected = expected_.Find(tensor)) {
    report_.Near(id_, what, expected->Floats(), found, Tolerance(tolerance));
  }
}

void CaseCheck::CheckGates(const std::string& prefix, const std::string& name,
                           const StepRecorder& seen, bool with_logits) {
  for (const auto& [layer, gate] : seen.gates) {
    const std::string key = prefix + ".moe." + std::to_string(layer);
    const std::string what = name + " gate " + std::to_string(layer);
    if (with_logits) {
      Near(what + " logits", key + ".router_logits", "router_logits", gate.logits);
      Near(what + " probabilities", key + ".router_probs", "expert_weights", gate.probabilities);
    }
    if (const TensorFile::Tensor* experts = expected_.Find(key + ".experts")) {
      report_.Exact(id_, what + " experts", experts->Int32s() == gate.experts, "a choice differs");
    }
    Near(what + " weights", key + ".weights", "expert_weights", gate.weights);
    const float balance[] = {BalanceLoss(gate, static_cast<size_t>(model_->desc().moe.top_k))};
    Near(what + " balance loss", key + ".l_aux", "l_aux", balance);
  }
}

void CaseCheck::CheckPrefill(const std::string& name, const std::vector<float>& input,
                             const std::vector<bool>& is_image) {
  const auto length = static_cast<int32_t>(is_image.size());
  model::KvPool kv = MakePool(length);
  block_table_.clear();
  StepRecorder seen;
  const absl::StatusOr<MatView<const float>> logits =
      Step(input.data(), is_image, 0, length, true, true, kv, &seen);
  if (!logits.ok()) {
    report_.Error(id_, name + ": prefill", logits.status().ToString());
    return;
  }
  for (const auto& [layer, hidden] : seen.hidden) {
    Near(name + ": hidden " + std::to_string(layer), name + ".hidden." + std::to_string(layer),
         "hidden", hidden);
  }
  Near(name + ": final norm", name + ".final_norm", "final_norm", seen.final_norm);
  CheckGates(name, name + ":", seen, true);
  const std::span<const float> all(logits->data, static_cast<size_t>(logits->rows * logits->cols));
  Near(name + ": logits", name + ".logits", "logits", all);
  if (const TensorFile::Tensor* tail = expected_.Find(name + ".logits_tail")) {
    const size_t count = tail->bytes.size() / sizeof(float);
    report_.Near(id_, name + ": logits of the last rows", tail->Floats(),
                 all.last(std::min(count, all.size())), Tolerance("logits"));
  }
}

void CaseCheck::CheckGreedy(const std::string& name, const json::object& prompt,
                            const std::vector<float>& input, const std::vector<bool>& is_image) {
  const std::vector<int32_t> expected_ids = Ints(prompt.at("greedy").as_object().at("ids"));
  const auto steps = static_cast<int32_t>(expected_ids.size());
  const auto length = static_cast<int32_t>(is_image.size());
  const int32_t vocab = model_->tokenizer->size();
  model::KvPool kv = MakePool(length + steps);
  block_table_.clear();
  std::vector<int32_t> ids;
  std::vector<float> greedy_logits;
  std::vector<std::pair<float, int32_t>> scratch;
  StepRecorder seen;
  std::vector<float> row(static_cast<size_t>(model_->desc().hidden_dim));
  absl::StatusOr<MatView<const float>> logits =
      Step(input.data(), is_image, 0, length, false, true, kv, nullptr);
  for (int32_t step = 0; step < steps && logits.ok(); ++step) {
    if (step > 0) {
      const bool has_images = !prompt.at("images").as_array().empty();
      model_->decoder->Embed(ids.back(), IsScaled(has_images, false), row);
      logits = Step(row.data(), is_image, length + step - 1, 1, false, false, kv, &seen);
      if (!logits.ok()) {
        break;
      }
    }
    const std::span<const float> last = logits->RowSpan(0);
    greedy_logits.insert(greedy_logits.end(), last.begin(), last.begin() + vocab);
    ids.push_back(
        model::Sample(last, vocab, {}, {}, {}, static_cast<uint64_t>(step), scratch).token);
  }
  if (!logits.ok()) {
    report_.Error(id_, name + ": greedy", logits.status().ToString());
    return;
  }
  report_.Exact(id_, name + ": greedy tokens", ids == expected_ids, "a token differs");
  report_.Exact(
      id_, name + ": greedy text",
      model_->tokenizer->DecodeAsOriginal(ids) == Str(prompt.at("greedy").as_object().at("text")),
      model_->tokenizer->DecodeAsOriginal(ids));
  Near(name + ": greedy logits", name + ".greedy.logits", "logits", greedy_logits);
  CheckGates(name + ".greedy", name + ": greedy", seen, false);
}

}  // namespace

void CheckCase(const std::string& folder, const std::string& images, const CheckOptions& options,
               Report& report) {
  CaseCheck(folder, images, options, report).Run();
}

}  // namespace conclave::golden
