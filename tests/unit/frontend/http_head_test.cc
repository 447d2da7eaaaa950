// Goal: no request can be read in two ways, every limit of a header block holds, and only listed
// paths exist. Method: header blocks into the scanner, whole and byte by byte; a walk over the
// route table.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "http/head_scanner.h"
#include "http/routes.h"

namespace conclave::frontend {
namespace {

using Result = HeadScanner::Result;

constexpr char kGood[] = "POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n";

struct HeadCase {
  std::string row;
  std::string bytes;
  int status;
  std::string code;
};

void PrintTo(const HeadCase& head, std::ostream* os) {
  *os << head.row << " " << head.bytes.substr(0, 80);
}

std::string Post(const std::string& fields) {
  return "POST /v1/x HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n";
}

std::string ManyFields(int count) {
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += "a: b\r\n";
  }
  return out;
}

class BadHeadTest : public testing::TestWithParam<HeadCase> {};

TEST_P(BadHeadTest, IsRefusedWholeAndByteByByte) {
  const HeadCase& head = GetParam();
  const HttpLimits limits;
  HeadScanner whole(limits);
  ASSERT_EQ(whole.Scan(head.bytes), Result::kBad);
  EXPECT_EQ(whole.error().status, head.status);
  EXPECT_EQ(whole.error().code, head.code);

  HeadScanner slow(limits);
  Result result = Result::kNeedMore;
  for (size_t length = 1; length <= head.bytes.size() && result == Result::kNeedMore; ++length) {
    result = slow.Scan(std::string_view(head.bytes).substr(0, length));
  }
  ASSERT_EQ(result, Result::kBad);
  EXPECT_EQ(slow.error().code, head.code);
}

INSTANTIATE_TEST_SUITE_P(
    Limits, BadHeadTest,
    testing::Values(
        HeadCase{"H01", "GET /" + std::string(8192, 'a') + " HTTP/1.1\r\n", 414, "uri_too_long"},
        HeadCase{"H01", "GET /" + std::string(9000, 'a'), 414, "uri_too_long"},
        HeadCase{"H02", Post("X: " + std::string(1 << 20, 'a') + "\r\n"), 431, "headers_too_large"},
        HeadCase{"H02", "GET / HTTP/1.1\r\nX: " + std::string(17'000, 'a'), 431,
                 "headers_too_large"},
        HeadCase{"H03", Post(ManyFields(10'000)), 431, "too_many_headers"},
        HeadCase{"H03", Post(ManyFields(64)), 431, "too_many_headers"}));

INSTANTIATE_TEST_SUITE_P(
    H08Smuggling, BadHeadTest,
    testing::Values(
        HeadCase{"H08", Post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400,
                 "ambiguous_framing"},
        HeadCase{"H08", Post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), 400,
                 "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length: 3\r\nContent-Length: 4\r\n"), 400,
                 "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length: 3, 3\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length: +3\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length: 0x3\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length:\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length: 99999999999999999999\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Transfer-Encoding: identity\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Transfer-Encoding: gzip, chunked\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400,
                 "ambiguous_framing"},
        HeadCase{"H08", Post("X: a\r\n b\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("Content-Length : 3\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("X: a\nY: b\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", "GET / HTTP/1.1\nHost: a\n\n", 400, "ambiguous_framing"},
        HeadCase{"H08", Post("X: a\rY: b\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("X: a" + std::string(1, '\0') + "\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", Post("no colon\r\n"), 400, "ambiguous_framing"},
        HeadCase{"H08", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
                 "ambiguous_framing"}));

INSTANTIATE_TEST_SUITE_P(
    RequestLine, BadHeadTest,
    testing::Values(
        HeadCase{"H46", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_unsupported"},
        HeadCase{"H46", std::string("\x16\x03\x01\x02\x00\x01", 6), 400, "bad_request"},
        HeadCase{"H46", "SSH-2.0-OpenSSH_9.2\r\n", 400, "bad_request"},
        HeadCase{"H14", "GET /a" + std::string(1, '\0') + " HTTP/1.1\r\n", 400, "bad_request"},
        HeadCase{"line", "GET /a b HTTP/1.1\r\n", 400, "bad_request"},
        HeadCase{"line", "GET  HTTP/1.1\r\n", 400, "bad_request"},
        HeadCase{"line", "G:T / HTTP/1.1\r\n", 400, "bad_request"},
        HeadCase{"line", "GET / HTTP/1.10\r\n", 505, "http_version_unsupported"},
        HeadCase{"line", "GET /\r\n", 400, "bad_request"},
        HeadCase{"host", "GET / HTTP/1.1\r\n\r\n", 400, "bad_request"},
        HeadCase{"host", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad_request"}));

TEST(HeadScannerTest, FindsTheEndWhereverTheBytesAreCut) {
  const std::string bytes = std::string(kGood) + "body";
  const size_t num_head = std::string(kGood).size();
  const HttpLimits limits;
  for (size_t cut = 1; cut < num_head; ++cut) {
    HeadScanner scanner(limits);
    ASSERT_EQ(scanner.Scan(std::string_view(bytes).substr(0, cut)), Result::kNeedMore) << cut;
    ASSERT_EQ(scanner.Scan(bytes), Result::kComplete) << cut;
    EXPECT_EQ(scanner.num_bytes(), num_head);
    EXPECT_EQ(scanner.content_length(), 12u);
    EXPECT_FALSE(scanner.is_chunked());
  }
}

TEST(HeadScannerTest, TakesWhatIsJustWithinTheLimits) {
  const HttpLimits limits;
  // 63 fields and Host; the longest request line; header fields of exactly 16 KiB with their empty
  // line.
  HeadScanner fields(limits);
  EXPECT_EQ(fields.Scan(Post(ManyFields(63))), Result::kComplete);
  HeadScanner line(limits);
  EXPECT_EQ(line.Scan("GET /" + std::string(8000, 'a') + " HTTP/1.1\r\nHost: a\r\n\r\n"),
            Result::kComplete);
  HeadScanner chunked(limits);
  EXPECT_EQ(chunked.Scan(Post("transfer-encoding: Chunked\r\n")), Result::kComplete);
  EXPECT_TRUE(chunked.is_chunked());
}

TEST(RoutesTest, SR3TheTableHoldsTheseRoutesAndNoOthers) {
  std::set<std::string> listed;
  for (const Route& route : Routes()) {
    listed.insert(std::string(route.method) + " " + std::string(route.path));
  }
  EXPECT_EQ(listed, (std::set<std::string>{"POST /v1/chat/completions", "GET /v1/models",
                                           "GET /v1/models/{id}", "POST /tokenize",
                                           "POST /detokenize", "GET /health/live",
                                           "GET /health/ready", "GET /version", "GET /metrics"}));
}

TEST(RoutesTest, SR3OnlyTheHealthRoutesArePublic) {
  for (const Route& route : Routes()) {
    const bool is_health = route.path.substr(0, 8) == "/health/";
    EXPECT_EQ(route.scope == Scope::kPublic, is_health) << route.path;
    EXPECT_EQ(route.needs_backend,
              route.scope == Scope::kInfer || route.path.substr(0, 4) == "/v1/")
        << route.path;
    EXPECT_EQ(route.has_body, route.method == "POST") << route.path;
  }
}

TEST(RoutesTest, EveryRouteIsFoundByItsMethodOnly) {
  for (const Route& route : Routes()) {
    std::string path(route.path);
    if (const size_t at = path.find("{id}"); at != std::string::npos) {
      path.replace(at, 4, "demo");
    }
    const RouteMatch match = FindRoute(route.method, path + "?x=1", true);
    ASSERT_NE(match.route, nullptr) << path;
    EXPECT_EQ(match.route->id, route.id) << path;
    for (const std::string method : {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get"}) {
      if (method != route.method) {
        const RouteMatch other = FindRoute(method, path, true);
        EXPECT_EQ(other.route, nullptr) << method << " " << path;
        EXPECT_EQ(other.allow, route.method) << method << " " << path;
      }
    }
  }
}

TEST(RoutesTest, H14H47NothingElseExists) {
  for (const std::string path : {"/",
                                 "",
                                 "*",
                                 "//v1/models",
                                 "/v1//models",
                                 "/v1/models/",
                                 "/V1/models",
                                 "/v1/model",
                                 "/v1/chat/completions/",
                                 "/v1/chat/..%2fmodels",
                                 "/v1/chat/../models",
                                 "/metrics",
                                 "/metrics/",
                                 "/debug",
                                 "/debug/pprof",
                                 "/moe/stats",
                                 "/moe/status",
                                 "/admin",
                                 "/v1/models%00",
                                 "/health",
                                 "/health/",
                                 "/health/live/x",
                                 "http://host/v1/models",
                                 "/v1/completions",
                                 "/v1/embeddings",
                                 "/pause",
                                 "/invocations"}) {
    const RouteMatch match = FindRoute("GET", path, false);
    EXPECT_EQ(match.route, nullptr) << path;
    EXPECT_TRUE(match.allow.empty()) << path;
  }
}

TEST(RoutesTest, DecodesPercentStrictly) {
  EXPECT_EQ(DecodePercent("a%2Fb"), "a/b");
  EXPECT_EQ(DecodePercent("a%2"), std::nullopt);
  EXPECT_EQ(DecodePercent("a%zz"), std::nullopt);
  EXPECT_EQ(DecodePercent("%+1"), std::nullopt);
  EXPECT_EQ(DecodePercent("%ff"), std::nullopt);
}

TEST(CheckBodyTest, SaysWhatIsWrongBeforeTheBodyIsRead) {
  const Route& route = *FindRoute("POST", "/v1/chat/completions", false).route;
  BodyFields good;
  good.content_type = "application/json";
  good.content_length = 10;
  EXPECT_FALSE(CheckBody(route, good, 10).has_value());
  BodyFields fields = good;
  fields.content_length = 11;
  EXPECT_EQ(CheckBody(route, fields, 10)->code, "body_too_large");
  fields = good;
  fields.content_length.reset();
  EXPECT_EQ(CheckBody(route, fields, 10)->code, "length_required");
  fields.is_chunked = true;
  EXPECT_FALSE(CheckBody(route, fields, 10).has_value());
  for (const std::string encoding : {"gzip", "br", "gzip, gzip"}) {
    fields = good;
    fields.content_encoding = encoding;
    EXPECT_EQ(CheckBody(route, fields, 10)->code, "content_encoding_unsupported");
  }
  for (const std::string type : {"", "text/plain", "application/json; charset=utf-16",
                                 "application/jsonx", "multipart/form-data; boundary=x"}) {
    fields = good;
    fields.content_type = type;
    EXPECT_EQ(CheckBody(route, fields, 10)->code, "content_type_unsupported") << type;
  }
  for (const std::string type : {"application/json", "Application/JSON; charset=UTF-8",
                                 "application/json;charset=utf-8", "application/json;"}) {
    fields = good;
    fields.content_type = type;
    EXPECT_FALSE(CheckBody(route, fields, 10).has_value()) << type;
  }
  fields = good;
  fields.expect = "something";
  EXPECT_EQ(CheckBody(route, fields, 10)->status, 417);
  const Route& models = *FindRoute("GET", "/v1/models", false).route;
  EXPECT_EQ(CheckBody(models, good, 10)->code, "body_not_allowed");
}

}  // namespace
}  // namespace conclave::frontend
