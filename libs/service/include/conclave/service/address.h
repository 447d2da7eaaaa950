// Network addresses as written in flags: HOST:PORT.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::service {

struct Address {
  std::string host = "127.0.0.1";  // a name, an IPv4 address, or an IPv6 address without brackets
  uint16_t port = 0;               // listening on 0 takes a free one
  friend bool operator==(const Address&, const Address&) = default;
};

// "127.0.0.1:8000", "localhost:0", "[::1]:8000". kInvalidArgument with
// `expected HOST:PORT with port 0..65535, found "127.0.0.1:80a"`.
absl::StatusOr<Address> ParseAddress(std::string_view text);

// "a:1,b:2": 1 to kAddressesMax of them, none twice.
inline constexpr size_t kAddressesMax = 16;
absl::StatusOr<std::vector<Address>> ParseAddresses(std::string_view text);
std::string ToString(const std::vector<Address>& addresses);
std::vector<std::string> ToStrings(const std::vector<Address>& addresses);

// What ParseAddress reads; IPv6 hosts get their brackets.
std::string ToString(const Address& address);

// "http://HOST:PORT".
std::string HttpUrl(const Address& address);

// The numeric form of `host`, IPv4 preferred; asks the resolver when it is a name. kUnavailable
// ("bind") when there is none.
absl::StatusOr<std::string> ResolveHost(const std::string& host);

// Whether a numeric address is of this machine alone: 127.0.0.0/8 or ::1 (IPv4-mapped forms too).
bool IsLoopback(const std::string& numeric_host);

// `address` with a numeric host, for a listener without TLS or keys. Refuses what others can reach
// unless `is_insecure`: kInvalidArgument ("usage") naming `flag` and --insecure.
absl::StatusOr<Address> ResolveListener(const Address& address, std::string_view flag,
                                        bool is_insecure);

}  // namespace conclave::service
