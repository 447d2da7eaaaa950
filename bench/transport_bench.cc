// What dispatch and combine of one call cost over every channel between processes, beside raw
// probes of the same bytes in the same minute: UCX active messages and a TCP socket, both spinning.
// The worker is a process of its own with an expert that copies its rows.
//
//   transport_bench [REPETITIONS]    default 15; each is a batch of round trips of every kind
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/grpc_channel.h"
#include "conclave/transport/grpc_server.h"
#include "conclave/transport/inproc_channel.h"
#include "conclave/transport/pair_key.h"
#include "conclave/transport/rows.h"
#include "conclave/transport/ucx_channel.h"
#include "ucx_worker.h"

namespace conclave::transport {
namespace {

constexpr uint16_t kWidth = 2048;  // bf16
constexpr uint16_t kMaxRows = 576;
constexpr uint64_t kWorkerKey = 1;
constexpr uint32_t kFrontend = 1;

FrameLimits Limits() {
  FrameLimits limits;
  limits.max_rows = kMaxRows;
  limits.max_pairs = 2 * kMaxRows;
  limits.row_width = kWidth;
  limits.num_layers = 1;
  limits.num_experts_max = 4;
  return limits;
}

// An expert that copies.
class CopySink final : public CallSink {
 public:
  absl::Status Submit(ServedCall* call) override {
    std::memcpy(call->reply.rows.data(), call->call.rows.data(), call->call.rows.size());
    call->Finish(absl::OkStatus(), Epoch(1), {});
    return absl::OkStatus();
  }
  void OnCancelled(PeerId /*peer*/) override {}
  void OnPeerGone(PeerId /*peer*/) override {}
};

class CopyHandler final : public CallHandler {
 public:
  absl::Status Execute(const CallView& call, ReplyView& reply) override {
    std::memcpy(reply.rows.data(), call.rows.data(), call.rows.size());
    return absl::OkStatus();
  }
};

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "transport_bench: %s\n", std::string(value.status().message()).c_str());
    std::_Exit(1);
  }
  return *std::move(value);
}

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

std::string ReadLine(int fd) {
  std::string line;
  char byte = 0;
  while (::read(fd, &byte, 1) == 1 && byte != '\n') {
    line.push_back(byte);
  }
  return line;
}

// The worker's process; ends with its stdin.
int ServeChannels() {
  CopySink sink;
  ExpertServerOptions options;
  options.incarnation = 1;
  options.limits = Limits();
  options.side = Must(MakeUcxServer({}));
  const auto server = Must(ExpertServer::Start(options, sink));
  server->SetRegistration(WorkerId(1), kWorkerKey, Epoch(1));
  Say(std::to_string(server->port()));
  ReadLine(STDIN_FILENO);
  return 0;
}

std::string Hex(const std::string& bytes) {
  std::string out;
  for (const char byte : bytes) {
    std::array<char, 3> text{};
    std::snprintf(text.data(), text.size(), "%02x", static_cast<unsigned char>(byte));
    out += text.data();
  }
  return out;
}

