#include "bench_run.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "bench_cost.h"
#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/frontend/image_spec.h"
#include "conclave/model/kv_pool.h"
#include "conclave/service/machine.h"
#include "memory_budget.h"

namespace conclave::cli {
namespace {

using kernels::kKvBlockTokens;
using SteadyClock = std::chrono::steady_clock;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

double LoadAverage() {
  double average = 0;
  return ::getloadavg(&average, 1) == 1 ? average : 0;
}

// Since this process was made, to a hundredth of a second; 0 where /proc does not say.
double ProcessAgeSeconds() {
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  // The name, in brackets, may hold anything; the start is the 20th word behind it.
  const size_t end = text.rfind(')');
  if (end == std::string::npos) {
    return 0;
  }
  std::istringstream words(text.substr(end + 1));
  std::string word;
  for (int i = 0; i < 20 && words >> word; ++i) {
  }
  timespec now{};
  if (!words || ::clock_gettime(CLOCK_BOOTTIME, &now) != 0) {
    return 0;
  }
  const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 -
         std::strtod(word.c_str(), nullptr) / ticks;
}

// Bytes that were fetched from disks for this process so far; 0 where /proc does not say.
double DiskBytes() {
  std::ifstream file("/proc/self/io");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("read_bytes: ")) {
      return std::strtod(line.c_str() + std::strlen("read_bytes: "), nullptr);
    }
  }
  return 0;
}

double PeakResidentBytes() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<double>(usage.ru_maxrss) * 1024.0 : 0;
}

// Counts the experts that got a row, over the layers of one step.
class ExpertCounter : public model::StepObserver {
 public:
  void OnGate(int32_t /*layer*/, MatView<const float> /*logits*/,
              MatView<const float> probabilities, const model::GateChoice& choice) override {
    is_used_.assign(static_cast<size_t>(probabilities.cols), false);
    for (int64_t r = 0; r < choice.experts.rows; ++r) {
      for (const int32_t expert : choice.experts.RowSpan(r)) {
        is_used_[static_cast<size_t>(expert)] = true;
      }
    }
    num_used_ += std::count(is_used_.begin(), is_used_.end(), true);
  }

  int64_t Take() { return std::exchange(num_used_, 0); }

 private:
  std::vector<bool> is_used_;
  int64_t num_used_ = 0;
};

// Sequences with a context, which are stepped directly: no scheduler and no sampler. Tokens are
// pseudo-random and the same in every run, so that the experts change from step to step as they do
// in real answers; greedy answers of random weights repeat themselves.
class Sequences {
 public:
  // Room for `positions` of each of `count` sequences, all touched.
  Sequences(Assembly& model, const CostModel& cost, int32_t count, int32_t positions)
      : model_(model),
        cost_(cost),
        blocks_((positions + static_cast<int32_t>(kKvBlockTokens) - 1) /
                static_cast<int32_t>(kKvBlockTokens)),
        kv_(model.decoder->kv_layout(), model.desc().num_layers, count * blocks_),
        rope_table_(model.decoder->RopeTable(positions)) {
    for (int32_t i = 0; i < count * blocks_; ++i) {
      const std::optional<int32_t> block = kv_.Allocate();
      CONCLAVE_CHECK(block.has_value());
      table_.push_back(*block);
      for (int32_t layer = 0; layer < model.desc().num_layers; ++layer) {
        std::memset(kv_.BlockMemory(layer, *block), 0, kv_.block_stride());
      }
    }
  }

  // One step of the first `count` sequences, a row at `position` of each.
  absl::StatusOr<StepCost> Decode(int32_t count, int32_t position) {
    rows_.clear();
    logit_rows_.clear();
    for (int32_t s = 0; s < count; ++s) {
      AddRow(s, position, false);
      logit_rows_.push_back(s);
    }
    const int64_t seen = count * cost_.SeenBy(position);
    return Step({count, count, seen, seen, 0});
  }

