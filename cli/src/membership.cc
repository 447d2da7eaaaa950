#include "membership.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/kernels/isa.h"
#include "conclave/observability/log.h"
#include "conclave/transport/chaos_channel.h"
#include "conclave/transport/grpc_channel.h"
#include "dispatch_metrics.h"

namespace conclave::cli {

using std::chrono::milliseconds;

Membership::Membership(MembershipSettings settings, transport::TlsIdentity tls)
    : settings_(std::move(settings)),
      name_(settings_.name.empty() ? "frontend-" + std::to_string(::getpid()) : settings_.name),
      tls_(std::move(tls)),
      connector_(transport::ChannelWishOf(settings_.channel), settings_.is_trusted_network, tls_) {}

Membership::~Membership() { Report(nullptr); }

absl::Status Membership::Join(EmbeddedOptions& options, observability::Metrics& metrics) {
  // Mapped and hashed here, and once more by the engine: a few milliseconds.
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> checkpoint,
                            checkpoint::Checkpoint::Open(options.model_dir, options.open));
  const checkpoint::ModelDesc& desc = checkpoint->desc();
  if (desc.moe.layers.empty()) {
    return InvalidArgument("model_dense", options.model_dir +
                                              ": the model has no experts; expected a "
                                              "mixture of experts, or use conclave serve");
  }
  const uint64_t incarnation = static_cast<uint64_t>(
      std::chrono::system_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
  const transport::PairTerms terms = TermsOf(*checkpoint, options, incarnation);
  StartLinks(terms);
  StartClient(desc, terms, options);

  options.name = name_;
  options.links = links_.get();
  options.rescue_bytes = settings_.rescue_memory.bytes;
  options.cluster_readiness = [this] { return links_->Readiness(); };
  AddMetrics(metrics);
  return absl::OkStatus();
}

transport::PairTerms Membership::TermsOf(const checkpoint::Checkpoint& checkpoint,
                                         const EmbeddedOptions& options,
                                         uint64_t incarnation) const {
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  transport::PairTerms terms;
  terms.cluster_id = settings_.cluster_id;
  terms.manifest_hash = checkpoint::ManifestHash(checkpoint);
  terms.row_width = static_cast<uint16_t>(desc.moe.io_dim);
  terms.top_k = static_cast<uint16_t>(desc.moe.top_k);
  terms.mode = options.dtype;
  terms.isa = std::string(kernels::NameOf(options.isa));
  terms.kernel_revision = kernels::kKernelRevision;
  terms.frontend_incarnation = incarnation;
  terms.num_layers = static_cast<uint16_t>(desc.num_layers);
  terms.has_payload_crc = settings_.has_payload_crc;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    terms.num_experts_max =
        std::max(terms.num_experts_max, static_cast<uint16_t>(layer.num_experts));
  }
  return terms;
}

void Membership::StartLinks(const transport::PairTerms& terms) {
  frontend::ClusterLinksOptions links;
  links.connect = [this, terms](uint32_t frontend_id, const frontend::ClusterMember& member,
                                transport::Doorbell& bell) {
    transport::PairTerms pair = terms;
    pair.frontend_id = frontend_id;
    pair.pair_key = member.pair_key;
    pair.worker_incarnation = member.incarnation;
    absl::StatusOr<std::unique_ptr<transport::ExpertChannel>> channel =
        connector_.Connect(member, pair, bell);
    if (channel.ok()) {
      channel = transport::WithChaos(*std::move(channel), bell, Clock::Real());
    }
    return channel;
  };
  links.on_switched = [this](Epoch epoch) { client_->Acknowledge(epoch); };
  links.on_sighting = [this](WorkerId worker, uint64_t worker_incarnation,
                             frontend::PeerSighting sighting) {
    client_->Report(worker, worker_incarnation, sighting);
  };
  links_ = std::make_unique<frontend::ClusterLinks>(std::move(links));
}

void Membership::StartClient(const checkpoint::ModelDesc& desc, const transport::PairTerms& terms,
                             const EmbeddedOptions& options) {
  frontend::RouterClientOptions router;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      router.units.push_back({LayerId(layer.layer), ExpertId(e)});
    }
  }
  router.routers = service::ToStrings(settings_.router);
  router.cluster_id = settings_.cluster_id;
  router.name = name_;
  router.incarnation = terms.frontend_incarnation;
  router.api_address = ApiForRouter(options.api_address);
  router.manifest_hash = terms.manifest_hash;
  router.row_width = desc.moe.io_dim;
  router.top_k = desc.moe.top_k;
  router.dtype = std::string(NameOf(options.dtype));
  router.isa = terms.isa;
  router.kernel_revision = terms.kernel_revision;
  router.on_view = [this](frontend::ClusterView view) { links_->Apply(std::move(view)); };
  client_ = std::make_unique<frontend::RouterClient>(std::move(router), tls_);
  client_->Start();
}

