// The page, and the JSON behind it, on an admin listener (docs/live.md).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "admin_key.h"
#include "conclave/live/board.h"
#include "conclave/live/feed.h"
#include "conclave/router_service/router_types.h"
#include "conclave/service/admin_server.h"

namespace conclave::router_service {
class RouterServer;
}  // namespace conclave::router_service

namespace conclave::cli {

// All but `api` outlive the listener.
struct LiveSources {
  live::Board* board = nullptr;
  live::Feed* feed = nullptr;
  const AdminKey* key = nullptr;
  // Null: experts and engine share this process, and there is nothing to place.
  router_service::RouterServer* router = nullptr;
  // Where the page's chat goes.
  std::function<absl::StatusOr<service::Address>()> api;
  size_t body_bytes_max = size_t{32} << 20;  // of a chat
};
std::vector<service::AdminRoute> LiveRoutes(const LiveSources& sources);

// The same paths of an admin listener elsewhere, handed on.
std::vector<service::AdminRoute> HandOnLive(
    const std::function<absl::StatusOr<service::Address>()>& admin, size_t body_bytes_max);

// GET /moe/stragglers of a frontend: its slowest calls to workers. `json` is called on the
// listener's thread.
service::AdminRoute StragglersRoute(std::function<std::string()> json);

// Bounds of the histograms in the picture, which frontends and boards must agree on.
live::Bounds LiveBounds();

}  // namespace conclave::cli