  // A chunk of the first sequence's prompt; its last row has logits when `is_last`.
  absl::StatusOr<StepCost> Prefill(int32_t first, int32_t count, bool is_last) {
    rows_.clear();
    logit_rows_.clear();
    StepWork work{count, is_last ? 1 : 0, 0, count - 1 + cost_.SeenBy(first), 0};
    for (int32_t position = first; position < first + count; ++position) {
      AddRow(0, position, true);
      work.positions_attended += cost_.SeenBy(position);
    }
    if (is_last) {
      logit_rows_.push_back(count - 1);
    }
    return Step(work);
  }

 private:
  void AddRow(int32_t sequence, int32_t position, bool is_prefill) {
    const int64_t row = static_cast<int64_t>(rows_.size());
    rows_.push_back({.position = position,
                     .block_table = table_.data() + size_t{1} * sequence * blocks_,
                     .is_prefill = is_prefill,
                     .rope_table = rope_table_});
    model_.decoder->Embed(NextToken(), true, model_.decoder->input().RowSpan(row));
  }

  absl::StatusOr<StepCost> Step(StepWork work) {
    CONCLAVE_RETURN_IF_ERROR(
        model_.decoder->Step(rows_, logit_rows_, kv_, *model_.dispatcher, &experts_).status());
    work.experts_used = experts_.Take();
    return cost_.Of(work);
  }

  // Knuth's MMIX generator, its upper bits.
  int32_t NextToken() {
    random_ = random_ * 6364136223846793005U + 1442695040888963407U;
    const int32_t limit = std::min(model_.desc().vocab_rows, model_.tokenizer->size());
    return static_cast<int32_t>((random_ >> 33) % static_cast<uint64_t>(limit));
  }

  Assembly& model_;
  const CostModel& cost_;
  const int32_t blocks_;  // of a sequence
  model::KvPool kv_;
  const int32_t rope_table_;
  std::vector<int32_t> table_;  // [sequences, blocks_]
  std::vector<model::StepRow> rows_;
  std::vector<int32_t> logit_rows_;
  ExpertCounter experts_;
  uint64_t random_ = 1;
};

