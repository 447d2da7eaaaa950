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
#include "tracing.h"

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
  // Of serve: the key for changes over HTTP; of a frontend: unused.
  std::string admin_key_file;
  service::ByteSize max_body{int64_t{32} << 20};
  std::chrono::milliseconds image_decode_timeout{500};
  service::ByteSize image_memory{int64_t{512} << 20};
  std::string metrics = "on";
  std::string metrics_compat = "none";
  TraceSettings trace;
  ProcessSettings process;
};

// The flags of both commands. `has_experts`: as AddEngineOptions.
void AddApiServerOptions(service::OptionSet& set, ApiServerSettings& settings, bool has_experts);

// What the values mean together; listeners get numeric hosts.
absl::Status CheckApiServerSettings(ApiServerSettings& settings);

// What a server is in its cluster.
struct ApiServerRole {
  std::string name;                // "serve" or "frontend"
  ClusterSide* cluster = nullptr;  // null: experts are in this process
  // Admin listener of the router whose page this server shows; a port of 0: none.
  service::Address router_admin = {.host = "", .port = 0};
};

// From listening to the end of the drain; returns the exit code. `tls`: what the three files hold;
// `reload` is called on SIGHUP.
int RunApiServer(const Invocation& invocation, ApiServerRole role, ApiServerSettings settings,
                 const transport::TlsIdentity& tls, std::function<void()> reload);

}  // namespace conclave::cli
