#include "conclave/service/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <memory>

#include "conclave/base/status.h"
#include "conclave/service/units.h"

namespace conclave::service {
namespace {

constexpr size_t kHostBytesMax = 253;  // RFC 1035

absl::Status Malformed(std::string_view text) {
  return InvalidArgument("usage", "expected HOST:PORT with port 0..65535, found " + Quoted(text));
}

bool IsIpv6(const std::string& host) {
  in6_addr address{};
  return ::inet_pton(AF_INET6, host.c_str(), &address) == 1;
}

bool IsIpv4(const std::string& host) {
  in_addr address{};
  return ::inet_pton(AF_INET, host.c_str(), &address) == 1;
}

// Labels of letters, digits and hyphens (RFC 1123), underscores as container networks use them. A
// host of digits and dots alone would be a mistyped IPv4 address.
bool IsHostName(std::string_view host) {
  if (host.empty() || host.size() > kHostBytesMax) {
    return false;
  }
  bool has_letter = false;
  char before = '.';
  for (const char c : host) {
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    const bool is_digit = c >= '0' && c <= '9';
    has_letter = has_letter || is_letter;
    if (!is_letter && !is_digit && c != '-' && c != '.') {
      return false;
    }
    if ((c == '.' || c == '-') && before == '.') {
      return false;
    }
    before = c;
  }
  return has_letter && before != '-' && before != '.';
}

}  // namespace

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || text.find('\0') != std::string_view::npos) {
    return Malformed(text);
  }
  Address address;
  address.host = std::string(text.substr(0, colon));
  if (address.host.starts_with('[') && address.host.ends_with(']')) {
    address.host = address.host.substr(1, address.host.size() - 2);
    if (!IsIpv6(address.host)) {
      return Malformed(text);
    }
  } else if (!IsIpv4(address.host) && !IsHostName(address.host)) {
    return Malformed(text);
  }
  const std::string_view port = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc() || end != port.data() + port.size()) {
    return Malformed(text);
  }
  return address;
}

absl::StatusOr<std::vector<Address>> ParseAddresses(std::string_view text) {
  std::vector<Address> addresses;
  for (std::string_view rest = text;;) {
    const size_t comma = rest.find(',');
    CONCLAVE_ASSIGN_OR_RETURN(Address address, ParseAddress(rest.substr(0, comma)));
    if (std::find(addresses.begin(), addresses.end(), address) != addresses.end()) {
      return InvalidArgument("usage", "expected different addresses, found " + Quoted(text));
    }
    addresses.push_back(std::move(address));
    if (addresses.size() > kAddressesMax) {
      return InvalidArgument("usage", "expected at most " + std::to_string(kAddressesMax) +
                                          " addresses, found " + Quoted(text));
    }
    if (comma == std::string_view::npos) {
      return addresses;
    }
    rest.remove_prefix(comma + 1);
  }
}

std::string ToString(const std::vector<Address>& addresses) {
  std::string text;
  for (const Address& address : addresses) {
    text += (text.empty() ? "" : ",") + ToString(address);
  }
  return text;
}

std::vector<std::string> ToStrings(const std::vector<Address>& addresses) {
  std::vector<std::string> texts;
  texts.reserve(addresses.size());
  for (const Address& address : addresses) {
    texts.push_back(ToString(address));
  }
  return texts;
}

std::string ToString(const Address& address) {
  const bool is_bracketed = address.host.find(':') != std::string::npos;
  return (is_bracketed ? "[" + address.host + "]" : address.host) + ":" +
         std::to_string(address.port);
}

std::string HttpUrl(const Address& address) { return "http://" + ToString(address); }

absl::StatusOr<std::string> ResolveHost(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* raw = nullptr;
  const int rc = ::getaddrinfo(host.c_str(), nullptr, &hints, &raw);
  if (rc != 0 || raw == nullptr) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 Quoted(host) + ": " + std::string(::gai_strerror(rc)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> results(raw, &::freeaddrinfo);
  const addrinfo* best = results.get();
  for (const addrinfo* entry = results.get(); entry != nullptr; entry = entry->ai_next) {
    if (entry->ai_family == AF_INET) {
      best = entry;
      break;
    }
  }
  std::array<char, NI_MAXHOST> numeric{};
  const int name_rc = ::getnameinfo(best->ai_addr, best->ai_addrlen, numeric.data(), numeric.size(),
                                    nullptr, 0, NI_NUMERICHOST);
  if (name_rc != 0) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 Quoted(host) + ": " + std::string(::gai_strerror(name_rc)));
  }
  return std::string(numeric.data());
}

bool IsLoopback(const std::string& numeric_host) {
  in_addr v4{};
  if (::inet_pton(AF_INET, numeric_host.c_str(), &v4) == 1) {
    return (ntohl(v4.s_addr) >> 24) == 127;
  }
  in6_addr v6{};
  if (::inet_pton(AF_INET6, numeric_host.c_str(), &v6) != 1) {
    return false;
  }
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
}

absl::StatusOr<Address> ResolveListener(const Address& address, std::string_view flag,
                                        bool is_insecure) {
  absl::StatusOr<std::string> host = ResolveHost(address.host);
  if (!host.ok()) {
    return Annotate(host.status(), flag);
  }
  if (!IsLoopback(*host) && !is_insecure) {
    return InvalidArgument(
        "usage", std::string(flag) + ": " + ToString(address) +
                     " can be reached by others and has neither TLS nor keys; expected a loopback "
                     "address, or --insecure to serve it openly");
  }
  return Address{*std::move(host), address.port};
}

}  // namespace conclave::service
