// Goal: one leader at a time, terms that never come again, and no write by a router that is deposed
// or by a request that was delayed. Method: a model of etcd's transactions and leases behind HTTP,
// whose leases end and whose answers are lost when a test says so.
#include "conclave/router_service/etcd_election.h"

#include <absl/strings/escaping.h>

#include <boost/json.hpp>
#include <map>
#include <memory>
#include <mutex>

#include "conclave/base/status.h"
#include "conclave/router_service/router_state.h"
#include "conclave/router_service/state_file.h"
#include "scripted_http.h"

namespace conclave::router_service {
namespace {

namespace json = boost::json;
using std::chrono::seconds;

std::string Text(const json::value& value) {
  std::string bytes;
  EXPECT_TRUE(absl::Base64Unescape(std::string(value.as_string().c_str()), &bytes));
  return bytes;
}
int64_t Number(const json::value& value) { return std::stoll(value.as_string().c_str()); }

// As much of etcd as the client asks for.
class ModelOfEtcd {
 public:
  struct Entry {
    std::string value;
    int64_t create = 0;
    int64_t mod = 0;
    int64_t lease = 0;
  };

  service::Address address() const { return server_.address(); }
  // The keys of the lease are gone, as after its time.
  void EndLease() {
    const std::scoped_lock lock(mu_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      it = it->second.lease != 0 ? entries_.erase(it) : std::next(it);
    }
    last_lease_ = 0;
  }
  void Put(const std::string& key, const std::string& value) {
    const std::scoped_lock lock(mu_);
    PutLocked(key, value, 0);
  }
  void Erase(const std::string& key) {
    const std::scoped_lock lock(mu_);
    entries_.erase(key);
  }
  std::string ValueOf(const std::string& key) const {
    const std::scoped_lock lock(mu_);
    return entries_.contains(key) ? entries_.at(key).value : "";
  }
  // The next transaction is carried out and its answer lost.
  void LoseNextTxnAnswer() {
    const std::scoped_lock lock(mu_);
    is_next_lost_ = true;
  }

 private:
  void PutLocked(const std::string& key, const std::string& value, int64_t lease) {
    Entry& entry = entries_[key];
    entry.value = value;
    entry.lease = lease;
    entry.mod = ++revision_;
    entry.create = entry.create == 0 ? revision_ : entry.create;
  }
  json::object Range(const std::string& key) const {
    json::object answer{{"header", {{"revision", std::to_string(revision_)}}}};
    if (const auto it = entries_.find(key); it != entries_.end()) {
      answer["kvs"] = json::array{{{"key", absl::Base64Escape(key)},
                                   {"value", absl::Base64Escape(it->second.value)},
                                   {"create_revision", std::to_string(it->second.create)},
                                   {"mod_revision", std::to_string(it->second.mod)},
                                   {"lease", std::to_string(it->second.lease)}}};
    }
    return answer;
  }
  bool Holds(const json::object& compare) const {
    const auto it = entries_.find(Text(compare.at("key")));
    const Entry entry = it == entries_.end() ? Entry{} : it->second;
    if (compare.at("target") == "CREATE") {
      return entry.create == Number(compare.at("create_revision"));
    }
    if (compare.at("target") == "MOD") {
      return entry.mod == Number(compare.at("mod_revision"));
    }
    return it != entries_.end() && entry.lease == Number(compare.at("lease"));
  }
  json::object Commit(const json::object& txn) {
    bool held = true;
    for (const json::value& compare : txn.at("compare").as_array()) {
      held = held && Holds(compare.as_object());
    }
    json::array responses;
    for (const json::value& value : txn.at(held ? "success" : "failure").as_array()) {
      if (const json::value* put = value.as_object().if_contains("request_put")) {
        PutLocked(Text(put->at("key")), Text(put->at("value")), Number(put->at("lease")));
        --revision_;  // one revision for all of it
        responses.push_back(json::object{{"response_put", json::object()}});
      } else {
        responses.push_back(
            json::object{{"response_range", Range(Text(value.at("request_range").at("key")))}});
      }
    }
    revision_ += held && !txn.at("success").as_array().empty() ? 1 : 0;
    json::object answer{{"header", {{"revision", std::to_string(revision_)}}},
                        {"responses", std::move(responses)}};
    if (held) {
      answer["succeeded"] = true;
    }
    return answer;
  }
  std::string Answer(const std::string& path, const std::string& body) {
    const std::scoped_lock lock(mu_);
    const json::object request = json::parse(body).as_object();
    if (path == "/v3/kv/range") {
      return HttpReply(json::serialize(Range(Text(request.at("key")))));
    }
    if (path == "/v3/kv/txn") {
      const std::string answer = json::serialize(Commit(request));
      return std::exchange(is_next_lost_, false) ? "HTTP/1.1 200 OK\r\nContent-Le"
                                                 : HttpReply(answer);
    }
    if (path == "/v3/lease/grant") {
      last_lease_ = ++num_leases_;
      return HttpReply(R"({"ID":")" + std::to_string(last_lease_) + R"(","TTL":")" +
                       std::string(request.at("TTL").as_string()) + "\"}");
    }
    const int64_t lease = Number(request.at("ID"));
    if (path == "/v3/lease/revoke") {
      std::erase_if(entries_, [&](const auto& entry) { return entry.second.lease == lease; });
      return HttpReply(R"({"header":{}})");
    }
    return HttpReply(R"({"result":{"ID":")" + std::to_string(lease) + "\"" +
                     (lease == last_lease_ ? R"(,"TTL":"60")" : "") + "}}");
  }

