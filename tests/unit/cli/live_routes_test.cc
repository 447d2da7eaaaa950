// Goal: the paths of docs/live.md answer what they should where no router is at hand, as in serve,
// and nothing is changed without the key. Method: the routes' handlers, called as a listener does.
#include "live_routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"

namespace conclave::cli {
namespace {

using service::AdminRoute;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

// Keeps what it is given.
struct Reply : public service::AdminReply {
  void Send(int reply_status, std::string_view content_type, std::string reply_body,
            Headers reply_headers) override {
    status = reply_status;
    type = content_type;
    body = std::move(reply_body);
    headers = std::move(reply_headers);
  }
  void BeginStream(std::string_view content_type, std::function<void()> when_closed) override {
    type = content_type;
    on_closed = std::move(when_closed);
  }
  void Write(std::shared_ptr<const std::string> piece) override { pieces.push_back(*piece); }

  int status = 0;
  std::string type, body;
  Headers headers;
  std::function<void()> on_closed;
  std::vector<std::string> pieces;
};

class LiveRoutesTest : public ::testing::Test {
 protected:
  // The route that a listener takes for it.
  const AdminRoute& Route(const std::string& method, const std::string& path) {
    const auto it = std::find_if(routes_.begin(), routes_.end(), [&](const AdminRoute& route) {
      return route.method == method &&
             (route.path == path ||
              (route.path.size() > 1 && route.path.ends_with('/') && path.starts_with(route.path)));
    });
    EXPECT_NE(it, routes_.end()) << method << " " << path;
    return *it;
  }
  std::shared_ptr<Reply> Ask(const std::string& method, const std::string& path,
                             const std::string& body = "", const std::string& authorization = "") {
    auto reply = std::make_shared<Reply>();
    Route(method, path).handler({path, "", authorization, body}, reply);
    return reply;
  }
  void UseKey(const AdminKey& key) {
    routes_ =
        LiveRoutes({.board = &board_, .feed = &feed_, .key = &key, .router = nullptr, .api = [] {
                      return service::Address{"127.0.0.1", 8000};
                    }});
  }
  LiveRoutesTest() { UseKey(no_key_); }

