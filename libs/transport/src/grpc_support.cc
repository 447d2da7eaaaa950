#include "conclave/transport/grpc_support.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "conclave/base/status.h"
#include "conclave/transport/grpc_public.h"

namespace conclave::transport {
namespace {

bool IsReason(const std::string& word) {
  return !word.empty() && word.size() <= 64 && std::all_of(word.begin(), word.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
}

void SetCommonLimits(grpc::ServerBuilder& builder, int max_message_bytes) {
  builder.SetMaxReceiveMessageSize(max_message_bytes);
  // gRPC shares ports by default: a second server on the same one would start and take half of the
  // connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) {
    return grpc::Status::OK;
  }
  const std::string reason = ReasonOf(status);
  const std::string message = MessageOf(status);
  return {static_cast<grpc::StatusCode>(status.code()),
          reason.empty() ? message : reason + ": " + message};
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) {
    return absl::OkStatus();
  }
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string& text = status.error_message();
  const size_t colon = text.find(": ");
  if (colon != std::string::npos && IsReason(text.substr(0, colon))) {
    return Error(code, text.substr(0, colon), text.substr(colon + 2));
  }
  return {code, text};
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsOf(const TlsIdentity& tls) {
  if (tls.empty()) {
    return grpc::InsecureServerCredentials();
  }
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls.authority_pem;
  options.pem_key_cert_pairs.push_back({tls.private_key_pem, tls.certificate_pem});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsOf(const TlsIdentity& tls) {
  if (tls.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  return grpc::SslCredentials({tls.authority_pem, tls.private_key_pem, tls.certificate_pem});
}

absl::StatusOr<std::string> RoleOfPeer(const grpc::AuthContext& context) {
  if (context.FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME).empty()) {
    return std::string();
  }
  // conclave://<cluster>/<role>/<id>, exactly: no part is empty, and a certificate has one of them.
  constexpr std::string_view kScheme = "conclave://";
  std::string role;
  int num_names = 0;
  for (const grpc::string_ref& uri : context.FindPropertyValues(GRPC_PEER_URI_PROPERTY_NAME)) {
    const std::string_view text(uri.data(), uri.size());
    if (!text.starts_with(kScheme)) {
      continue;
    }
    ++num_names;
    const std::string_view path = text.substr(kScheme.size());
    const size_t first = path.find('/');
    const size_t second = first == path.npos ? path.npos : path.find('/', first + 1);
    if (second != path.npos && first > 0 && second > first + 1 && second + 1 < path.size() &&
        path.find('/', second + 1) == path.npos) {
      role = path.substr(first + 1, second - first - 1);
    }
  }
  const bool is_known =
      role == "worker" || role == "frontend" || role == "router" || role == "operator";
  if (num_names != 1 || !is_known) {
    return Error(absl::StatusCode::kPermissionDenied, "peer_identity",
                 "peer: expected a certificate with one name conclave://CLUSTER/ROLE/ID, found "
                 "another");
  }
  return role;
}

void SetServerLimits(grpc::ServerBuilder& builder, int max_message_bytes) {
  SetCommonLimits(builder, max_message_bytes);
  builder.SetMaxSendMessageSize(max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A peer's keepalive of 1 s must not count as abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
}

void SetPublicServerLimits(grpc::ServerBuilder& builder, int max_message_bytes) {
  SetCommonLimits(builder, max_message_bytes);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
}

grpc::ChannelArguments ClientArguments(int max_message_bytes) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(max_message_bytes);
  arguments.SetMaxSendMessageSize(max_message_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 1000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // How long one attempt may take, whatever its name says: a busy peer needs its time for the
  // handshake, and behind a partition the next attempt should not wait for this one for long.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // One policy of retries, ours: gRPC's own would count against no budget.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // A new channel is a new connection, or a dead one would be shared.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // Addresses are numeric; a proxy variable of the environment is not for the cluster.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

}  // namespace conclave::transport