  mutable std::mutex mu_;
  std::map<std::string, Entry> entries_;
  int64_t revision_ = 1;
  int64_t num_leases_ = 0;
  int64_t last_lease_ = 0;
  bool is_next_lost_ = false;
  // Last: its thread uses the above.
  ScriptedHttp server_{
      [this](const std::string& path, const std::string& body) { return Answer(path, body); }};
};

class EtcdElectionTest : public ::testing::Test {
 protected:
  // Long enough that nothing ends by time while a test runs.
  EtcdElectionOptions Options(const std::string& address) {
    return {.prefix = "/conclave/test", .address = address, .lease = seconds(60)};
  }
  std::shared_ptr<EtcdLeadership> Win(EtcdElection& election) {
    auto won = election.Campaign();
    EXPECT_TRUE(won.ok()) << won.status();
    EXPECT_TRUE(won.ok() && *won != nullptr);
    return won.ok() ? *won : nullptr;
  }
  std::string State() {
    const std::string file = etcd_.ValueOf("/conclave/test/state");
    const auto blob = DecodeStateFile(file, kStateVersion);
    return blob.ok() ? std::string(*blob) : "none";
  }

  ModelOfEtcd etcd_;
  EtcdClient client_{{etcd_.address()}};
  EtcdElection a_{client_, Options("a:1")};
  EtcdElection b_{client_, Options("b:1")};
};

TEST_F(EtcdElectionTest, OneLeadsAndTheOtherSeesWho) {
  EXPECT_FALSE(a_.Leader()->has_value());
  const auto leader = Win(a_);
  EXPECT_TRUE(leader->IsHeld());
  EXPECT_TRUE(leader->KeepAlive().ok());
  EXPECT_EQ(**b_.Leader(), "a:1");
  const auto second = b_.Campaign();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(*second, nullptr);
  EXPECT_EQ(**b_.Leader(), "a:1") << "a campaign that is lost takes nothing away";
  leader->Resign();
  EXPECT_FALSE(b_.Leader()->has_value());
  EXPECT_FALSE(leader->IsHeld());
}

TEST_F(EtcdElectionTest, EveryLeadershipHasATermOfItsOwn) {
  for (uint32_t term = 1; term <= 3; ++term) {
    const auto leader = Win(term % 2 == 0 ? a_ : b_);
    EXPECT_EQ(leader->term(), term) << "whether or not anything was saved";
    leader->Resign();
  }
  const auto leader = Win(a_);
  EtcdStateStore store(leader);
  ASSERT_TRUE(store.Load().ok());
  ASSERT_TRUE(store.Save("outbid", 17).ok());
  etcd_.Erase("/conclave/test/state");
  leader->Resign();
  const auto next = Win(b_);
  EXPECT_EQ(next->term(), 18u) << "a term that was written is used, even if the state is lost";
  const auto stored = EtcdStateStore(next).Load();
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_FALSE(stored->is_found);
  EXPECT_EQ(stored->terms_used, 17u);
}

TEST_F(EtcdElectionTest, TheNextLeaderReadsWhatTheLastOneWrote) {
  const auto first = Win(a_);
  EtcdStateStore store(first);
  ASSERT_TRUE(store.Load().ok());
  ASSERT_TRUE(store.Save("one", 1).ok());
  ASSERT_TRUE(store.Save("two", 1).ok());
  etcd_.EndLease();
  const auto second = Win(b_);
  const auto stored = EtcdStateStore(second).Load();
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->blob, "two");
}

