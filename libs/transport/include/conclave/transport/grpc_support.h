// What all gRPC in this project has in common: errors, TLS, limits (failure model, section 6.5).
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::transport {

// The same code; the reason goes before the message: "reregister: the lease is over". And back: a
// message that starts with a snake_case word and ": " gives that word as the reason.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// A certificate of this process with its key, and the authority that peers' certificates must come
// from. All empty: no TLS.
struct TlsIdentity {
  std::string certificate_pem;
  std::string private_key_pem;
  std::string authority_pem;
  bool empty() const { return certificate_pem.empty(); }
};

// Reads the files of --tls-cert, --tls-key, --tls-ca; all three or none. kInvalidArgument
// ("tls_config") naming the file: missing, not PEM, a key that others can read, a key that does not
// belong to the certificate, a certificate that has expired.
absl::StatusOr<TlsIdentity> ReadTlsFiles(const std::string& certificate, const std::string& key,
                                         const std::string& authority);

// Mutual TLS 1.3, or plain text for an empty identity.
std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const TlsIdentity& tls);
std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity& tls);

// Role of an authenticated peer, from its certificate's URI SAN conclave://<cluster>/<role>/<id>:
// "worker", "frontend", "router", "operator". Empty without TLS.
// kPermissionDenied ("peer_identity") when a certificate names none.
absl::StatusOr<std::string> RoleOfPeer(const grpc::AuthContext& context);

// No port sharing, keepalive, streams and message sizes bounded. `max_message_bytes` of what is
// received and sent.
void SetServerLimits(grpc::ServerBuilder& builder, int max_message_bytes);
grpc::ChannelArguments ClientArguments(int max_message_bytes);

inline constexpr int kControlMessageBytes = 4 << 20;

}  // namespace conclave::transport
