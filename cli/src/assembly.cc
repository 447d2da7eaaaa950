#include "assembly.h"

#include <algorithm>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/model/ffn.h"
#include "conclave/router_service/static_router.h"
#include "conclave/transport/inproc_channel.h"
#include "conclave/transport/rows.h"
#include "local_rescue.h"

namespace conclave::cli {
namespace {

using checkpoint::ModelDesc;
using expert_worker::WorkerCore;

// Rows of one call: what decode latency wants, whatever the prompt (data-plane.md section 7).
constexpr uint16_t kMaxRowsPerCall = 256;

uint16_t MaxPairs(const ModelDesc& desc) {
  return static_cast<uint16_t>(kMaxRowsPerCall * std::max(desc.moe.top_k, 1));
}

int32_t MaxExperts(const ModelDesc& desc) {
  int32_t most = 1;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    most = std::max(most, layer.num_experts);
  }
  return most;
}

// Before a link has answered, its speed is guessed: bytes of an expert at 10 GB/s, rows at 50
// GFLOP/s. Wrong guesses only make the first deadlines long or the first choices poor.
void EstimateExperts(const ModelDesc& desc, const AssemblyOptions& options,
                     frontend::DispatcherOptions& dispatch) {
  constexpr double kBytesPerUs = 1e4;
  constexpr double kFlopsPerUs = 5e4;
  const double bytes =
      static_cast<double>(model::FfnBytes(desc.ffn, desc.moe.io_dim, options.dtype));
  const double elements = (desc.ffn.is_gated ? 3.0 : 2.0) * static_cast<double>(desc.moe.io_dim) *
                          static_cast<double>(desc.ffn.inner_dim);
  dispatch.expert_us = std::max(20.0, bytes / kBytesPerUs);
  dispatch.row_us = std::max(1.0, 2.0 * elements / kFlopsPerUs);
}

transport::InprocOptions ChannelOptions(const ModelDesc& desc, const AssemblyOptions& options) {
  transport::InprocOptions channel;
  channel.limits.max_rows = kMaxRowsPerCall;
  channel.limits.max_pairs = MaxPairs(desc);
  channel.limits.row_width = static_cast<uint16_t>(desc.moe.io_dim);
  channel.limits.dtype = transport::WireDtypeOf(options.dtype);
  channel.use_frames = options.use_frames;
  channel.num_layers = static_cast<uint16_t>(desc.num_layers);
  channel.num_experts_max = static_cast<uint16_t>(MaxExperts(desc));
  channel.top_k = static_cast<uint16_t>(desc.moe.top_k);
  return channel;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Assembly>> Assembly::Open(const std::string& model_dir,
                                                         const checkpoint::OpenOptions& options) {
  auto assembly = std::make_unique<Assembly>();
  CONCLAVE_ASSIGN_OR_RETURN(assembly->checkpoint, checkpoint::Checkpoint::Open(model_dir, options));
  const ModelDesc& desc = assembly->desc();
  CONCLAVE_ASSIGN_OR_RETURN(
      assembly->tokenizer,
      text::LoadTokenizerFromFolder(assembly->checkpoint->folder(), desc.tokenizer.file));
  CONCLAVE_RETURN_IF_ERROR(
      text::CheckTokenizer(*assembly->tokenizer, desc.vocab_rows, desc.eos_token));
  return assembly;
}

absl::Status Assembly::LoadExperts(const AssemblyOptions& options, const Progress& progress) {
  std::vector<router_service::MoeLayer> layers;
  for (const checkpoint::MoeLayerSpec& layer : desc().moe.layers) {
    layers.push_back({LayerId(layer.layer), layer.num_experts});
  }
  CONCLAVE_ASSIGN_OR_RETURN(placement::Placement planned,
                            router_service::PlanEmbedded(layers, options.num_workers));
  placement = std::make_shared<const placement::Placement>(std::move(planned));
  const auto num_units = static_cast<double>(std::max<size_t>(placement->units().size(), 1));
  double done_before = 0;
  for (int32_t w = 0; w < options.num_workers; ++w) {
    std::vector<placement::ExpertUnit> units = placement->UnitsOf(WorkerId(w));
    const auto count = static_cast<double>(units.size());
    expert_worker::WorkerCoreOptions worker;
    worker.dtype = options.dtype;
    worker.compute = options.compute;
    worker.max_rows = kMaxRowsPerCall;
    worker.max_pairs = MaxPairs(desc());
    const auto report = [&](int64_t done, int64_t /*total*/) {
      if (progress != nullptr) {
        progress((done_before + static_cast<double>(done)) / num_units, "experts");
      }
    };
    CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<WorkerCore> core,
                              WorkerCore::Load(*checkpoint, std::move(units), worker, report));
    done_before += count;
    workers.push_back(std::move(core));
  }
  return absl::OkStatus();
}

void Assembly::Connect(const AssemblyOptions& options) {
  const bool has_experts = !desc().moe.layers.empty();
  std::vector<frontend::Dispatcher::Link> links;
  for (size_t w = 0; has_experts && w < workers.size(); ++w) {
    channels.push_back(transport::MakeInprocChannel(*workers[w], ChannelOptions(desc(), options)));
    links.push_back({WorkerId(static_cast<int32_t>(w)), channels.back().get()});
  }
  frontend::DispatcherOptions dispatch;
  dispatch.compute = options.compute;
  dispatch.wire = transport::WireDtypeOf(options.dtype);
  dispatch.io_dim = has_experts ? desc().moe.io_dim : desc().hidden_dim;
  dispatch.top_k = std::max(desc().moe.top_k, 1);
  dispatch.max_rows = options.max_rows;
  dispatch.is_timing = options.is_timing_calls;
  dispatch.observer = options.dispatch_observer;
  EstimateExperts(desc(), options, dispatch);
  if (options.links != nullptr) {
    if (has_experts && options.rescue_bytes > 0) {
      expert_worker::WorkerCoreOptions worker;
      worker.dtype = options.dtype;
      worker.compute = options.compute;
      worker.max_rows = kMaxRowsPerCall;
      worker.max_pairs = MaxPairs(desc());
      worker.memory_bytes = options.rescue_bytes;
      transport::InprocOptions channel = ChannelOptions(desc(), options);
      // The last resort must not meet the faults that tests inject into the frames of links.
      channel.use_frames = false;
      rescue = std::make_unique<LocalRescue>(*checkpoint, worker, channel);
      dispatch.rescue = rescue.get();
    }
    dispatcher = std::make_unique<frontend::Dispatcher>(dispatch, *options.links);
    return;
  }
  dispatcher = std::make_unique<frontend::Dispatcher>(dispatch, placement, std::move(links));
}

absl::Status Assembly::Load(const AssemblyOptions& options, const Progress& progress) {
  // Experts are most of the bytes of an MoE model. They come last: packing a matrix holds its
  // stored form too for that moment, and the largest, embedding and head, are the decoder's.
  const bool has_experts = !desc().moe.layers.empty() && options.links == nullptr;
  const double expert_share = has_experts ? 0.6 : 0.0;
  const double rest = 1.0 - expert_share;
  const auto part = [&progress](double first, double share, const char* what) {
    return [&progress, first, share, what](int64_t done, int64_t total) {
      if (progress != nullptr) {
        progress(first + share * static_cast<double>(done) / static_cast<double>(total), what);
      }
    };
  };
  model::DecoderOptions decoder_options;
  decoder_options.dtype = options.dtype;
  decoder_options.compute = options.compute;
  decoder_options.max_rows = options.max_rows;
  decoder_options.max_logit_rows = options.max_logit_rows;
  CONCLAVE_ASSIGN_OR_RETURN(
      decoder, model::Decoder::Load(*checkpoint, decoder_options, part(0, 0.8 * rest, "decoder")));
  if (desc().vision.kind != checkpoint::TowerKind::kNone) {
    CONCLAVE_ASSIGN_OR_RETURN(
        tower, model::VisionTower::Load(*checkpoint, options.dtype, options.compute,
                                        part(0.8 * rest, 0.2 * rest, "vision tower")));
  }
  if (options.links == nullptr) {
    CONCLAVE_RETURN_IF_ERROR(LoadExperts(options, [&](double fraction, const std::string& what) {
      if (progress != nullptr) {
        progress(rest + fraction * expert_share, what);
      }
    }));
  }
  CONCLAVE_RETURN_IF_ERROR(checkpoint->VerifyUnchanged());
  Connect(options);
  return absl::OkStatus();
}

}  // namespace conclave::cli
