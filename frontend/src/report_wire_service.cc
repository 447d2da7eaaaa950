#include <cstdint>

#include "cluster.pb.h"
#include "report_wire.h"

namespace conclave::frontend {
namespace {

template <typename T, typename Cells, typename Values>
void WriteChanges(const std::vector<T>* before, const std::vector<T>& now, Cells& cells,
                  Values& values) {
  for (size_t i = 0; i < now.size(); ++i) {
    const T old = before != nullptr && i < before->size() ? (*before)[i] : T();
    if (now[i] != old) {
      cells.Add(static_cast<uint32_t>(i));
      values.Add(now[i]);
    }
  }
}

template <typename Out>
void WriteBuckets(const live::Buckets& in, Out& out) {
  out.Add(in.begin(), in.end());
}

void WriteModel(const live::ModelCard& in, v1::LiveModel& out) {
  out.set_name(in.name);
  out.set_dtype(in.dtype);
  out.set_top_k(in.top_k);
  for (const live::MoeLayer& layer : in.layers) {
    v1::MoeLayer& added = *out.add_layers();
    added.set_layer(layer.layer);
    added.set_num_experts(layer.num_experts);
  }
  out.set_image_rows(in.image_rows);
  out.set_image_columns(in.image_columns);
}

void WriteServing(const live::Serving& in, v1::ServingCounts& out) {
  out.set_prompt_text(in.prompt_text);
  out.set_prompt_image(in.prompt_image);
  out.set_cached(in.cached);
  out.set_generated(in.generated);
  out.mutable_finished()->Add(in.finished.begin(), in.finished.end());
  out.set_images(in.images);
  out.set_image_hits(in.image_hits);
  out.set_preemptions(in.preemptions);
  out.set_requests_touched(in.requests_touched);
  out.set_rescued(in.rescued);
  WriteBuckets(in.ttft, *out.mutable_ttft());
  WriteBuckets(in.itl, *out.mutable_itl());
  WriteBuckets(in.recovery, *out.mutable_recovery());
}

void WriteCalls(const live::WorkerCalls& in, v1::WorkerCallCounts& out) {
  out.set_worker(in.worker);
  out.set_calls(in.calls);
  out.set_rows(in.rows);
  out.set_calls_resent(in.calls_resent);
  out.set_rows_resent(in.rows_resent);
  out.set_hedges(in.hedges);
  out.set_timeouts(in.timeouts);
  out.set_links_lost(in.links_lost);
  out.set_bytes_out(in.bytes_out);
  out.set_bytes_in(in.bytes_in);
  out.set_bytes_least(in.bytes_least);
  WriteBuckets(in.seconds, *out.mutable_seconds());
}

void WritePaths(const live::PathCounts& in, v1::PathCounts& out) {
  out.set_rows(in.rows);
  out.set_distinct(in.distinct);
  out.set_other(in.other);
  for (const live::Path& path : in.top) {
    v1::PathCount& added = *out.add_top();
    added.mutable_experts()->Add(path.experts.begin(), path.experts.end());
    added.set_rows(path.rows);
  }
}

}  // namespace

void ToWire(const live::FrontendFigures* before, const live::FrontendFigures& now,
            v1::FrontendReport& report) {
  report.set_is_whole(before == nullptr);
  if (before == nullptr) {
    WriteModel(now.model, *report.mutable_model());
  }
  WriteChanges(before == nullptr ? nullptr : &before->rows, now.rows, *report.mutable_row_cells(),
               *report.mutable_rows());
  WriteChanges(before == nullptr ? nullptr : &before->weights, now.weights,
               *report.mutable_weight_cells(), *report.mutable_weights());
  WriteChanges(before == nullptr ? nullptr : &before->probabilities, now.probabilities,
               *report.mutable_probability_cells(), *report.mutable_probabilities());
  report.set_running(static_cast<uint32_t>(now.running));
  report.set_waiting(static_cast<uint32_t>(now.waiting));
  report.set_kv(now.kv);
  WriteServing(now.serving, *report.mutable_serving());
  for (const live::WorkerCalls& calls : now.workers) {
    WriteCalls(calls, *report.add_workers());
  }
  if (before == nullptr || before->pathways != now.pathways) {
    for (const live::PathCounts& paths : now.pathways) {
      WritePaths(paths, *report.add_pathways());
    }
  }
}

}  // namespace conclave::frontend
