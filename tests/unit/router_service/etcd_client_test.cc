// Goal: the client takes etcd's answers and nothing else, never waits beyond its deadline, and
// finds the endpoint that works.
// Method: servers on loopback that say what real and broken ones would.
#include "conclave/router_service/etcd_client.h"

#include <memory>

#include "conclave/base/status.h"
#include "gmock/gmock.h"
#include "scripted_http.h"

namespace conclave::router_service {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

MonotonicTime In(milliseconds time) { return Clock::Real().Now() + time; }

// "k" and "v" in base64 are aw== and dg==.
constexpr char kEntry[] =
    R"({"header":{"revision":"7"},"kvs":[{"key":"aw==","create_revision":"2","mod_revision":"5",)"
    R"("version":"1","value":"dg==","lease":"4111120321778147079"}],"count":"1"})";

absl::StatusOr<std::optional<EtcdEntry>> GetFrom(const std::string& reply) {
  ScriptedHttp server([&](const std::string&, const std::string&) { return reply; });
  EtcdClient client({server.address()});
  return client.Get("k", In(milliseconds(5000)));
}

TEST(EtcdClientTest, ReadsAnEntry) {
  std::string path;
  std::string body;
  ScriptedHttp server([&](const std::string& p, const std::string& b) {
    path = p;
    body = b;
    return HttpReply(kEntry);
  });
  EtcdClient client({server.address()});
  const auto entry = client.Get("k", In(milliseconds(5000)));
  ASSERT_TRUE(entry.ok()) << entry.status();
  ASSERT_TRUE(entry->has_value());
  EXPECT_EQ((*entry)->value, "v");
  EXPECT_EQ((*entry)->create_revision, 2);
  EXPECT_EQ((*entry)->mod_revision, 5);
  EXPECT_EQ((*entry)->lease, 4111120321778147079);
  EXPECT_EQ(path, "/v3/kv/range");
  EXPECT_EQ(body, R"({"key":"aw=="})");
}

TEST(EtcdClientTest, AKeyThatIsNotThereIsNoError) {
  const auto entry = GetFrom(HttpReply(R"({"header":{"revision":"7"}})"));
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_FALSE(entry->has_value());
}

TEST(EtcdClientTest, BadAnswersAreRefused) {
  const std::string oversize(EtcdClient::kAnswerBytesMax + 1, ' ');
  const std::string replies[] = {
      "nonsense\r\n\r\n",
      HttpReply(""),
      HttpReply("[]"),
      HttpReply("{\"header\":"),
      HttpReply("{}"),
      HttpReply(R"({"header":{"revision":"-7"}})"),
      HttpReply(R"({"header":{"revision":"99999999999999999999"}})"),
      HttpReply(R"({"header":{"revision":"7"},"kvs":{}})"),
      HttpReply(R"({"header":{"revision":"7"},"kvs":[]})"),
      HttpReply(R"({"header":{"revision":"7"},"kvs":[{"key":"??","create_revision":"2"}]})"),
      // Another key, and one without a revision.
      HttpReply(R"({"header":{"revision":"7"},)"
                R"("kvs":[{"key":"dg==","create_revision":"2","mod_revision":"2"}]})"),
      HttpReply(R"({"header":{"revision":"7"},"kvs":[{"key":"aw==","value":"dg=="}]})"),
      HttpReply(R"({"code":3,"message":"no"})", "400 Bad Request"),
      HttpReply("", "302 Found"),
      HttpReply(oversize),
  };
  for (const std::string& reply : replies) {
    SCOPED_TRACE(reply.substr(0, 200));
    const auto entry = GetFrom(reply);
    EXPECT_EQ(ReasonOf(entry.status()), "etcd_answer") << entry.status();
    EXPECT_TRUE(absl::IsUnavailable(entry.status()));
  }
}

TEST(EtcdClientTest, AnAnswerThatIsCutIsNone) {
  const std::string whole = HttpReply(kEntry);
  for (const size_t size : {size_t{10}, whole.size() / 2, whole.size() - 1}) {
    const auto entry = GetFrom(whole.substr(0, size));
    EXPECT_EQ(ReasonOf(entry.status()), "etcd_unreachable") << entry.status();
  }
}

TEST(EtcdClientTest, ASilentServerCostsTheDeadlineAndNoMore) {
  ScriptedHttp server([](const std::string&, const std::string&) { return ""; });
  EtcdClient client({server.address()});
  const MonotonicTime start = Clock::Real().Now();
  const auto entry = client.Get("k", start + milliseconds(200));
  const auto took = Clock::Real().Now() - start;
  EXPECT_EQ(ReasonOf(entry.status()), "etcd_unreachable") << entry.status();
  EXPECT_GE(took, milliseconds(190));
  EXPECT_LT(took, milliseconds(5000));
  EXPECT_EQ(ReasonOf(client.Get("k", start).status()), "etcd_unreachable") << "a past deadline";
  EXPECT_EQ(server.num_requests(), 1);
}

TEST(EtcdClientTest, EndpointsAreTriedInTurnAndTheGoodOneIsKept) {
  ScriptedHttp silent([](const std::string&, const std::string&) { return ""; });
  ScriptedHttp without_quorum([](const std::string&, const std::string&) {
    return HttpReply(R"({"code":14,"message":"no leader"})", "503 Service Unavailable");
  });
  ScriptedHttp good([](const std::string&, const std::string&) { return HttpReply(kEntry); });
  EtcdClient client({silent.address(), without_quorum.address(), good.address()});
  ASSERT_TRUE(client.Get("k", In(milliseconds(3000))).ok());
  ASSERT_TRUE(client.Get("k", In(milliseconds(3000))).ok());
  EXPECT_EQ(silent.num_requests(), 1);
  EXPECT_EQ(without_quorum.num_requests(), 1);
  EXPECT_EQ(good.num_requests(), 2);
}

TEST(EtcdClientTest, ATransactionSaysWhatItSaw) {
  std::string body;
  std::string reply;
  ScriptedHttp server([&](const std::string&, const std::string& b) {
    body = b;
    return HttpReply(reply);
  });
  EtcdClient client({server.address()});
  EtcdTxn txn;
  txn.all_of = {{"k", EtcdCompare::What::kModRevision, 5}};
  txn.then_put = {{"k", "v", 9}};
  txn.else_get = {"k"};
  reply = R"({"header":{"revision":"8"},"succeeded":true,)"
          R"("responses":[{"response_put":{"header":{"revision":"8"}}}]})";
  auto result = client.Commit(txn, In(milliseconds(5000)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->held);
  EXPECT_EQ(result->revision, 8);
  EXPECT_THAT(body, HasSubstr(R"("target":"MOD","mod_revision":"5")"));
  EXPECT_THAT(body, HasSubstr(R"("request_put":{"key":"aw==","value":"dg==","lease":"9"})"));

  reply =
      std::string(R"({"header":{"revision":"8"},"responses":[{"response_range":)") + kEntry + "}]}";
  result = client.Commit(txn, In(milliseconds(5000)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->held);
  ASSERT_EQ(result->found.size(), 1u);
  EXPECT_EQ(result->found[0]->mod_revision, 5);

  // Fewer answers than questions, and one of the wrong kind: nothing may be concluded from them.
  for (const char* bad :
       {R"({"header":{"revision":"8"},"succeeded":true})",
        R"({"header":{"revision":"8"},"succeeded":"yes","responses":[{"response_put":{}}]})",
        R"({"header":{"revision":"8"},"succeeded":true,"responses":[{"response_range":{}}]})",
        R"({"header":{"revision":"8"},"succeeded":true,"responses":[7]})"}) {
    reply = bad;
    EXPECT_EQ(ReasonOf(client.Commit(txn, In(milliseconds(5000))).status()), "etcd_answer") << bad;
  }
}

TEST(EtcdClientTest, LeasesAreGrantedKeptAndMissed) {
  std::string reply;
  ScriptedHttp server([&](const std::string&, const std::string&) { return reply; });
  EtcdClient client({server.address()});
  const auto keep = [&] { return client.KeepAlive(9, In(milliseconds(5000))); };

  reply = HttpReply(R"({"header":{},"ID":"9","TTL":"3"})");
  const auto lease = client.Grant(std::chrono::seconds(3), In(milliseconds(5000)));
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->id, 9);
  EXPECT_EQ(lease->ttl, std::chrono::seconds(3));

  reply = HttpReply(R"({"result":{"header":{},"ID":"9","TTL":"3"}})");
  EXPECT_TRUE(keep().ok());
  reply = HttpReply(R"({"result":{"header":{},"ID":"9"}})");
  EXPECT_TRUE(absl::IsNotFound(keep().status())) << "no time left: the lease is over";
  reply = HttpReply(R"({"code":5,"message":"requested lease not found"})", "404 Not Found");
  EXPECT_EQ(ReasonOf(keep().status()), "etcd_lease");
  for (const char* bad : {R"({"result":{"ID":"8","TTL":"3"}})", R"({"ID":"9","TTL":"3"})",
                          R"({"error":{"grpc_code":14,"http_code":503}})",
                          R"({"result":{"ID":"9","TTL":"9999999999999"}})"}) {
    reply = HttpReply(bad);
    EXPECT_EQ(ReasonOf(keep().status()), "etcd_answer") << bad;
  }
  reply = HttpReply(R"({"message":"page not found"})", "404 Not Found");
  EXPECT_EQ(ReasonOf(keep().status()), "etcd_answer") << "no etcd: the lease may well be there";
}

}  // namespace
}  // namespace conclave::router_service
