// The router as a server: the core (router_core.h) behind gRPC, with its state in a folder or in
// etcd. With etcd there may be several: one leads, the others stand by, which means that every call
// is refused (kUnavailable, "standby", with the leader's address) until they lead. A leader that is
// deposed, or cannot reach etcd for the length of its lease, stops commanding and stands by.
//
// Threads: one loop owns the core; handlers of gRPC translate messages into events and put them
// into its queue; one more thread writes the state, so that a slow disk holds up nothing else. What
// a peer sends too fast waits in its own stream; what it reads too slowly is replaced by the latest
// placement, and its stream ends (too_many_messages) when other commands pile up.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/live/board.h"
#include "conclave/live/feed.h"
#include "conclave/observability/metrics.h"
#include "conclave/router_service/router_core.h"
#include "conclave/service/address.h"

namespace conclave::router_service {

struct RouterServerOptions {
  // router_id is made by Start where it is empty.
  CoreOptions core;
  std::string host = "127.0.0.1";  // numeric
  uint16_t port = 0;               // 0: any free one
  // Empty: the state is lost with the process, and the next start learns from registrations.
  std::string state_dir;
  // Instead of state_dir; numeric hosts. Empty: no etcd.
  std::vector<service::Address> etcd;
  std::chrono::seconds etcd_lease{3};
  // With etcd: this router cannot lead for a reason that does not pass (the state of another model,
  // or of a newer router) and has stopped trying. On a thread of the server.
  std::function<void(const absl::Status& why)> on_failed;
  // Files of mutual TLS; all three or none.
  std::string tls_certificate;
  std::string tls_key;
  std::string tls_authority;
  milliseconds tick{50};
  // May be null; outlives the server.
  observability::Metrics* metrics = nullptr;
  // Of the live picture: all but the role.
  live::BoardOptions live;
};

class RouterServer {
 public:
  // Takes the state folder, binds and starts the threads; registrations are taken when it returns.
  // Errors: those of the state folder (state_file.h), "tls_config", kUnavailable ("bind").
  static absl::StatusOr<std::unique_ptr<RouterServer>> Start(RouterServerOptions options);
  // Ends all streams (kUnavailable, "draining"). What anybody was told is durable already. Workers
  // and frontends go on without a router.
  ~RouterServer();
  RouterServer(const RouterServer&) = delete;
  RouterServer& operator=(const RouterServer&) = delete;

  uint16_t port() const;

  // Runs `task`, which must not block, on the core's thread, soon. False while there is no core:
  // this router stands by. Any thread.
  bool Post(std::function<void()> task);

  // Any thread; as of the last tick.
  struct Health {
    std::string state;    // of RouterStatus; "standby": another one leads, or nobody can
    std::string blocked;  // likewise; of a router that stands by: what keeps it from leading
  };
  Health health() const;
  // Numeric mode of the workers ("bf16"); empty before one has registered. Any thread.
  std::string dtype() const;

  // What operators ask, as AdminService has it. Any thread. The call-backs come on a thread of the
  // server, once; at once with an error where this router stands by.
  using Command = decltype(AdminEvent::command);
  void Ask(std::function<void(const absl::StatusOr<const RouterCore*>&)> question);
  void Change(Command command, std::function<void(const AdminReply&)> on_reply);

  // The live picture and who watches it; as long as the server.
  live::Board& board();
  live::Feed& feed();

  // HOST:PORT of the HTTP API of a frontend that is connected, taken in turn; kUnavailable
  // ("no_frontend") when there is none.
  absl::StatusOr<std::string> FrontendApi();

  // Recorded routing (routing_trace.h), as AdminService has it: begins a recording, ends it, gives
  // its file up to now. Any thread; returns at once. `done` is called once: on a thread of the
  // server, which it must not hold up, or within the call when this router does not command.
  // kFailedPrecondition ("recording_model", "stale_term"), kNotFound ("no_recording"), kUnavailable
  // ("standby").
  void StartRecording(std::function<void(const absl::StatusOr<RecordingStatus>&)> done);
  void StopRecording(std::function<void(const absl::StatusOr<RecordingStatus>&)> done);
  void GetRecording(const std::function<void(absl::StatusOr<Recording>)>& done);

 private:
  class Impl;
  explicit RouterServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::router_service
