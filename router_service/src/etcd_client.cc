#include "conclave/router_service/etcd_client.h"

#include <absl/strings/escaping.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::router_service {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace json = boost::json;
using asio::ip::tcp;
using std::chrono::milliseconds;

// Codes of gRPC, which the gateway passes on.
constexpr int64_t kGrpcNotFound = 5;

absl::Status Unreachable(const std::string& why) {
  return Error(absl::StatusCode::kUnavailable, "etcd_unreachable", why);
}
absl::Status BadAnswer(const std::string& why) {
  return Error(absl::StatusCode::kUnavailable, "etcd_answer", why);
}

std::string Encode(const std::string& bytes) { return absl::Base64Escape(bytes); }

struct Reply {
  unsigned status = 0;
  std::string body;
};

// One request on a connection of its own, from its opening to the end of the answer.
class Exchange {
 public:
  explicit Exchange(MonotonicTime deadline) : deadline_(deadline) {}

  absl::StatusOr<Reply> Run(const service::Address& endpoint, const char* path,
                            const std::string& body) {
    const std::string name = service::ToString(endpoint);
    beast::error_code error;
    const asio::ip::address address = asio::ip::make_address(endpoint.host, error);
    if (!error) {
      error = Wait([&](auto done) {
        stream_.async_connect(tcp::endpoint(address, endpoint.port),
                              [done](beast::error_code e) { done(e, 0); });
      });
    }
    if (error) {
      return Unreachable(name + ": " + error.message());
    }
    http::request<http::string_body> request(http::verb::post, path, 11);
    request.set(http::field::host, name);
    request.set(http::field::connection, "close");
    request.set(http::field::content_type, "application/json");
    request.body() = body;
    request.prepare_payload();
    error = Wait([&](auto done) { http::async_write(stream_, request, done); });
    if (error) {
      return Unreachable(name + ": " + error.message());
    }
    http::response_parser<http::string_body> parser;
    parser.body_limit(EtcdClient::kAnswerBytesMax);
    error = Wait([&](auto done) { http::async_read(stream_, buffer_, parser, done); });
    if (error == http::error::body_limit) {
      return BadAnswer(name + ": expected an answer of at most " +
                       std::to_string(EtcdClient::kAnswerBytesMax) + " bytes");
    }
    if (error.category() == http::make_error_code(http::error::body_limit).category() &&
        error != http::error::end_of_stream && error != http::error::partial_message) {
      return BadAnswer(name + ": no HTTP: " + error.message());
    }
    if (error) {
      return Unreachable(name + ": " + error.message());
    }
    return Reply{parser.get().result_int(), std::move(parser.get().body())};
  }

 private:
  template <typename Fn>
  beast::error_code Wait(const Fn& start) {
    beast::error_code result = asio::error::operation_aborted;
    stream_.expires_at(deadline_);
    start([&result](beast::error_code error, size_t) { result = error; });
    context_.restart();
    context_.run();
    return result;
  }

  const MonotonicTime deadline_;
  asio::io_context context_{1};
  beast::tcp_stream stream_{context_};
  beast::flat_buffer buffer_;
};

absl::StatusOr<json::object> ParseObject(const std::string& text) {
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error.failed() || !value.is_object()) {
    return BadAnswer("expected a JSON object of etcd");
  }
  return std::move(value.as_object());
}

// The gateway writes 64-bit numbers as text and leaves zeros out.
absl::StatusOr<int64_t> NumberOf(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr) {
    return 0;
  }
  int64_t number = -1;
  if (value->is_int64()) {
    number = value->as_int64();
  } else if (value->is_string()) {
    const json::string& text = value->as_string();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    number = error == std::errc() && end == text.data() + text.size() ? number : -1;
  }
  if (number < 0) {
    return BadAnswer(std::string(name) + ": expected a number from 0");
  }
  return number;
}

absl::StatusOr<const json::object*> ObjectOf(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr || !value->is_object()) {
    return BadAnswer(std::string(name) + ": expected an object");
  }
  return &value->as_object();
}

absl::StatusOr<std::string> BytesOf(const json::object& object, const char* name) {
  const json::value* value = object.if_contains(name);
  std::string bytes;
  if (value == nullptr) {
    return bytes;
  }
  if (!value->is_string() ||
      !absl::Base64Unescape(absl::string_view(value->as_string().data(), value->as_string().size()),
                            &bytes)) {
    return BadAnswer(std::string(name) + ": expected base64");
  }
  return bytes;
}

