#include "live_routes.h"

#include <algorithm>
#include <atomic>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <memory>
#include <optional>
#include <utility>

#include "cluster_report.h"
#include "conclave/base/clock.h"
#include "conclave/base/json_writer.h"
#include "conclave/base/status.h"
#include "conclave/frontend/dispatch_counts.h"
#include "conclave/observability/metrics.h"
#include "conclave/router_service/router_server.h"
#include "page_files.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;
using router_service::AdminReply;
using router_service::RouterCore;
using router_service::RouterServer;
using service::AdminRequest;
using service::AdminRoute;
using ReplyPtr = std::shared_ptr<service::AdminReply>;

constexpr const char* kJson = "application/json";

void SendError(service::AdminReply& reply, const absl::Status& status) {
  reply.Send(service::AdminErrorStatus(status), kJson, service::AdminErrorBody(status));
}

AdminRoute Get(std::string path, std::function<void(const AdminRequest&, ReplyPtr)> handler) {
  AdminRoute route;
  route.method = "GET";
  route.path = std::move(path);
  route.handler = std::move(handler);
  return route;
}

AdminRoute GetText(std::string path, std::function<std::string()> text) {
  return Get(std::move(path), [text = std::move(text)](const AdminRequest&, const ReplyPtr& reply) {
    reply->Send(200, kJson, text());
  });
}

// ---- The page ---------------------------------------------------------------------------------

