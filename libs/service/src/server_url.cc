#include "conclave/service/server_url.h"

#include <boost/url/parse.hpp>

namespace conclave::service {

std::string ServerUrl::Authority() const {
  return (host.find(':') == std::string::npos ? host : '[' + host + ']') + ':' + port;
}

std::optional<ServerUrl> ParseServerUrl(std::string_view text, std::string_view default_port) {
  const auto parsed = boost::urls::parse_uri({text.data(), text.size()});
  if (!parsed.has_value()) {
    return std::nullopt;
  }
  // port_number() is 0 for what is no port.
  const bool has_port = parsed->has_port() && !parsed->port().empty();
  if (parsed->scheme_id() != boost::urls::scheme::http || parsed->host().empty() ||
      (has_port && parsed->port_number() == 0) || parsed->has_query() || parsed->has_fragment() ||
      parsed->has_userinfo()) {
    return std::nullopt;
  }
  ServerUrl url;
  url.host = parsed->host_address();
  url.port = has_port ? std::string(parsed->port()) : std::string(default_port);
  url.path = std::string(parsed->encoded_path());
  while (url.path.ends_with('/')) {
    url.path.pop_back();
  }
  return url;
}

}  // namespace conclave::service