std::string Membership::ApiForRouter(const std::string& api_address) const {
  const absl::StatusOr<service::Address> api = service::ParseAddress(api_address);
  if (!api.ok() || api->host == "0.0.0.0" || api->host == "::") {
    return "";
  }
  // Another machine's loopback is not ours.
  const bool is_near =
      std::all_of(settings_.router.begin(), settings_.router.end(), [](const auto& router) {
        const absl::StatusOr<std::string> host = service::ResolveHost(router.host);
        return host.ok() && service::IsLoopback(*host);
      });
  return service::IsLoopback(api->host) && !is_near ? "" : api_address;
}

void Membership::Report(std::function<live::FrontendFigures()> figures) {
  {
    MutexLock lock(report_mu_);
    is_reporting_ = false;
    report_changed_.NotifyAll();
  }
  if (reporter_.joinable()) {
    reporter_.join();
  }
  if (figures) {
    MutexLock lock(report_mu_);
    is_reporting_ = true;
    reporter_ = std::thread([this, figures = std::move(figures)] { ReportLoop(figures); });
  }
}

void Membership::ReportLoop(const std::function<live::FrontendFigures()>& figures) {
  ::pthread_setname_np(::pthread_self(), "report");
  constexpr size_t kManyCells = 65'536;
  while (true) {
    live::FrontendFigures now = figures();
    // A large model's report takes a megabyte when all of it changes.
    const std::chrono::seconds period(now.rows.size() > kManyCells ? 5 : 1);
    client_->Report(std::move(now));
    const auto next = std::chrono::steady_clock::now() + period;
    MutexLock lock(report_mu_);
    while (is_reporting_ && std::chrono::steady_clock::now() < next) {
      report_changed_.WaitFor(report_mu_, next - std::chrono::steady_clock::now());
    }
    if (!is_reporting_) {
      return;
    }
  }
}

absl::Status Membership::WaitForPlacement() {
  using std::chrono::steady_clock;
  auto next_line = steady_clock::now() + std::chrono::seconds(3);
  while (links_->epoch().value() == 0) {
    const absl::Status status = client_->status();
    // Neither another model nor a missing certificate mends itself.
    if (status.code() == absl::StatusCode::kFailedPrecondition ||
        status.code() == absl::StatusCode::kPermissionDenied ||
        status.code() == absl::StatusCode::kUnauthenticated) {
      return Annotate(status, "router " + service::ToString(settings_.router));
    }
    if (steady_clock::now() >= next_line) {
      next_line += std::chrono::seconds(3);
      observability::LogInfo(
          "waiting for the router",
          {{"router", service::ToString(settings_.router)}, {"why", MessageOf(status)}});
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  return absl::OkStatus();
}

void Membership::AddMetrics(observability::Metrics& metrics) {
  const auto single = [&metrics](const char* name, const char* help,
                                 std::function<double()> value) {
    metrics.AddCollector(name, help, observability::Metrics::Kind::kGauge,
                         [value = std::move(value)] {
                           return std::vector<observability::Metrics::Sample>{{{}, value()}};
                         });
  };
  single("moe_cluster_links", "Links to expert workers that are up.",
         [this] { return static_cast<double>(links_->num_links()); });
  metrics.AddCollector("moe_cluster_links_by_channel",
                       "Links to expert workers that are up, by what carries their calls.",
                       observability::Metrics::Kind::kGauge, [this] {
                         std::vector<observability::Metrics::Sample> samples;
                         for (const char* channel : {"ucx", "grpc"}) {
                           samples.push_back({{{"channel", channel}},
                                              static_cast<double>(links_->num_links(channel))});
                         }
                         return samples;
                       });
  AddWorkerInfo(metrics, [this] { return links_->Links(); });
  single("moe_placement_epoch", "Number of the placement within its router's term.",
         [this] { return static_cast<double>(links_->epoch().value() & 0xffffffffu); });
  single("moe_placement_term", "Term of the router whose placement is in use.",
         [this] { return static_cast<double>(links_->epoch().value() >> 32); });
  single("moe_router_silence_seconds", "Time since the router was last heard; -1: never.", [this] {
    const int64_t ms = client_->silence_ms();
    return ms < 0 ? -1.0 : static_cast<double>(ms) / 1000.0;
  });
}

}  // namespace conclave::cli
