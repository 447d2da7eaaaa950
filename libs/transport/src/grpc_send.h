// Frames on their way out through gRPC, which goes on reading a message's memory after it has
// reported the write as done: only the end of the message's slices says that the memory is free.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "conclave/tensor/aligned_buffer.h"

namespace conclave::transport {

// What waits for one peer at most, in bytes that gRPC holds or that wait to be given to it. A peer
// that reads too slowly for that is given up.
inline constexpr size_t kSendQueueBytesMax = size_t{8} << 20;

// Blocks of memory for frames, each lent to gRPC for as long as it wants. Messages keep the memory
// alive, whoever else has gone. Any thread, each block one at a time.
class SendMemory : public std::enable_shared_from_this<SendMemory> {
 public:
  static std::shared_ptr<SendMemory> Create(size_t num_blocks, size_t block_bytes);

  size_t num_blocks() const { return blocks_.size(); }

  // 64-byte aligned. Not to be written while the block is busy.
  std::span<std::byte> BytesOf(size_t block) const;
  bool IsBusy(size_t block) const { return blocks_[block].is_busy.load(std::memory_order_acquire); }

  // A message with the first `bytes` of the block, which is busy until the message is gone.
  grpc::ByteBuffer Lend(size_t block, size_t bytes);

  // A message with a copy of the frame, for what comes when a block is still busy.
  grpc::ByteBuffer Copy(std::span<const std::byte> frame);
  // Likewise, with room for `bytes` that `write` (called once, with aligned memory) fills.
  template <typename Write>
  grpc::ByteBuffer Make(size_t bytes_max, const Write& write) {
    AlignedBuffer memory(bytes_max);
    const size_t bytes = write(std::span(memory.As<std::byte>(), bytes_max));
    return Own(std::move(memory), bytes);
  }

  // Bytes of messages that are not gone.
  size_t pending_bytes() const { return pending_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Block {
    std::atomic<bool> is_busy{false};
    size_t bytes = 0;
    std::shared_ptr<SendMemory> keep;  // while busy
  };
  struct OwnBlock {
    AlignedBuffer memory;
    size_t bytes = 0;
    std::shared_ptr<SendMemory> keep;
  };

  SendMemory(size_t num_blocks, size_t block_bytes);

  grpc::ByteBuffer Own(AlignedBuffer memory, size_t bytes);
  static void Return(void* block);
  static void Delete(void* own_block);

  const size_t block_bytes_;
  AlignedBuffer memory_;
  std::vector<Block> blocks_;
  std::atomic<size_t> pending_bytes_{0};
};

// Messages in their order, one of them being written at a time. The owner's lock guards it; the
// writes themselves are started outside of it by whoever was given a message to write.
class WriteQueue {
 public:
  // The message to write now, or null: a write is under way, whose end will bring it on. `message`
  // is empty afterwards.
  const grpc::ByteBuffer* Push(grpc::ByteBuffer&& message);

  // After the write under way has ended: the next message, or null. It stays valid until the next
  // call of this.
  const grpc::ByteBuffer* Next();

  // Drops all but the message that is being written.
  void DropWaiting();

  bool is_writing() const { return !messages_.empty(); }

 private:
  std::deque<grpc::ByteBuffer> messages_;  // the first one is being written
};

}  // namespace conclave::transport