image::RgbImage MadeUpPicture() {
  constexpr int32_t kWidth = 1280;
  constexpr int32_t kHeight = 960;
  image::RgbImage picture{kWidth, kHeight, {}};
  picture.pixels.resize(size_t{3} * kWidth * kHeight);
  for (size_t i = 0; i < picture.pixels.size(); ++i) {
    // Ramps that are disturbed a little, as photographs are.
    picture.pixels[i] = static_cast<uint8_t>(i / 97 + (i * 2654435761U >> 29));
  }
  return picture;
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class Bench {
 public:
  explicit Bench(const BenchOptions& options)
      : options_(options), start_seconds_(ProcessAgeSeconds()), pool_(options.threads) {
    report_.dtype = options.dtype;
    report_.isa = options.isa;
    report_.threads = options.threads;
    report_.repeat = options.repeat;
    const service::Machine machine = service::ReadMachine();
    report_.cpu_model = machine.cpu_model;
    report_.num_cores = machine.num_cores;
    report_.load_before = LoadAverage();
  }

  absl::StatusOr<BenchReport> Run(const Progress& progress) {
    switch (options_.kind) {
      case BenchKind::kDecode:
        CONCLAVE_RETURN_IF_ERROR(Steps("decode", {1}, Against::kMemory, progress));
        break;
      case BenchKind::kStep:
        CONCLAVE_RETURN_IF_ERROR(Steps("step", options_.rows, Against::kBoth, progress));
        break;
      case BenchKind::kPrefill:
        CONCLAVE_RETURN_IF_ERROR(Prefill(progress));
        break;
      case BenchKind::kImage:
        CONCLAVE_RETURN_IF_ERROR(Image(progress));
        break;
      case BenchKind::kLoad:
        CONCLAVE_RETURN_IF_ERROR(Loads());
        break;
    }
    report_.load_after = LoadAverage();
    report_.extras.emplace_back("peak_resident_bytes_without_probe",
                                PeakResidentBytes() - static_cast<double>(report_.probe_bytes));
    return std::move(report_);
  }

 private:
  // The bounds before the first round. After what can be refused has been refused, as it takes a
  // second.
  void Start() {
    if (!options_.has_bounds) {
      return;
    }
    probe_.emplace(kernels::ReadProbe::BytesFor(AvailableBytes()), pool_);
    report_.probe_bytes = probe_->size_bytes();
    bounds_ = MeasureBounds();
  }

  BoundsSample MeasureBounds() {
    if (!probe_.has_value()) {
      return {};
    }
    constexpr auto kEach = std::chrono::milliseconds(5);
    report_.bounds.push_back(
        {probe_->MeasureBest(pool_), kernels::MeasurePeaks(options_.isa, pool_, kEach)});
    return report_.bounds.back();
  }

  // Adds rounds that lie between the last measurement of the bounds and one from now.
  void AddRounds(const std::vector<std::pair<BenchCase*, Round>>& rounds) {
    const BoundsSample after = MeasureBounds();
    const BoundsSample bounds = Larger(bounds_, after);
    bounds_ = after;
    for (auto [one, round] : rounds) {
      round.read = bounds.read;
      round.peak = bounds.peaks.Of(options_.dtype).value_or(0);
      one->rounds.push_back(round);
    }
  }

  BenchCase* AddCase(BenchCase one) {
    one.rounds.reserve(static_cast<size_t>(options_.repeat));
    report_.cases.push_back(std::move(one));
    return &report_.cases.back();
  }

  absl::StatusOr<std::unique_ptr<Assembly>> Open() {
    CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<Assembly> model,
                              Assembly::Open(options_.model_dir, options_.open));
    const checkpoint::ModelDesc& desc = model->desc();
    report_.model = desc.served_name;
    report_.model_type = desc.model_type;
    report_.num_parameters = checkpoint::Summarize(*model->checkpoint, 1).parameters.total;
    return model;
  }

  absl::Status Load(Assembly& model, int32_t max_rows, int32_t max_logit_rows,
                    const Progress& progress) {
    AssemblyOptions load;
    load.dtype = options_.dtype;
    load.compute = kernels::Context(options_.isa, pool_);
    load.max_rows = max_rows;
    load.max_logit_rows = max_logit_rows;
    CONCLAVE_RETURN_IF_ERROR(model.Load(load, progress));
    size_t bytes = model.decoder->weight_bytes();
    for (const auto& worker : model.workers) {
      bytes += worker->weight_bytes();
    }
    bytes += model.tower == nullptr ? 0 : model.tower->weight_bytes();
    report_.weight_bytes = static_cast<int64_t>(bytes);
    return absl::OkStatus();
  }

  // Opens and loads a model with room for `count` sequences of `positions`.
  absl::StatusOr<std::unique_ptr<Assembly>> LoadFor(int32_t count, int32_t positions,
                                                    int32_t max_rows, int32_t max_logit_rows,
                                                    const Progress& progress) {
    CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<Assembly> model, Open());
    CONCLAVE_RETURN_IF_ERROR(CheckRoom(*model, count, positions));
    if (options_.kind == BenchKind::kImage &&
        model->desc().vision.kind == checkpoint::TowerKind::kNone) {
      return InvalidArgument("usage", "--model: expected a model with a vision tower, found " +
                                          report_.model + " without one");
    }
    Start();
    CONCLAVE_RETURN_IF_ERROR(Load(*model, max_rows, max_logit_rows, progress));
    return model;
  }

  absl::Status CheckRoom(const Assembly& model, int32_t count, int32_t positions) const {
    const int32_t most = model.desc().max_positions;
    if (positions > most) {
      return InvalidArgument("usage", "context, prompt and tokens together: expected at most the " +
                                          std::to_string(most) + " positions of " +
                                          model.desc().served_name + ", found " +
                                          std::to_string(positions));
    }
    const checkpoint::AttentionSpec& attention = model.desc().attention;
    const kernels::KvLayout layout{attention.num_kv_heads, attention.head_dim,
                                   RowDtypeOf(options_.dtype)};
    const int64_t blocks = (positions + kKvBlockTokens - 1) / kKvBlockTokens;
    MemoryRequest request;
    request.dtype = options_.dtype;
    request.kv_bytes =
        count * blocks *
        static_cast<int64_t>(model::KvPool::BlockBytes(layout, model.desc().num_layers));
    request.max_num_seqs = count;
    request.max_model_len = positions;
    return PlanMemory(*model.checkpoint, request).status();
  }

  absl::Status Steps(const std::string& name, const std::vector<int32_t>& rows, Against against,
                     const Progress& progress);
  absl::Status Prefill(const Progress& progress);
  absl::Status Image(const Progress& progress);
  absl::Status Loads();

  const BenchOptions options_;
  const double start_seconds_;
  ThreadPool pool_;
  std::optional<kernels::ReadProbe> probe_;
  BoundsSample bounds_;  // the last one
  BenchReport report_;
};

