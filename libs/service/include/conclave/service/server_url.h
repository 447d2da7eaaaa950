// URLs of servers that are spoken to without TLS: http://HOST[:PORT][/PATH].
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace conclave::service {

struct ServerUrl {
  std::string host;  // a name or an address, IPv6 without brackets
  std::string port;  // 1 to 65535
  std::string path;  // without the final slash; empty: the root

  // "HOST:PORT", for the header Host and for messages.
  std::string Authority() const;
};

// nullopt for anything else: another scheme, a port that is none, a user, a query or a fragment.
// `default_port`: where the URL names none.
std::optional<ServerUrl> ParseServerUrl(std::string_view text, std::string_view default_port);

}  // namespace conclave::service
