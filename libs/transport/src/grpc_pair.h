// What both ends of a grpc pair agree on beside the frames.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::transport {

inline constexpr uint32_t kProtocolMajor = 1;
inline constexpr uint32_t kProtocolMinor = 0;

// A handshake with a UCX address, which is a few hundred bytes.
inline constexpr size_t kSideHelloBytesMax = 16384;

// HelloResponse::session names the stream in this metadata, in 16 lower-case hex digits.
inline constexpr char kSessionMetadata[] = "conclave-session";
std::string SessionText(uint64_t session);
std::optional<uint64_t> ParseSessionText(std::string_view text);

// kPermissionDenied ("peer_identity") unless the peer's certificate names this role.
absl::Status CheckRole(const grpc::AuthContext& context, std::string_view role);

}  // namespace conclave::transport