absl::Status Bench::Steps(const std::string& name, const std::vector<int32_t>& rows,
                          Against against, const Progress& progress) {
  const int32_t most = *std::max_element(rows.begin(), rows.end());
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<Assembly> model, Open());
  const int32_t room = model->desc().max_positions - options_.tokens;
  const int32_t context =
      options_.is_context_default ? std::clamp(room, 0, options_.context) : options_.context;
  const int32_t positions = context + options_.tokens;
  CONCLAVE_RETURN_IF_ERROR(CheckRoom(*model, most, positions));
  Start();
  CONCLAVE_RETURN_IF_ERROR(Load(*model, most, most, progress));
  const CostModel cost(model->desc(), options_.dtype);
  Sequences sequences(*model, cost, most, positions);
  report_.cases.reserve(rows.size());
  std::vector<BenchCase*> cases;
  for (const int32_t count : rows) {
    cases.push_back(AddCase({name, count, int64_t{count} * options_.tokens, context, against, {}}));
    // Buffers and code are touched once before anything counts.
    CONCLAVE_RETURN_IF_ERROR(sequences.Decode(count, context).status());
  }
  for (int round = 0; round < options_.repeat; ++round) {
    for (BenchCase* one : cases) {
      Round measured;
      const SteadyClock::time_point start = SteadyClock::now();
      for (int32_t t = 0; t < options_.tokens; ++t) {
        CONCLAVE_ASSIGN_OR_RETURN(const StepCost step,
                                  sequences.Decode(static_cast<int32_t>(one->rows), context + t));
        measured.bytes += step.bytes;
        measured.operations += step.operations;
      }
      measured.seconds = SecondsSince(start);
      AddRounds({{one, measured}});
    }
  }
  return absl::OkStatus();
}

absl::Status Bench::Prefill(const Progress& progress) {
  const int32_t chunk = std::min(options_.chunk, options_.prompt);
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Assembly> model,
                            LoadFor(1, options_.prompt, chunk, 1, progress));
  const CostModel cost(model->desc(), options_.dtype);
  Sequences sequences(*model, cost, 1, options_.prompt);
  BenchCase* one = AddCase({"prefill", chunk, options_.prompt, 0, Against::kArithmetic, {}});
  // The first round warms up.
  for (int round = -1; round < options_.repeat; ++round) {
    Round measured;
    const SteadyClock::time_point start = SteadyClock::now();
    for (int32_t first = 0; first < options_.prompt; first += chunk) {
      const int32_t count = std::min(chunk, options_.prompt - first);
      CONCLAVE_ASSIGN_OR_RETURN(const StepCost step,
                                sequences.Prefill(first, count, first + count == options_.prompt));
      measured.bytes += step.bytes;
      measured.operations += step.operations;
    }
    measured.seconds = SecondsSince(start);
    if (round >= 0) {
      AddRounds({{one, measured}});
    }
  }
  return absl::OkStatus();
}

