// A frontend's stream to the router service (ClusterService.WatchPlacement): placements in,
// acknowledgements and sightings out. Reconnects for ever; without a router the last view stands.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "conclave/base/ids.h"
#include "conclave/frontend/cluster_view.h"
#include "conclave/frontend/link_source.h"
#include "conclave/live/figures.h"
#include "conclave/placement/placement.h"

namespace conclave::transport {
struct TlsIdentity;
}  // namespace conclave::transport

namespace conclave::frontend {

struct RouterClientOptions {
  // HOST:PORT of the control addresses of its routers, of which one leads; tried in turn.
  std::vector<std::string> routers;
  std::string cluster_id;
  std::string name;
  uint64_t incarnation = 0;
  std::string api_address = {};  // HOST:PORT of its HTTP API as others reach it; empty: none
  // ModelIdentity and NumericMode of cluster.proto.
  std::string manifest_hash;
  int32_t row_width = 0;
  int32_t top_k = 0;
  std::string dtype;
  std::string isa;
  uint32_t kernel_revision = 0;
  // The model's experts: an update that names others is refused.
  std::vector<placement::ExpertUnit> units;
  // A new view; on the client's thread.
  std::function<void(ClusterView)> on_view;
};

class RouterClient {
 public:
  // `tls` empty: plain text.
  RouterClient(RouterClientOptions options, const transport::TlsIdentity& tls);
  ~RouterClient();

  // Starts the thread that on_view is called on. Once.
  void Start();

  // Any thread; do not block. A sighting beyond what the stream takes is dropped.
  void Acknowledge(Epoch epoch);
  void Report(WorkerId worker, uint64_t incarnation, PeerSighting sighting);

  // What this frontend has counted, for the live picture. Sent as what changed since the last one;
  // the latest waits while there is no stream.
  void Report(live::FrontendFigures figures);

  // OK while the stream stands; else why not. kFailedPrecondition: the router refuses this frontend
  // (another model, say), which will not pass by itself.
  absl::Status status() const;

  // Milliseconds since the router was last heard; -1: never. 0 while a stream stands on which it
  // has spoken: it says nothing as long as nothing changes, but its end answers gRPC's PINGs, or
  // the stream ends within 2 s.
  int64_t silence_ms() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
