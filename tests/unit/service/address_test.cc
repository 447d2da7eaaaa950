// Goal: addresses are read exactly, and nothing listens openly by accident.
// Method: tables; only numeric hosts and localhost, so no name server is asked.
#include "conclave/service/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "conclave/base/status.h"

namespace conclave::service {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, ReadsHostAndPort) {
  EXPECT_EQ(*ParseAddress("127.0.0.1:8000"), (Address{"127.0.0.1", 8000}));
  EXPECT_EQ(*ParseAddress("localhost:0"), (Address{"localhost", 0}));
  EXPECT_EQ(*ParseAddress("[::1]:65535"), (Address{"::1", 65535}));
  EXPECT_EQ(*ParseAddress("node-1.cluster_a.local:9"), (Address{"node-1.cluster_a.local", 9}));
}

TEST(AddressTest, L02RefusesBadPortsAndHosts) {
  for (const std::string text :
       {"127.0.0.1:80a", "127.0.0.1:-1", "127.0.0.1:65536", "127.0.0.1",      "127.0.0.1:",
        ":8000",         "8000",         "127.0.0.1:+80",   "127.0.0.1: 80",  "256.0.0.1:80",
        "1.2.3:80",      "::1:80",       "[::1:80",         "[127.0.0.1]:80", "[::1]80",
        "a b:80",        "-a:80",        "a-:80",           "a..b:80",        "http://a:80",
        "a/b:80",        "\u00e4:80"}) {
    const auto address = ParseAddress(text);
    ASSERT_FALSE(address.ok()) << text;
    EXPECT_EQ(MessageOf(address.status()),
              "expected HOST:PORT with port 0..65535, found \"" + text + "\"");
  }
  EXPECT_FALSE(ParseAddress(std::string("a\0b:80", 6)).ok());
  EXPECT_FALSE(ParseAddress(std::string(300, 'a') + ":80").ok());
}

TEST(AddressTest, TextReadsBack) {
  EXPECT_EQ(ToString(Address{"::1", 80}), "[::1]:80");
  EXPECT_EQ(HttpUrl(Address{"127.0.0.1", 8000}), "http://127.0.0.1:8000");
}

TEST(AddressTest, LoopbackIsWhatOnlyThisMachineReaches) {
  for (const char* host : {"127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host :
       {"0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "::2", "::ffff:10.0.0.1", "127.0.0.1.evil", ""}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

TEST(AddressTest, L04OpenAddressNeedsInsecure) {
  for (const char* host : {"0.0.0.0", "::", "192.0.2.1"}) {
    const auto refused = ResolveListener({host, 8000}, "--listen", false);
    ASSERT_FALSE(refused.ok()) << host;
    EXPECT_EQ(ReasonOf(refused.status()), "usage");
    EXPECT_THAT(MessageOf(refused.status()), HasSubstr("--listen: "));
    EXPECT_THAT(MessageOf(refused.status()), HasSubstr("--insecure"));
    EXPECT_TRUE(ResolveListener({host, 8000}, "--listen", true).ok()) << host;
  }
}

TEST(AddressTest, LocalhostListensOnLoopback) {
  const auto address = ResolveListener({"localhost", 8000}, "--listen", false);
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_TRUE(IsLoopback(address->host));
}

TEST(AddressTest, ListsAreReadAndWritten) {
  const auto addresses = ParseAddresses("127.0.0.1:1,[::1]:2,host:3");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_EQ(*addresses, (std::vector<Address>{{"127.0.0.1", 1}, {"::1", 2}, {"host", 3}}));
  EXPECT_EQ(ToString(*addresses), "127.0.0.1:1,[::1]:2,host:3");
  EXPECT_EQ(ToStrings(*addresses), (std::vector<std::string>{"127.0.0.1:1", "[::1]:2", "host:3"}));
  std::string many = "h:1";
  for (size_t i = 1; i <= kAddressesMax; ++i) {
    many += ",h:" + std::to_string(i + 1);
  }
  for (const std::string& text :
       {std::string(), std::string("a:1,"), std::string(",a:1"), std::string("a:1,,b:2"),
        std::string("a:1, b:2"), std::string("a:1,a:1"), std::string("a:1;b:2"), many}) {
    EXPECT_FALSE(ParseAddresses(text).ok()) << text;
  }
}

}  // namespace
}  // namespace conclave::service
