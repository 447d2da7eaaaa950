// The same checks of a ChatRequest of inference.proto.
//
// Promises: those of frontend_chat_request. Fields are counted before anything is made of them, so
// no input costs more memory than a small multiple of itself.
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>

#include "chat_promises.h"
#include "grpc/chat_wire.h"

namespace conclave::frontend {
namespace {

void Check(const uint8_t* bytes, size_t size) {
  const HttpLimits limits = SmallLimits();
  const grpc::Slice slice(bytes, size);
  const absl::StatusOr<WireChat> read = ReadChat(grpc::ByteBuffer(&slice, 1), limits, Card());
  if (!read.ok()) {
    CheckRefusal(read.status());
    return;
  }
  CheckAccepted(read->request, limits);
  CONCLAVE_CHECK(read->deadline.count() >= 0);
}

}  // namespace
}  // namespace conclave::frontend

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::frontend::Check(bytes, size);
  return 0;
}
