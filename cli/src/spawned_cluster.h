// A router and workers as child processes of this one: what `conclave serve --spawn N` starts
// beside its own frontend. A worker that dies is started again; when this process ends, however it
// ends, the children do too.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "commands.h"
#include "conclave/service/address.h"
#include "engine_options.h"

namespace conclave::cli {

class SpawnedCluster {
 public:
  // Starts the router and `num_workers` workers with the model and compute settings of `engine`,
  // and waits until all are ready. `admin_key_file`: of the router, may be empty. Children write their logs to stderr as this process does. Must
  // be called before gRPC or other threads start. kInternal "spawn" when a child does not come up.
  static absl::StatusOr<std::unique_ptr<SpawnedCluster>> Start(const Invocation& invocation,
                                                               const EngineSettings& engine,
                                                               const LogSettings& log,
                                                               int32_t num_workers,
                                                               const std::string& admin_key_file);
  // Stops the children: SIGTERM, and SIGKILL after five seconds.
  ~SpawnedCluster();
  SpawnedCluster(const SpawnedCluster&) = delete;
  SpawnedCluster& operator=(const SpawnedCluster&) = delete;

  // Control address of the router.
  const service::Address& router() const;
  // Its admin listener: the page and what is behind it.
  const service::Address& router_admin() const;

 private:
  struct State;
  explicit SpawnedCluster(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The command `spawned PARENT COMMAND ...`, which Start runs: COMMAND, ending with the process
// PARENT.
int RunSpawned(const Invocation& invocation);

}  // namespace conclave::cli