TEST_F(EtcdElectionTest, ADeposedLeaderCannotWrite) {
  const auto zombie = Win(a_);
  EtcdStateStore old_store(zombie);
  ASSERT_TRUE(old_store.Load().ok());
  ASSERT_TRUE(old_store.Save("old", 1).ok());
  etcd_.EndLease();

  // Nobody leads yet: even so the lease is over.
  EXPECT_EQ(ReasonOf(old_store.Save("late", 1)), "leadership_lost");
  EXPECT_EQ(State(), "old");
  EXPECT_FALSE(zombie->IsHeld());

  const auto another = Win(a_);
  EtcdStateStore another_store(another);
  ASSERT_TRUE(another_store.Load().ok());
  etcd_.EndLease();
  const auto leader = Win(b_);
  EtcdStateStore store(leader);
  ASSERT_TRUE(store.Load().ok());
  ASSERT_TRUE(store.Save("new", 2).ok());
  EXPECT_TRUE(another->IsHeld()) << "by its own clock it still leads";
  EXPECT_EQ(ReasonOf(another_store.Save("late", 1)), "leadership_lost");
  EXPECT_EQ(State(), "new");
  EXPECT_EQ(etcd_.ValueOf("/conclave/test/term"), "3");
  EXPECT_FALSE(another->IsHeld());
  EXPECT_EQ(ReasonOf(EtcdStateStore(another).Load().status()), "leadership_lost");
}

TEST_F(EtcdElectionTest, ALeaseThatIsOverDoesNotComeBack) {
  const auto leader = Win(a_);
  etcd_.EndLease();
  EXPECT_EQ(ReasonOf(leader->KeepAlive()), "leadership_lost");
  EXPECT_FALSE(leader->IsHeld());
  EXPECT_EQ(ReasonOf(leader->KeepAlive()), "leadership_lost");

  const MonotonicTime past = Clock::Real().Now() - seconds(61);
  EtcdLeadership stopped(client_, Options("a:1"), {99, seconds(60)}, 1, 1, past);
  EXPECT_FALSE(stopped.IsHeld()) << "by the clock alone";
  EXPECT_EQ(ReasonOf(stopped.KeepAlive()), "leadership_lost");
}

TEST_F(EtcdElectionTest, AWriteWhoseAnswerIsLostIsReplaced) {
  const auto leader = Win(a_);
  EtcdStateStore store(leader);
  ASSERT_TRUE(store.Load().ok());
  etcd_.LoseNextTxnAnswer();
  EXPECT_EQ(ReasonOf(store.Save("one", 1)), "state_write_failed");
  EXPECT_EQ(State(), "one");
  EXPECT_TRUE(store.Save("two", 1).ok());
  EXPECT_EQ(State(), "two");
  EXPECT_TRUE(leader->IsHeld());
}

TEST_F(EtcdElectionTest, AStateThatWasChangedBehindTheLeaderIsNotOverwrittenByALateWrite) {
  const auto leader = Win(a_);
  EtcdStateStore early(leader);
  ASSERT_TRUE(early.Load().ok());
  ASSERT_TRUE(early.Save("new", 1).ok());
  EtcdTxn delayed;  // what Save commits, sent before and held back by a network
  delayed.all_of = leader->Conditions();
  delayed.all_of.push_back({"/conclave/test/state", EtcdCompare::What::kModRevision, 0});
  delayed.then_put = {{"/conclave/test/state", "old"}};
  const auto result = client_.Commit(delayed, Clock::Real().Now() + seconds(5));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->held);
  EXPECT_EQ(State(), "new");
}

TEST_F(EtcdElectionTest, AStateThatCannotBeUsed) {
  const auto leader = Win(a_);
  const std::string good = EncodeStateFile(kStateVersion, "state");
  etcd_.Put("/conclave/test/state", good.substr(0, good.size() - 1));
  EtcdStateStore store(leader);
  const auto stored = store.Load();
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_FALSE(stored->is_found);
  ASSERT_EQ(stored->refused.size(), 1u);
  EXPECT_EQ(ReasonOf(stored->refused[0]), "state_corrupt");
  EXPECT_TRUE(store.Save("learnt anew", 1).ok());

  etcd_.Put("/conclave/test/state", EncodeStateFile(kStateVersion + 1, "of a newer router"));
  EXPECT_EQ(ReasonOf(EtcdStateStore(leader).Load().status()), "state_version_unsupported");
  EXPECT_EQ(ReasonOf(store.Save(std::string(EtcdStateStore::kBlobBytesMax + 1, 'x'), 1)),
            "state_write_failed");
}

TEST_F(EtcdElectionTest, TermsThatAreNoneOrUsedUp) {
  etcd_.Put("/conclave/test/term", "4294967295");
  EXPECT_EQ(ReasonOf(a_.Campaign().status()), "term_exhausted");
  for (const char* bad : {"", "x", "-1", "4294967296", "7 "}) {
    etcd_.Put("/conclave/test/term", bad);
    EXPECT_EQ(ReasonOf(a_.Campaign().status()), "state_corrupt") << bad;
  }
}

}  // namespace
}  // namespace conclave::router_service