void SendPage(const AdminRequest& request, const ReplyPtr& reply) {
  const std::string path = request.path == "/" ? "/index.html" : request.path;
  const auto files = PageFiles();
  const auto it = std::find_if(files.begin(), files.end(),
                               [&](const PageFile& file) { return file.path == path; });
  if (it == files.end()) {
    SendError(*reply, NotFound("not_found", "no such file of the page"));
    return;
  }
  reply->Send(200, it->type, std::string(it->bytes),
              {{"Cache-Control", "no-cache"},
               {"Content-Security-Policy",
                "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
               {"Referrer-Policy", "no-referrer"}});
}

// ---- The stream -------------------------------------------------------------------------------

void WatchEvents(live::Feed& feed, const ReplyPtr& reply) {
  // The feed and the client may each be the first to go.
  const auto watch = std::make_shared<std::atomic<uint64_t>>(0);
  const auto is_over = std::make_shared<std::atomic<bool>>(false);
  reply->BeginStream("text/event-stream; charset=utf-8", [&feed, watch, is_over] {
    is_over->store(true);
    if (const uint64_t id = watch->exchange(0); id != 0) {
      feed.Unwatch(id);
    }
  });
  const uint64_t id = feed.Watch([reply](const live::Message& message) {
    reply->Write(std::make_shared<const std::string>(
        std::string(message.is_snapshot ? "event: snapshot\n" : "event: delta\n") +
        "id: " + std::to_string(message.seq) + "\ndata: " + *message.json + "\n\n"));
  });
  watch->store(id);
  if (is_over->load() && watch->exchange(0) != 0) {
    feed.Unwatch(id);
  }
}

// ---- Changes ----------------------------------------------------------------------------------

absl::Status BadField(const std::string& name, const std::string& expected) {
  return WithParam(InvalidArgument("invalid_request", name + ": expected " + expected), name);
}

// A flat object of what a change needs.
class Fields {
 public:
  static absl::StatusOr<Fields> Parse(const std::string& body) {
    boost::system::error_code error;
    json::value value = json::parse(body.empty() ? "{}" : body, error);
    if (error.failed() || !value.is_object()) {
      return InvalidArgument("invalid_json", "expected a JSON object as the body");
    }
    return Fields(std::move(value.get_object()));
  }

  absl::StatusOr<std::string> Name(const char* key) const {
    const json::value* value = object_.if_contains(key);
    if (value == nullptr || !value->is_string() || value->get_string().empty() ||
        value->get_string().size() > 64) {
      return BadField(key, "a worker's name");
    }
    return std::string(value->get_string().c_str());
  }
  absl::StatusOr<int32_t> Number(const char* key) const {
    constexpr int64_t kMax = 65'535;
    const json::value* value = object_.if_contains(key);
    if (value == nullptr || !value->is_int64() || value->get_int64() < 0 ||
        value->get_int64() > kMax) {
      return BadField(key, "a number of 0 to 65535");
    }
    return static_cast<int32_t>(value->get_int64());
  }
  absl::StatusOr<bool> Flag(const char* key) const {
    const json::value* value = object_.if_contains(key);
    if (value == nullptr) {
      return false;
    }
    if (!value->is_bool()) {
      return BadField(key, "true or false");
    }
    return value->get_bool();
  }
  absl::StatusOr<placement::ExpertUnit> Unit() const {
    CONCLAVE_ASSIGN_OR_RETURN(const int32_t layer, Number("layer"));
    CONCLAVE_ASSIGN_OR_RETURN(const int32_t expert, Number("expert"));
    return placement::ExpertUnit{LayerId(layer), ExpertId(expert)};
  }

 private:
  explicit Fields(json::object object) : object_(std::move(object)) {}
  json::object object_;
};

std::string Object(const char* key, const std::function<void(JsonWriter&)>& value) {
  std::string out;
  JsonWriter writer(out);
  writer.BeginObject().Key(key);
  value(writer);
  writer.EndObject();
  return out;
}

std::string DrainedBody(const AdminReply& reply) {
  return Object("is_drained", [&](JsonWriter& json) { json.Bool(reply.is_drained); });
}
std::string EpochBody(const AdminReply& reply) {
  return Object("epoch", [&](JsonWriter& json) {
    json.Int(static_cast<int64_t>(reply.epoch.value() & UINT32_MAX));
  });
}

absl::Status NoCluster() {
  return Error(absl::StatusCode::kFailedPrecondition, "no_cluster",
               "all experts are in this process: there is nothing to place");
}

using Command = RouterServer::Command;
using ToCommand = std::function<absl::StatusOr<Command>(const Fields&)>;
using ToBody = std::function<std::string(const AdminReply&)>;

// A change that the router makes once the key is right.
AdminRoute Change(std::string path, const LiveSources& sources, ToCommand to_command,
                  ToBody to_body) {
  AdminRoute route;
  route.method = "POST";
  route.path = std::move(path);
  route.body_bytes_max = 4 << 10;
  route.handler = [router = sources.router, key = sources.key, to_command = std::move(to_command),
                   to_body = std::move(to_body)](const AdminRequest& request,
                                                 const ReplyPtr& reply) {
    const auto read = [&]() -> absl::StatusOr<Command> {
      CONCLAVE_RETURN_IF_ERROR(key->Check(request.authorization));
      if (router == nullptr) {
        return NoCluster();
      }
      CONCLAVE_ASSIGN_OR_RETURN(const Fields fields, Fields::Parse(request.body));
      return to_command(fields);
    };
    absl::StatusOr<Command> command = read();
    if (!command.ok()) {
      SendError(*reply, command.status());
      return;
    }
    router->Change(*std::move(command), [reply, to_body](const AdminReply& answer) {
      if (answer.status.ok()) {
        reply->Send(200, kJson, to_body(answer));
      } else {
        SendError(*reply, answer.status);
      }
    });
  };
  return route;
}

// Asks the core, and sends what `body` makes of it.
void AskRouter(RouterServer* router, const ReplyPtr& reply,
               std::function<absl::StatusOr<std::string>(const RouterCore&)> body) {
  if (router == nullptr) {
    SendError(*reply, NoCluster());
    return;
  }
  router->Ask([reply, body = std::move(body)](const absl::StatusOr<const RouterCore*>& core) {
    const absl::StatusOr<std::string> text =
        core.ok() ? body(**core) : absl::StatusOr<std::string>(core.status());
    if (text.ok()) {
      reply->Send(200, kJson, *text);
    } else {
      SendError(*reply, text.status());
    }
  });
}

ToCommand DrainOf(bool is_undo) {
  return [is_undo](const Fields& fields) -> absl::StatusOr<Command> {
    CONCLAVE_ASSIGN_OR_RETURN(std::string name, fields.Name("worker"));
    return Command(router_service::DrainCommand{std::move(name), is_undo});
  };
}

absl::StatusOr<Command> PinOf(const Fields& fields) {
  CONCLAVE_ASSIGN_OR_RETURN(const placement::ExpertUnit unit, fields.Unit());
  CONCLAVE_ASSIGN_OR_RETURN(std::string name, fields.Name("worker"));
  CONCLAVE_ASSIGN_OR_RETURN(const bool is_undo, fields.Flag("unpin"));
  return Command(router_service::PinCommand{unit, std::move(name), is_undo});
}

absl::StatusOr<Command> ReplicateOf(const Fields& fields) {
  CONCLAVE_ASSIGN_OR_RETURN(const placement::ExpertUnit unit, fields.Unit());
  CONCLAVE_ASSIGN_OR_RETURN(const int32_t replicas, fields.Number("replicas"));
  return Command(router_service::ReplicateCommand{unit, replicas});
}

// A dry run changes nothing and needs no key.
AdminRoute RebalanceRoute(const LiveSources& sources) {
  AdminRoute route = Change(
      "/moe/rebalance", sources,
      [](const Fields& fields) -> absl::StatusOr<Command> {
        CONCLAVE_ASSIGN_OR_RETURN(const bool is_full, fields.Flag("full"));
        return Command(router_service::RebalanceCommand{is_full});
      },
      [](const AdminReply& reply) { return RebalanceJson(reply.rebalance, false); });
  route.handler = [router = sources.router, change = std::move(route.handler)](
                      const AdminRequest& request, const ReplyPtr& reply) {
    struct Wish {
      bool is_dry = false;
      bool is_full = false;
    };
    const auto read = [&]() -> absl::StatusOr<Wish> {
      CONCLAVE_ASSIGN_OR_RETURN(const Fields fields, Fields::Parse(request.body));
      Wish wish;
      CONCLAVE_ASSIGN_OR_RETURN(wish.is_dry, fields.Flag("dry_run"));
      CONCLAVE_ASSIGN_OR_RETURN(wish.is_full, fields.Flag("full"));
      return wish;
    };
    const absl::StatusOr<Wish> wish = read();
    if (!wish.ok()) {
      SendError(*reply, wish.status());
      return;
    }
    if (!wish->is_dry) {
      change(request, reply);
      return;
    }
    AskRouter(router, reply,
              [is_full = wish->is_full](const RouterCore& core) -> absl::StatusOr<std::string> {
                CONCLAVE_ASSIGN_OR_RETURN(const router_service::RebalancePlan plan,
                                          core.TryRebalance(is_full));
                return RebalanceJson(plan, true);
              });
  };
  return route;
}

// ---- Recorded routing -------------------------------------------------------------------------

AdminRoute RecordRoute(std::string path, const LiveSources& sources, bool is_start) {
  AdminRoute route;
  route.method = "POST";
  route.path = std::move(path);
  route.handler = [router = sources.router, key = sources.key, is_start](
                      const AdminRequest& request, const ReplyPtr& reply) {
    absl::Status status = key->Check(request.authorization);
    if (status.ok() && router == nullptr) {
      status = NoCluster();
    }
    if (!status.ok()) {
      SendError(*reply, status);
      return;
    }
    const auto done = [reply](const absl::StatusOr<router_service::RecordingStatus>& recording) {
      if (recording.ok()) {
        reply->Send(200, kJson, RecordingJson(*recording));
      } else {
        SendError(*reply, recording.status());
      }
    };
    is_start ? router->StartRecording(done) : router->StopRecording(done);
  };
  return route;
}

void SendRecording(RouterServer* router, const ReplyPtr& reply) {
  if (router == nullptr) {
    SendError(*reply, NoCluster());
    return;
  }
  router->GetRecording([reply](const absl::StatusOr<router_service::Recording>& recording) {
    if (!recording.ok()) {
      SendError(*reply, recording.status());
      return;
    }
    std::string file;
    for (const std::shared_ptr<const std::string>& piece : recording->pieces) {
      file += *piece;
    }
    reply->Send(200, "application/octet-stream", std::move(file),
                {{"Content-Disposition", "attachment; filename=\"routing.trace\""}});
  });
}

AdminRoute Hand(std::string method, std::string path,
                std::function<absl::StatusOr<service::Address>()> to, size_t body_bytes_max) {
  AdminRoute route;
  route.method = std::move(method);
  route.path = std::move(path);
  route.body_bytes_max = body_bytes_max;
  route.upstream = std::move(to);
  return route;
}

}  // namespace

