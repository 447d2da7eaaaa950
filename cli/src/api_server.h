// The API side, HTTP and gRPC, of a process that answers clients: `conclave serve`, which computes
// everything itself, and `conclave frontend`, whose experts are on workers of a cluster. Listens
// first and answers "not ready" while the model loads; drains on SIGTERM.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster_side.h"
#include "commands.h"
#include "conclave/observability/metrics.h"
#include "conclave/service/address.h"
#include "conclave/service/options.h"
#include "conclave/service/units.h"
#include "embedded_cluster.h"
#include "engine_options.h"
#include "server_process.h"
#include "tls_options.h"

namespace conclave::transport {
struct TlsIdentity;
}  // namespace conclave::transport

namespace conclave::cli {

struct ApiServerSettings {
  EngineSettings engine;
  LogSettings log;
  service::Address listen{"127.0.0.1", 8000};
  service::Address admin_listen{"127.0.0.1", 9000};
  // HOST:PORT of the gRPC API; empty: none.
  std::string grpc_listen;
  // Set by CheckApiServerSettings from the text.
  service::Address grpc_address;
  // Of the gRPC API, and of a frontend's way to its cluster.
  TlsFileSettings tls;
  bool insecure = false;
  std::string served_model_name;
  service::ByteSize max_body{int64_t{32} << 20};
  std::chrono::milliseconds image_decode_timeout{500};
  service::ByteSize image_memory{int64_t{512} << 20};
  std::string metrics = "on";
  std::string metrics_compat = "none";
  ProcessSettings process;
};

// The flags of both commands. `has_experts`: as AddEngineOptions.
void AddApiServerOptions(service::OptionSet& set, ApiServerSettings& settings, bool has_experts);

// What the values mean together; listeners get numeric hosts.
absl::Status CheckApiServerSettings(ApiServerSettings& settings);

// From listening to the end of the drain; returns the exit code. `role`: "serve" or "frontend";
// `tls`: what the three files hold; `reload` is called on SIGHUP. `cluster` may be null.
int RunApiServer(const Invocation& invocation, std::string role, ApiServerSettings settings,
                 const transport::TlsIdentity& tls, std::function<void()> reload,
                 ClusterSide* cluster);

}  // namespace conclave::cli
