#include "grpc_pair.h"

#include <array>
#include <charconv>
#include <cinttypes>
#include <cstdio>

#include "conclave/base/status.h"

namespace conclave::transport {

std::string SessionText(uint64_t session) {
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016" PRIx64, session);
  return text.data();
}

std::optional<uint64_t> ParseSessionText(std::string_view text) {
  uint64_t session = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), session, 16);
  if (error != std::errc() || end != text.data() + text.size() || SessionText(session) != text) {
    return std::nullopt;
  }
  return session;
}

absl::Status CheckRole(const grpc::AuthContext& context, std::string_view role) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string found, RoleOfPeer(context));
  if (found != role) {
    return Error(absl::StatusCode::kPermissionDenied, "peer_identity",
                 "peer: expected the certificate of a " + std::string(role) + ", found that of a " +
                     (found.empty() ? std::string("nobody") : found));
  }
  return absl::OkStatus();
}

}  // namespace conclave::transport