absl::Status Bench::Image(const Progress& progress) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Assembly> model, LoadFor(1, 1, 1, 1, progress));
  const image::PreprocessSpec spec =
      frontend::PreprocessSpecFor(model->desc().vision, frontend::ImageMode::kModelDefault);
  const image::RgbImage made_up = options_.image.empty() ? MadeUpPicture() : image::RgbImage{};
  report_.cases.reserve(2);
  BenchCase* preprocess = AddCase({"preprocess", 0, 0, 0, Against::kNothing, {}});
  BenchCase* encode =
      AddCase({"encode", model->tower->num_features(), 0, 0, Against::kArithmetic, {}});
  std::vector<float> features;
  for (int round = -1; round < options_.repeat; ++round) {
    Round prepared;
    Round encoded;
    SteadyClock::time_point start = SteadyClock::now();
    image::RgbImage decoded;
    if (!options_.image.empty()) {
      CONCLAVE_ASSIGN_OR_RETURN(decoded, image::Decode(AsBytes(options_.image), {}));
    }
    const std::vector<float> pixels = image::Normalize(
        image::FitAndResize(options_.image.empty() ? made_up : decoded, spec), spec);
    prepared.seconds = SecondsSince(start);
    start = SteadyClock::now();
    model->tower->Encode(pixels, features, nullptr);
    encoded.seconds = SecondsSince(start);
    encoded.bytes = static_cast<double>(model->tower->weight_bytes());
    encoded.operations = ImageOperations(model->desc());
    if (round >= 0) {
      AddRounds({{preprocess, prepared}, {encode, encoded}});
    }
  }
  return absl::OkStatus();
}

absl::Status Bench::Loads() {
  CONCLAVE_RETURN_IF_ERROR(Open().status());
  Start();
  report_.extras.emplace_back("process_start_seconds", start_seconds_);
  report_.cases.reserve(4);
  BenchCase* open = AddCase({"open", 0, 0, 0, Against::kNothing, {}});
  BenchCase* load = AddCase({"load", 0, 0, 0, Against::kMemory, {}});
  BenchCase* first = AddCase({"first-token", 1, 0, 0, Against::kMemory, {}});
  BenchCase* total = AddCase({"total", 0, 0, 0, Against::kMemory, {}});
  for (int round = 0; round < options_.repeat; ++round) {
    const double disk_before = DiskBytes();
    Round opened;
    Round loaded;
    Round stepped;
    const SteadyClock::time_point start = SteadyClock::now();
    CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<Assembly> model, Open());
    CONCLAVE_RETURN_IF_ERROR(CheckRoom(*model, 1, 1));
    opened.seconds = SecondsSince(start);
    CONCLAVE_RETURN_IF_ERROR(Load(*model, 1, 1, nullptr));
    loaded.seconds = SecondsSince(start) - opened.seconds;
    loaded.bytes = static_cast<double>(report_.weight_bytes);
    const CostModel cost(model->desc(), options_.dtype);
    Sequences sequences(*model, cost, 1, 1);
    CONCLAVE_ASSIGN_OR_RETURN(const StepCost step, sequences.Decode(1, 0));
    Round all;
    all.seconds = SecondsSince(start);
    all.bytes = loaded.bytes + step.bytes;
    all.operations = step.operations;
    stepped.seconds = all.seconds - opened.seconds - loaded.seconds;
    stepped.bytes = step.bytes;
    stepped.operations = step.operations;
    if (round == 0) {
      report_.extras.emplace_back("disk_bytes_of_first_round", DiskBytes() - disk_before);
    }
    AddRounds({{open, opened}, {load, loaded}, {first, stepped}, {total, all}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BenchReport> Measure(const BenchOptions& options, const Progress& progress) {
  return Bench(options).Run(progress);
}

}  // namespace conclave::cli