std::string FromHex(const std::string& text) {
  std::string out;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    out.push_back(static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return out;
}

// One end of a ping-pong of active messages with as little as UCX needs.
class RawUcx {
 public:
  RawUcx() : worker_(Must(UcxWorker::Create(Must(UcxContext::Get({}))))) {
    worker_->SetHandler(&RawUcx::OnMessage, this);
    block_ = AlignedBuffer(size_t{4} << 20);
    received_ = AlignedBuffer(size_t{4} << 20);
    std::memset(block_.As<std::byte>(), 0, block_.size_bytes());
    std::memset(received_.As<std::byte>(), 0, received_.size_bytes());
  }
  ~RawUcx() {
    ucs_status_ptr_t close = worker_->StartClose(endpoint_);
    while (!UcxWorker::IsOver(close)) {
      worker_->Progress();
    }
  }
  const std::string& address() const { return worker_->address(); }
  void Connect(const std::string& peer) {
    endpoint_ = Must(worker_->Connect(
        peer, [](void*, ucp_ep_h, ucs_status_t) { std::_Exit(0); }, nullptr));
  }
  void Send(size_t frame_bytes) {
    is_sending_ = UcxWorker::Send(
                      endpoint_, 1, {block_.As<std::byte>(), block_.size_bytes()}, frame_bytes,
                      [](void* request, ucs_status_t, void* self) {
                        static_cast<RawUcx*>(self)->is_sending_ = false;
                        ucp_request_free(request);
                      },
                      this) == UcxWorker::Sent::kPending;
  }
  // The bytes of the next frame; spins.
  size_t Receive() {
    while (arrived_ == 0 || is_sending_) {
      worker_->Progress();
    }
    return std::exchange(arrived_, 0);
  }

 private:
  static ucs_status_t OnMessage(void* argument, const void*, size_t, void* message, size_t bytes,
                                const ucp_am_recv_param_t* param) {
    auto& self = *static_cast<RawUcx*>(argument);
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
      std::memcpy(self.received_.As<std::byte>(), message, bytes);
      self.arrived_ = kFrameHeaderBytes + bytes;
      return UCS_OK;
    }
    const UcxWorker::Sent taken = self.worker_->Receive(
        message, {self.received_.As<std::byte>(), bytes},
        [](void* request, ucs_status_t, size_t length, void* raw) {
          static_cast<RawUcx*>(raw)->arrived_ = kFrameHeaderBytes + length;
          ucp_request_free(request);
        },
        argument);
    if (taken == UcxWorker::Sent::kDone) {
      self.arrived_ = kFrameHeaderBytes + bytes;
    }
    return UCS_INPROGRESS;
  }

  std::unique_ptr<UcxWorker> worker_;
  ucp_ep_h endpoint_ = nullptr;
  AlignedBuffer block_;
  AlignedBuffer received_;
  size_t arrived_ = 0;
  bool is_sending_ = false;
};

int ServeRawUcx() {
  RawUcx raw;
  Say(Hex(raw.address()));
  raw.Connect(FromHex(ReadLine(STDIN_FILENO)));
  while (true) {
    raw.Send(raw.Receive());  // until its endpoint fails, or it is killed
  }
}

void ReadFully(int fd, std::byte* out, size_t bytes) {
  while (bytes > 0) {
    const ssize_t got = ::recv(fd, out, bytes, MSG_DONTWAIT);
    if (got == 0) {
      std::_Exit(0);
    }
    if (got > 0) {
      out += got;
      bytes -= static_cast<size_t>(got);
    }
  }
}

void WriteFully(int fd, const std::byte* from, size_t bytes) {
  while (bytes > 0) {
    const ssize_t put = ::send(fd, from, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put > 0) {
      from += put;
      bytes -= static_cast<size_t>(put);
    }
  }
}

// A length, and as many bytes.
void SendRaw(int fd, std::byte* memory, uint64_t bytes) {
  std::memcpy(memory, &bytes, sizeof(bytes));
  WriteFully(fd, memory, bytes);
}

uint64_t ReceiveRaw(int fd, std::byte* memory) {
  uint64_t bytes = 0;
  ReadFully(fd, memory, sizeof(bytes));
  std::memcpy(&bytes, memory, sizeof(bytes));
  ReadFully(fd, memory + sizeof(bytes), bytes - sizeof(bytes));
  return bytes;
}

void SetNoDelay(int fd) {
  const int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
}

int ServeRawTcp() {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  CONCLAVE_CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0);
  CONCLAVE_CHECK(::listen(listener, 1) == 0);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  Say(std::to_string(ntohs(address.sin_port)));
  const int fd = ::accept(listener, nullptr, nullptr);
  SetNoDelay(fd);
  std::vector<std::byte> memory(size_t{4} << 20);
  while (true) {
    SendRaw(fd, memory.data(), ReceiveRaw(fd, memory.data()));
  }
}