  const AdminKey no_key_{""};
  live::Board board_{{.role = "serve",
                      .version = "1",
                      .bounds = LiveBounds(),
                      .admin_reason = "no --admin-key-file",
                      .now = {}}};
  live::Feed feed_{board_, nullptr};
  std::vector<AdminRoute> routes_;
};

TEST_F(LiveRoutesTest, ThePictureIsTheBoards) {
  EXPECT_EQ(Ask("GET", "/moe/stats")->body, board_.Snapshot());
  EXPECT_EQ(Ask("GET", "/moe/placement")->body, board_.PlacementJson());
  const auto history = Ask("GET", "/moe/history");
  EXPECT_EQ(history->status, 200);
  EXPECT_EQ(history->type, "application/json");
  EXPECT_EQ(history->body, board_.History());
}

TEST_F(LiveRoutesTest, ThePageIsThereAndKeepsToItself) {
  const auto page = Ask("GET", "/");
  EXPECT_EQ(page->status, 200);
  EXPECT_THAT(page->type, StartsWith("text/html"));
  EXPECT_THAT(page->body, HasSubstr("<html"));
  const bool has_policy =
      std::any_of(page->headers.begin(), page->headers.end(), [](const auto& header) {
        return header.first == "Content-Security-Policy" &&
               header.second.find("default-src 'self'") != std::string::npos;
      });
  EXPECT_TRUE(has_policy);
  const auto none = Ask("GET", "/app/none.js");
  EXPECT_EQ(none->status, 404);
  EXPECT_THAT(none->body, HasSubstr(R"("code":"not_found")"));
}

TEST_F(LiveRoutesTest, EventsBeginWithASnapshotUntilTheClientGoes) {
  const auto reply = Ask("GET", "/moe/events");
  EXPECT_THAT(reply->type, StartsWith("text/event-stream"));
  ASSERT_THAT(reply->pieces, SizeIs(1));
  EXPECT_EQ(reply->pieces[0], "event: snapshot\nid: " + std::to_string(board_.seq()) +
                                  "\ndata: " + board_.Snapshot() + "\n\n");
  reply->on_closed();
  EXPECT_LE(reply.use_count(), 1) << "nobody writes to it any more";
}

TEST_F(LiveRoutesTest, WithoutAKeyFileNothingMayBeChanged) {
  for (const char* path :
       {"/moe/drain", "/moe/undrain", "/moe/pin", "/moe/replicate", "/moe/rebalance"}) {
    const auto reply = Ask("POST", path, "{}", "Bearer 0123456789abcdef");
    EXPECT_EQ(reply->status, 403) << path;
    EXPECT_THAT(reply->body, HasSubstr(R"("code":"admin_key")")) << path;
  }
}

TEST_F(LiveRoutesTest, TheKeyIsAskedForBeforeAnythingElseAndThenThereMustBeACluster) {
  const testing::TempFolder folder;
  const std::string file = folder.Write("key", "0123456789abcdef");
  ASSERT_EQ(::chmod(file.c_str(), 0600), 0);
  AdminKey key(file);
  ASSERT_EQ(key.Load(), absl::OkStatus());
  UseKey(key);
  for (const char* path : {"/moe/drain", "/moe/undrain", "/moe/pin", "/moe/replicate"}) {
    EXPECT_EQ(Ask("POST", path, "no JSON")->status, 401) << path;
    EXPECT_EQ(Ask("POST", path, "{}", "Bearer 0123456789abcdeX")->status, 401) << path;
    const auto reply = Ask("POST", path, "{}", "Bearer 0123456789abcdef");
    EXPECT_EQ(reply->status, 409) << path;
    EXPECT_THAT(reply->body, HasSubstr(R"("code":"no_cluster")")) << path;
  }
  EXPECT_EQ(Ask("POST", "/moe/rebalance", "{}")->status, 401);
}

TEST_F(LiveRoutesTest, WhatChangesNothingIsOpen) {
  for (const auto& reply : {Ask("GET", "/moe/status"), Ask("GET", "/moe/kill-safe"),
                            Ask("POST", "/moe/rebalance", R"({"dry_run":true})")}) {
    EXPECT_EQ(reply->status, 409);
    EXPECT_THAT(reply->body, HasSubstr(R"("code":"no_cluster")"));
  }
}

TEST_F(LiveRoutesTest, ABodyThatIsNotUnderstoodIsSaidSo) {
  for (const char* body : {"[]", "{", "1", "\"x\""}) {
    const auto reply = Ask("POST", "/moe/rebalance", body);
    EXPECT_EQ(reply->status, 400) << body;
    EXPECT_THAT(reply->body, HasSubstr(R"("code":"body_not_object")")) << body;
  }
  const auto reply = Ask("POST", "/moe/rebalance", R"({"dry_run":1})");
  EXPECT_EQ(reply->status, 400);
  EXPECT_THAT(reply->body, HasSubstr("dry_run: expected true or false"));
}

TEST_F(LiveRoutesTest, TheChatIsHandedOn) {
  for (const AdminRoute* route :
       {&Route("GET", "/v1/models"), &Route("POST", "/v1/chat/completions")}) {
    ASSERT_TRUE(route->upstream);
    EXPECT_EQ(*route->upstream(), (service::Address{"127.0.0.1", 8000}));
  }
  EXPECT_EQ(Route("POST", "/v1/chat/completions").body_bytes_max, size_t{32} << 20);
}

TEST_F(LiveRoutesTest, AllOfThemCanBeHandedOnAsAWhole) {
  const std::vector<AdminRoute> own = routes_;
  routes_ = HandOnLive([] { return service::Address{"127.0.0.1", 9090}; }, 1000);
  for (const AdminRoute& route : own) {
    EXPECT_TRUE(Route(route.method, route.path).upstream) << route.path;
  }
  EXPECT_EQ(Route("POST", "/v1/chat/completions").body_bytes_max, 1000u);
}

}  // namespace
}  // namespace conclave::cli
