#include "grpc_send.h"

#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "frame_io.h"
#include "grpc_envelope.h"

namespace conclave::transport {

std::shared_ptr<SendMemory> SendMemory::Create(size_t num_blocks, size_t block_bytes) {
  return std::shared_ptr<SendMemory>(new SendMemory(num_blocks, block_bytes));
}

SendMemory::SendMemory(size_t num_blocks, size_t block_bytes)
    : block_bytes_(AlignUp(block_bytes)), memory_(num_blocks * block_bytes_), blocks_(num_blocks) {}

std::span<std::byte> SendMemory::BytesOf(size_t block) const {
  return {const_cast<std::byte*>(memory_.As<std::byte>()) + block * block_bytes_, block_bytes_};
}

grpc::ByteBuffer SendMemory::Lend(size_t block, size_t bytes) {
  Block& lent = blocks_[block];
  CONCLAVE_CHECK(!IsBusy(block) && bytes <= block_bytes_);
  lent.bytes = bytes;
  lent.keep = shared_from_this();
  lent.is_busy.store(true, std::memory_order_relaxed);
  pending_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return WrapFrame(grpc::Slice(BytesOf(block).data(), bytes, &SendMemory::Return, &lent), bytes);
}

grpc::ByteBuffer SendMemory::Copy(std::span<const std::byte> frame) {
  AlignedBuffer memory(frame.size());
  std::memcpy(memory.As<std::byte>(), frame.data(), frame.size());
  return Own(std::move(memory), frame.size());
}

grpc::ByteBuffer SendMemory::Own(AlignedBuffer memory, size_t bytes) {
  auto* own = new OwnBlock{std::move(memory), bytes, shared_from_this()};
  pending_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  return WrapFrame(grpc::Slice(own->memory.As<std::byte>(), bytes, &SendMemory::Delete, own),
                   bytes);
}

// On any thread of gRPC's; frees memory at most.
void SendMemory::Return(void* block) {
  Block& returned = *static_cast<Block*>(block);
  const std::shared_ptr<SendMemory> keep = std::move(returned.keep);
  keep->pending_bytes_.fetch_sub(returned.bytes, std::memory_order_relaxed);
  returned.is_busy.store(false, std::memory_order_release);
}

void SendMemory::Delete(void* own_block) {
  const std::unique_ptr<OwnBlock> own(static_cast<OwnBlock*>(own_block));
  own->keep->pending_bytes_.fetch_sub(own->bytes, std::memory_order_relaxed);
}

const grpc::ByteBuffer* WriteQueue::Push(grpc::ByteBuffer&& message) {
  // A ByteBuffer of gRPC 1.51 can only be copied, which allocates, or swapped.
  messages_.emplace_back().Swap(&message);
  return messages_.size() == 1 ? &messages_.front() : nullptr;
}

const grpc::ByteBuffer* WriteQueue::Next() {
  CONCLAVE_CHECK(!messages_.empty());
  messages_.pop_front();
  return messages_.empty() ? nullptr : &messages_.front();
}

void WriteQueue::DropWaiting() {
  while (messages_.size() > 1) {
    messages_.pop_back();
  }
}

}  // namespace conclave::transport