// Another process of this program.
class Child {
 public:
  explicit Child(const char* role) {
    int in[2];
    int out[2];
    CONCLAVE_CHECK(::pipe2(in, O_CLOEXEC) == 0 && ::pipe2(out, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    std::string program = "transport_bench";
    std::string word = role;
    char* argv[] = {program.data(), word.data(), nullptr};
    CONCLAVE_CHECK(::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv, environ) == 0);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    line_ = ReadLine(out[0]);
    ::close(out[0]);
  }
  ~Child() {
    ::close(in_);
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // A raw peer spins for ever, and would take the core that others are measured on.
  void Pause() { ::kill(pid_, SIGSTOP); }
  void Resume() { ::kill(pid_, SIGCONT); }

  const std::string& line() const { return line_; }
  void Tell(const std::string& line) {
    CONCLAVE_CHECK(::write(in_, (line + "\n").c_str(), line.size() + 1) > 0);
  }

 private:
  pid_t pid_ = -1;
  int in_ = -1;
  std::string line_;
};

PairTerms Terms() {
  PairTerms terms;
  terms.row_width = kWidth;
  terms.frontend_id = kFrontend;
  terms.frontend_incarnation = 1;
  terms.pair_key = PairKey(kWorkerKey, kFrontend);
  terms.worker_incarnation = 1;
  terms.max_rows = kMaxRows;
  terms.num_layers = 1;
  terms.num_experts_max = 4;
  return terms;
}

size_t FrameBytesOf(uint16_t rows) {
  return kFrameHeaderBytes + (size_t{rows} * 8 + 63) / 64 * 64 +
         RowBytes(rows, kWidth, WireDtype::kBf16);
}

// One row goes to one expert.
void RoundTrip(ExpertChannel& channel, uint16_t rows) {
  CallSlot* slot = channel.Acquire();
  CONCLAVE_CHECK(slot != nullptr);
  CallView& call = slot->call;
  for (uint16_t r = 0; r < rows; ++r) {
    slot->pair_weight[r] = 1.0f;
    slot->pair_row[r] = r;
    slot->pair_expert[r] = 1;
  }
  call.num_rows = rows;
  call.pair_weight = slot->pair_weight.first(rows);
  call.pair_row = slot->pair_row.first(rows);
  call.pair_expert = slot->pair_expert.first(rows);
  call.rows = slot->rows.first(RowBytes(rows, kWidth, WireDtype::kBf16));
  absl::Status status = channel.Dispatch(slot);
  if (status.ok()) {
    status = channel.Await(slot);
  }
  if (!status.ok()) {
    std::fprintf(stderr, "transport_bench: %s\n", std::string(status.message()).c_str());
    std::_Exit(1);
  }
  channel.Release(slot);
}

double PercentileOf(std::vector<double> samples, double share) {
  std::sort(samples.begin(), samples.end());
  return samples[static_cast<size_t>(share * static_cast<double>(samples.size() - 1))];
}

struct Kind {
  const char* name;
  std::function<void(uint16_t rows)> round_trip;
  const char* base;  // what its ratio is to; null: none
  ExpertChannel* channel = nullptr;
  Child* peer = nullptr;          // that runs during its own batches only
  std::vector<double> samples{};  // us
};

void Measure(std::vector<Kind>& kinds, uint16_t rows, int repetitions) {
  using Microseconds = std::chrono::duration<double, std::micro>;
  const int batch = rows <= 8 ? 400 : rows <= 64 ? 100 : 20;
  const size_t minimum = 2 * RowBytes(rows, kWidth, WireDtype::kBf16);
  std::vector<double> wire(kinds.size());
  for (Kind& kind : kinds) {
    kind.samples.clear();
  }
  // Batches of every kind in turn: what else runs here disturbs all of them alike.
  for (int r = 0; r < repetitions; ++r) {
    for (size_t k = 0; k < kinds.size(); ++k) {
      Kind& kind = kinds[k];
      if (kind.peer != nullptr) {
        kind.peer->Resume();
      }
      for (int i = 0; i < batch / 4; ++i) {
        kind.round_trip(rows);
      }
      const LinkCounters before = kind.channel ? kind.channel->counters() : LinkCounters{};
      for (int i = 0; i < batch; ++i) {
        const auto start = std::chrono::steady_clock::now();
        kind.round_trip(rows);
        kind.samples.push_back(Microseconds(std::chrono::steady_clock::now() - start).count());
      }
      if (kind.channel != nullptr) {
        const LinkCounters after = kind.channel->counters();
        // Frames, and the session in front of each.
        wire[k] = static_cast<double>(after.bytes_sent - before.bytes_sent + after.bytes_received -
                                      before.bytes_received) /
                      batch +
                  2 * sizeof(uint64_t);
      }
      if (kind.peer != nullptr) {
        kind.peer->Pause();
      }
    }
  }
  std::printf("%u rows of %u bf16, %zu bytes each way at least, %d repetitions of %d\n", rows,
              kWidth, minimum / 2, repetitions, batch);
  std::printf("  %-10s %10s %10s %8s %14s\n", "", "p50 us", "p99 us", "ratio", "bytes/minimum");
  for (size_t k = 0; k < kinds.size(); ++k) {
    const Kind& kind = kinds[k];
    const double median = PercentileOf(kind.samples, 0.5);
    std::printf("  %-10s %10.2f %10.2f", kind.name, median, PercentileOf(kind.samples, 0.99));
    for (const Kind& base : kinds) {
      if (kind.base != nullptr && std::strcmp(base.name, kind.base) == 0) {
        std::printf(" %7.2fx", median / PercentileOf(base.samples, 0.5));
      }
    }
    if (wire[k] > 2 * sizeof(uint64_t)) {
      std::printf(" %14.4f", wire[k] / static_cast<double>(minimum));
    }
    std::printf("\n");
  }
}

int Run(int repetitions) {
  Doorbell bell;
  CopyHandler handler;
  InprocOptions inproc_options;
  inproc_options.limits = {4, kMaxRows, 2 * kMaxRows, kWidth, WireDtype::kBf16};
  inproc_options.num_layers = 1;
  inproc_options.num_experts_max = 4;
  const auto inproc = MakeInprocChannel(handler, inproc_options);

  // UCX's own variable chooses between shared memory and TCP.
  ::unsetenv("UCX_TLS");  // NOLINT(concurrency-mt-unsafe): UCX reads it, on this thread
  Child shm_worker("channels");
  Child raw_shm_peer("raw-ucx");
  const auto connect_ucx = [&bell](const Child& worker) {
    return Must(ConnectUcxChannel("127.0.0.1:" + worker.line(), {}, Terms(), {}, bell,
                                  Clock::Real(), std::chrono::seconds(10)));
  };
  const auto shm = connect_ucx(shm_worker);
  const auto grpc = Must(ConnectGrpcChannel("127.0.0.1:" + shm_worker.line(), {}, Terms(), bell,
                                            Clock::Real(), std::chrono::seconds(10)));
  RawUcx raw_shm;
  raw_shm_peer.Tell(Hex(raw_shm.address()));
  raw_shm.Connect(FromHex(raw_shm_peer.line()));
  ::setenv("UCX_TLS", "tcp", 1);  // NOLINT(concurrency-mt-unsafe): likewise
  Child tcp_worker("channels");
  const auto tcp = connect_ucx(tcp_worker);
  Child raw_tcp_peer("raw-tcp");
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(raw_tcp_peer.line())));
  CONCLAVE_CHECK(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
  SetNoDelay(fd);
  std::vector<std::byte> memory(size_t{4} << 20);

  raw_shm_peer.Pause();
  raw_tcp_peer.Pause();
  std::vector<Kind> kinds;
  kinds.push_back({"inproc", [&](uint16_t rows) { RoundTrip(*inproc, rows); }, nullptr});
  kinds.push_back({"raw shm",
                   [&](uint16_t rows) {
                     raw_shm.Send(FrameBytesOf(rows));
                     raw_shm.Receive();
                   },
                   nullptr, nullptr, &raw_shm_peer});
  kinds.push_back({"ucx shm", [&](uint16_t rows) { RoundTrip(*shm, rows); }, "raw shm", shm.get()});
  kinds.push_back({"raw tcp",
                   [&](uint16_t rows) {
                     SendRaw(fd, memory.data(), FrameBytesOf(rows));
                     ReceiveRaw(fd, memory.data());
                   },
                   nullptr, nullptr, &raw_tcp_peer});
  kinds.push_back({"ucx tcp", [&](uint16_t rows) { RoundTrip(*tcp, rows); }, "raw tcp", tcp.get()});
  kinds.push_back({"grpc", [&](uint16_t rows) { RoundTrip(*grpc, rows); }, "raw tcp", grpc.get()});
  for (const uint16_t rows : {1, 8, 64, 576}) {
    Measure(kinds, rows, repetitions);
  }
  ::close(fd);
  return 0;
}

}  // namespace
}  // namespace conclave::transport

int main(int argc, char** argv) {
  const std::string word = argc > 1 ? argv[1] : "15";
  if (word == "channels") {
    return conclave::transport::ServeChannels();
  }
  if (word == "raw-ucx") {
    return conclave::transport::ServeRawUcx();
  }
  if (word == "raw-tcp") {
    return conclave::transport::ServeRawTcp();
  }
  const int repetitions = std::atoi(word.c_str());
  if (repetitions < 1) {
    std::fprintf(stderr, "transport_bench: expected a number of repetitions, found %s\n",
                 word.c_str());
    return 2;
  }
  return conclave::transport::Run(repetitions);
}
