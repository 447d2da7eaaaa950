#include "worker_metrics.h"

#include <functional>
#include <string>
#include <vector>

#include "expert_tokens.h"

namespace conclave::cli {
namespace {

using expert_worker::WorkerFigures;
using expert_worker::WorkerState;
using observability::Labels;
using observability::Metrics;
using Kind = observability::Metrics::Kind;
using Sample = observability::Metrics::Sample;

constexpr const char* kClasses[] = {"decode", "again", "prefill"};
constexpr WorkerState kStates[] = {WorkerState::kConnecting, WorkerState::kRegistered,
                                   WorkerState::kFenced, WorkerState::kDraining,
                                   WorkerState::kStopped};

// Families that take their samples from one reading of the figures.
class Families {
 public:
  Families(Metrics& metrics, const expert_worker::WorkerServer& server)
      : metrics_(metrics), server_(server) {}

  void Add(const char* name, const char* help, Kind kind,
           std::function<std::vector<Sample>(const WorkerFigures&)> samples) {
    metrics_.AddCollector(name, help, kind, [&server = server_, samples = std::move(samples)] {
      return samples(server.figures());
    });
  }
  // One without labels.
  template <typename Fn>
  void AddOne(const char* name, const char* help, Kind kind, const Fn& value) {
    Add(name, help, kind, [value](const WorkerFigures& figures) {
      return std::vector<Sample>{{{}, static_cast<double>(value(figures))}};
    });
  }

 private:
  Metrics& metrics_;
  const expert_worker::WorkerServer& server_;
};

void AddState(Families& families) {
  families.Add("conclave_worker_state", "1 for the state that the worker is in.", Kind::kGauge,
               [](const WorkerFigures& figures) {
                 std::vector<Sample> samples;
                 for (const WorkerState state : kStates) {
                   samples.push_back({{{"state", std::string(NameOf(state))}},
                                      figures.state == state ? 1.0 : 0.0});
                 }
                 return samples;
               });
  families.AddOne("conclave_worker_epoch",
                  "Number, within its router's term, of the last placement that it has seen.",
                  Kind::kGauge, [](const WorkerFigures& f) { return f.epoch & UINT32_MAX; });
  families.AddOne("conclave_worker_term", "Term of the router whose placement that was.",
                  Kind::kGauge, [](const WorkerFigures& f) { return f.epoch >> 32; });
  families.AddOne("conclave_worker_experts", "Experts that are held.", Kind::kGauge,
                  [](const WorkerFigures& f) { return f.num_experts; });
  families.AddOne("conclave_worker_experts_loading", "Experts that are still to be loaded.",
                  Kind::kGauge, [](const WorkerFigures& f) { return f.num_loading; });
  families.Add("conclave_worker_memory_bytes", "Memory of experts.", Kind::kGauge,
               [](const WorkerFigures& f) {
                 return std::vector<Sample>{
                     {{{"kind", "budget"}}, static_cast<double>(f.memory_bytes)},
                     {{{"kind", "used"}}, static_cast<double>(f.memory_used_bytes)}};
               });
  families.AddOne("conclave_worker_canary_failures_total",
                  "Experts dropped because their canary row gave another answer.", Kind::kCounter,
                  [](const WorkerFigures& f) { return f.canary_failures; });
}

void AddQueue(Families& families) {
  families.Add("conclave_worker_queue_calls", "Calls that wait, by class.", Kind::kGauge,
               [](const WorkerFigures& f) {
                 std::vector<Sample> samples;
                 for (size_t i = 0; i < std::size(kClasses); ++i) {
                   samples.push_back(
                       {{{"class", kClasses[i]}}, static_cast<double>(f.queue.waiting_calls[i])});
                 }
                 return samples;
               });
  families.AddOne("conclave_worker_queue_rows", "Rows that wait.", Kind::kGauge,
                  [](const WorkerFigures& f) { return f.queue.waiting_rows; });
  families.AddOne("conclave_worker_oldest_call_age_seconds",
                  "Age of the oldest call that is not answered.", Kind::kGauge,
                  [](const WorkerFigures& f) {
                    return std::chrono::duration<double>(f.queue.oldest_call_age).count();
                  });
  families.Add("conclave_worker_calls_total", "Calls by how they ended.", Kind::kCounter,
               [](const WorkerFigures& f) {
                 const auto sample = [](const char* result, uint64_t value) {
                   return Sample{{{"result", result}}, static_cast<double>(value)};
                 };
                 return std::vector<Sample>{
                     sample("ok", f.calls), sample("refused", f.calls_refused),
                     sample("busy", f.queue.counts.refused), sample("late", f.queue.counts.late),
                     sample("cancelled", f.queue.counts.cancelled)};
               });
}

void AddWork(Families& families) {
  families.AddOne("conclave_worker_rows_total", "Rows of calls that were computed.", Kind::kCounter,
                  [](const WorkerFigures& f) { return f.rows; });
  families.AddOne("conclave_worker_batches_total", "Batches computed.", Kind::kCounter,
                  [](const WorkerFigures& f) { return f.queue.counts.batches; });
  families.AddOne("conclave_worker_batch_calls_total", "Calls in these batches.", Kind::kCounter,
                  [](const WorkerFigures& f) { return f.queue.counts.batch_calls; });
  families.AddOne("conclave_worker_busy_seconds_total", "Time that the compute thread worked.",
                  Kind::kCounter, [](const WorkerFigures& f) { return f.busy_seconds; });
  families.AddOne("conclave_worker_seconds_per_row", "Service time per row, smoothed.",
                  Kind::kGauge, [](const WorkerFigures& f) { return f.us_per_row * 1e-6; });
  families.AddOne("conclave_worker_sessions", "Frontends with a stream.", Kind::kGauge,
                  [](const WorkerFigures& f) { return f.link_sessions; });
  families.Add("conclave_worker_link_bytes_total", "Bytes of frames.", Kind::kCounter,
               [](const WorkerFigures& f) {
                 return std::vector<Sample>{
                     {{{"direction", "sent"}}, static_cast<double>(f.link_bytes_sent)},
                     {{{"direction", "received"}}, static_cast<double>(f.link_bytes_received)}};
               });
  families.AddOne("conclave_worker_link_malformed_total", "Frames that came damaged, or were none.",
                  Kind::kCounter, [](const WorkerFigures& f) { return f.link_malformed; });
  families.AddOne("conclave_worker_link_duplicates_total",
                  "Calls dropped because they had come before.", Kind::kCounter,
                  [](const WorkerFigures& f) { return f.link_duplicates; });
}

}  // namespace

void AddWorkerMetrics(Metrics& metrics, const expert_worker::WorkerServer& server) {
  Families families(metrics, server);
  AddState(families);
  AddQueue(families);
  AddWork(families);
  observability::AddExpertTokens(metrics, [&server] {
    std::vector<observability::ExpertTokens> tokens;
    AppendExpertTokens(server.Loads(), server.worker_id(), &tokens);
    return tokens;
  });
}

}  // namespace conclave::cli