// {"kvs": [{"key", "value", "create_revision", "mod_revision", "lease"}]}, for one key.
absl::StatusOr<std::optional<EtcdEntry>> EntryOf(const json::object& range,
                                                 const std::string& key) {
  const json::value* entries = range.if_contains("kvs");
  if (entries == nullptr) {
    return std::optional<EtcdEntry>();
  }
  if (!entries->is_array() || entries->as_array().size() != 1 ||
      !entries->as_array()[0].is_object()) {
    return BadAnswer("kvs: expected one entry");
  }
  const json::object& found = entries->as_array()[0].as_object();
  EtcdEntry entry;
  CONCLAVE_ASSIGN_OR_RETURN(const std::string found_key, BytesOf(found, "key"));
  CONCLAVE_ASSIGN_OR_RETURN(entry.value, BytesOf(found, "value"));
  CONCLAVE_ASSIGN_OR_RETURN(entry.create_revision, NumberOf(found, "create_revision"));
  CONCLAVE_ASSIGN_OR_RETURN(entry.mod_revision, NumberOf(found, "mod_revision"));
  CONCLAVE_ASSIGN_OR_RETURN(entry.lease, NumberOf(found, "lease"));
  if (found_key != key || entry.create_revision == 0 ||
      entry.mod_revision < entry.create_revision) {
    return BadAnswer("kvs: the entry is not the one that was asked for");
  }
  return std::optional<EtcdEntry>(std::move(entry));
}

json::object RangeOf(const std::string& key) { return {{"key", Encode(key)}}; }

json::object ToJson(const EtcdCompare& compare) {
  const std::string value = std::to_string(compare.value);
  json::object object{{"key", Encode(compare.key)}, {"result", "EQUAL"}};
  switch (compare.what) {
    case EtcdCompare::What::kCreateRevision:
      object["target"] = "CREATE";
      object["create_revision"] = value;
      break;
    case EtcdCompare::What::kModRevision:
      object["target"] = "MOD";
      object["mod_revision"] = value;
      break;
    case EtcdCompare::What::kLease:
      object["target"] = "LEASE";
      object["lease"] = value;
      break;
  }
  return object;
}

std::string ToJson(const EtcdTxn& txn) {
  json::array compare;
  for (const EtcdCompare& one : txn.all_of) {
    compare.push_back(ToJson(one));
  }
  json::array success;
  for (const EtcdPut& put : txn.then_put) {
    success.push_back(json::object{{"request_put",
                                    {{"key", Encode(put.key)},
                                     {"value", Encode(put.value)},
                                     {"lease", std::to_string(put.lease)}}}});
  }
  for (const std::string& key : txn.then_get) {
    success.push_back(json::object{{"request_range", RangeOf(key)}});
  }
  json::array failure;
  for (const std::string& key : txn.else_get) {
    failure.push_back(json::object{{"request_range", RangeOf(key)}});
  }
  return json::serialize(json::object{{"compare", std::move(compare)},
                                      {"success", std::move(success)},
                                      {"failure", std::move(failure)}});
}

absl::StatusOr<int64_t> RevisionOf(const json::object& answer) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object* header, ObjectOf(answer, "header"));
  return NumberOf(*header, "revision");
}

absl::StatusOr<EtcdLease> LeaseOf(const json::object& answer, int64_t expected_id) {
  EtcdLease lease;
  CONCLAVE_ASSIGN_OR_RETURN(lease.id, NumberOf(answer, "ID"));
  CONCLAVE_ASSIGN_OR_RETURN(const int64_t ttl, NumberOf(answer, "TTL"));
  constexpr int64_t kTtlMax = 9'000'000'000;  // etcd's own
  if (lease.id == 0 || (expected_id != 0 && lease.id != expected_id) || ttl > kTtlMax) {
    return BadAnswer("the lease is not the one that was asked for");
  }
  if (ttl == 0) {
    return NotFound("etcd_lease", "the lease is over");
  }
  lease.ttl = std::chrono::seconds(ttl);
  return lease;
}

// What a status other than 200 says.
absl::Status RefusalOf(const Reply& reply) {
  int64_t code = 0;
  std::string message = "HTTP status " + std::to_string(reply.status);
  if (const auto parsed = ParseObject(reply.body); parsed.ok()) {
    code = NumberOf(*parsed, "code").value_or(0);
    constexpr size_t kMessageBytesMax = 200;
    if (const json::value* text = parsed->if_contains("message");
        text != nullptr && text->is_string()) {
      message += ": " + std::string(text->as_string().subview(0, kMessageBytesMax));
    }
  }
  if (reply.status == 404 && code == kGrpcNotFound) {
    return NotFound("etcd_lease", message);
  }
  return reply.status >= 500 ? Unreachable(message) : BadAnswer(message);
}

}  // namespace

EtcdClient::EtcdClient(std::vector<service::Address> endpoints) : endpoints_(std::move(endpoints)) {
  CONCLAVE_CHECK(!endpoints_.empty());
}