std::vector<AdminRoute> LiveRoutes(const LiveSources& sources) {
  std::vector<AdminRoute> routes;
  routes.push_back(Get("/", &SendPage));
  routes.push_back(Get("/app/", &SendPage));
  live::Board* board = sources.board;
  routes.push_back(GetText("/moe/stats", [board] { return board->Snapshot(); }));
  routes.push_back(GetText("/moe/placement", [board] { return board->PlacementJson(); }));
  routes.push_back(GetText("/moe/history", [board] { return board->History(); }));
  routes.push_back(
      Get("/moe/events", [feed = sources.feed](const AdminRequest&, const ReplyPtr& reply) {
        WatchEvents(*feed, reply);
      }));
  RouterServer* router = sources.router;
  routes.push_back(Get("/moe/status", [router](const AdminRequest&, const ReplyPtr& reply) {
    AskRouter(router, reply,
              [](const RouterCore& core) { return StatusJson(core.Status(Clock::Real().Now())); });
  }));
  routes.push_back(
      Get("/moe/kill-safe", [router](const AdminRequest& request, const ReplyPtr& reply) {
        AskRouter(router, reply,
                  [name = service::QueryValue(request.query, "worker")](
                      const RouterCore& core) -> absl::StatusOr<std::string> {
                    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<placement::ExpertUnit> at_risk,
                                              core.AtRiskWithout(name));
                    return KillSafeJson(name, at_risk);
                  });
      }));
  routes.push_back(Change("/moe/drain", sources, DrainOf(false), &DrainedBody));
  routes.push_back(Change("/moe/undrain", sources, DrainOf(true), &DrainedBody));
  routes.push_back(Change("/moe/pin", sources, &PinOf, &EpochBody));
  routes.push_back(Change("/moe/replicate", sources, &ReplicateOf, &EpochBody));
  routes.push_back(RebalanceRoute(sources));
  routes.push_back(RecordRoute("/moe/record/start", sources, true));
  routes.push_back(RecordRoute("/moe/record/stop", sources, false));
  routes.push_back(Get("/moe/record", [router](const AdminRequest&, const ReplyPtr& reply) {
    SendRecording(router, reply);
  }));
  routes.push_back(Hand("GET", "/v1/models", sources.api, 1 << 10));
  routes.push_back(Hand("POST", "/v1/chat/completions", sources.api, sources.body_bytes_max));
  return routes;
}

std::vector<AdminRoute> HandOnLive(const std::function<absl::StatusOr<service::Address>()>& admin,
                                   size_t body_bytes_max) {
  std::vector<AdminRoute> routes;
  for (const char* path : {"/", "/app/", "/moe/", "/v1/models"}) {
    routes.push_back(Hand("GET", path, admin, 1 << 10));
  }
  routes.push_back(Hand("POST", "/moe/", admin, 4 << 10));
  routes.push_back(Hand("POST", "/v1/chat/completions", admin, body_bytes_max));
  return routes;
}

AdminRoute StragglersRoute(std::function<std::string()> json) {
  return GetText("/moe/stragglers", std::move(json));
}

live::Bounds LiveBounds() {
  live::Bounds bounds;
  for (const std::chrono::microseconds bound : frontend::kDispatchBounds) {
    bounds.call_seconds.push_back(std::chrono::duration<double>(bound).count());
  }
  bounds.recovery = bounds.call_seconds;
  const auto ttft = observability::TimeToFirstTokenBounds();
  bounds.ttft.assign(ttft.begin(), ttft.end());
  const auto itl = observability::InterTokenBounds();
  bounds.itl.assign(itl.begin(), itl.end());
  return bounds;
}

}  // namespace conclave::cli