absl::StatusOr<std::string> EtcdClient::Call(const char* path, const std::string& body,
                                             MonotonicTime deadline) {
  const size_t first = preferred_.load();
  absl::Status last = Unreachable("no time left");
  for (size_t i = 0; i < endpoints_.size(); ++i) {
    const MonotonicTime now = Clock::Real().Now();
    if (now >= deadline) {
      break;
    }
    const size_t which = (first + i) % endpoints_.size();
    const auto share = (deadline - now) / static_cast<int64_t>(endpoints_.size() - i);
    absl::StatusOr<Reply> reply = Exchange(now + share).Run(endpoints_[which], path, body);
    if (reply.ok() && reply->status == 200) {
      preferred_.store(which);
      return std::move(reply->body);
    }
    last = reply.ok() ? Annotate(RefusalOf(*reply), "etcd " + service::ToString(endpoints_[which]))
                      : reply.status();
    // What etcd itself refuses, every member refuses.
    if (reply.ok() && ReasonOf(last) != "etcd_unreachable") {
      return last;
    }
  }
  return last;
}

absl::StatusOr<std::optional<EtcdEntry>> EtcdClient::Get(const std::string& key,
                                                         MonotonicTime deadline) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string body,
                            Call("/v3/kv/range", json::serialize(RangeOf(key)), deadline));
  CONCLAVE_ASSIGN_OR_RETURN(const json::object answer, ParseObject(body));
  CONCLAVE_RETURN_IF_ERROR(RevisionOf(answer).status());
  return EntryOf(answer, key);
}

absl::StatusOr<EtcdTxnResult> EtcdClient::Commit(const EtcdTxn& txn, MonotonicTime deadline) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string body, Call("/v3/kv/txn", ToJson(txn), deadline));
  CONCLAVE_ASSIGN_OR_RETURN(const json::object answer, ParseObject(body));
  EtcdTxnResult result;
  CONCLAVE_ASSIGN_OR_RETURN(result.revision, RevisionOf(answer));
  if (const json::value* held = answer.if_contains("succeeded"); held != nullptr) {
    if (!held->is_bool()) {
      return BadAnswer("succeeded: expected true or false");
    }
    result.held = held->as_bool();
  }
  const size_t num_puts = result.held ? txn.then_put.size() : 0;
  const std::vector<std::string>& keys = result.held ? txn.then_get : txn.else_get;
  const json::value* responses = answer.if_contains("responses");
  const size_t num_responses =
      responses != nullptr && responses->is_array() ? responses->as_array().size() : 0;
  if (num_responses != num_puts + keys.size()) {
    return BadAnswer("responses: expected " + std::to_string(num_puts + keys.size()) + ", found " +
                     std::to_string(num_responses));
  }
  for (size_t i = 0; i < num_responses; ++i) {
    const json::value& response = responses->as_array()[i];
    if (!response.is_object()) {
      return BadAnswer("responses: expected objects");
    }
    CONCLAVE_ASSIGN_OR_RETURN(
        const json::object* part,
        ObjectOf(response.as_object(), i < num_puts ? "response_put" : "response_range"));
    if (i >= num_puts) {
      CONCLAVE_ASSIGN_OR_RETURN(std::optional<EtcdEntry> entry, EntryOf(*part, keys[i - num_puts]));
      result.found.push_back(std::move(entry));
    }
  }
  return result;
}

absl::StatusOr<EtcdLease> EtcdClient::Grant(std::chrono::seconds ttl, MonotonicTime deadline) {
  const std::string request = json::serialize(json::object{{"TTL", std::to_string(ttl.count())}});
  CONCLAVE_ASSIGN_OR_RETURN(const std::string body, Call("/v3/lease/grant", request, deadline));
  CONCLAVE_ASSIGN_OR_RETURN(const json::object answer, ParseObject(body));
  return LeaseOf(answer, 0);
}

absl::StatusOr<EtcdLease> EtcdClient::KeepAlive(int64_t lease, MonotonicTime deadline) {
  const std::string request = json::serialize(json::object{{"ID", std::to_string(lease)}});
  CONCLAVE_ASSIGN_OR_RETURN(const std::string body, Call("/v3/lease/keepalive", request, deadline));
  CONCLAVE_ASSIGN_OR_RETURN(const json::object answer, ParseObject(body));
  // A stream of answers in etcd's API, hence the wrapping.
  CONCLAVE_ASSIGN_OR_RETURN(const json::object* result, ObjectOf(answer, "result"));
  return LeaseOf(*result, lease);
}

absl::Status EtcdClient::Revoke(int64_t lease, MonotonicTime deadline) {
  const std::string request = json::serialize(json::object{{"ID", std::to_string(lease)}});
  return Call("/v3/lease/revoke", request, deadline).status();
}

}  // namespace conclave::router_service
