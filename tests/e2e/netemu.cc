// A network of namespaces on which packets are lost, late, doubled, damaged or in another order,
// for kernels without netem (docs/design/failure-model.md section 7).
//
//   netemu SEED NAMESPACE=ADDRESS...
//
// NAMESPACE is a file of a network namespace, such as /proc/4711/ns/net; each gets a TUN device
// "emu0" (MTU 1500) with its IPv4 address in a /24, and this process is the switch between them.
// Prints "ready", then reads commands, a line each, until its input ends, and answers each with
// lines that end in "ok", or with "error: WHY":
//
//   set FROM|* TO|* [loss=P] [dup=P] [corrupt=P] [delay_us=N] [jitter_us=N] [rate_mbit=N] [cut=0|1]
//                  what happens to packets from one address to another; what is not named is none
//   stats          per link: FROM TO passed lost doubled damaged cut
//   quit
//
// Decisions come from generators of the seed, one per link, and so depend on that link's packets
// alone; the time is real. jitter is added or taken away uniformly, by which packets overtake.
// Damage is one bit behind byte 40, which TCP's checksum finds: it is loss in the end.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <queue>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using Time = std::chrono::steady_clock::time_point;
using std::chrono::microseconds;
using std::chrono::nanoseconds;

constexpr size_t kMtu = 1500;
constexpr size_t kAddressesAt = 12;  // in an IPv4 header: source, then destination
constexpr size_t kHeaderBytes = 20;
constexpr size_t kDamageFrom = 40;
// A link that is slower than what is sent to it loses what does not fit, as a real one does.
constexpr size_t kQueuedMax = 20'000;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "error: netemu: %s\n", why.c_str());
  std::_Exit(1);  // other threads may be running
}

[[noreturn]] void DieOfErrno(const std::string& what) {
  Die(what + ": " + std::generic_category().message(errno));
}

struct Policy {
  double loss = 0;
  double dup = 0;
  double corrupt = 0;
  double rate_mbit = 0;  // 0: no limit
  double delay_us = 0;
  double jitter_us = 0;
  double cut = 0;
};

struct Link {
  Policy policy;
  std::mt19937_64 random;
  Time free_at;  // of the wire, with a rate
  uint64_t num_passed = 0;
  uint64_t num_lost = 0;
  uint64_t num_doubled = 0;
  uint64_t num_damaged = 0;
  uint64_t num_cut = 0;

  bool Draw(double chance) {
    return chance > 0 && std::uniform_real_distribution<double>()(random) < chance;
  }
};

struct Packet {
  Time due;
  uint64_t number = 0;  // of equal due times the older one goes first
  size_t port = 0;
  std::vector<uint8_t> bytes;
};
struct IsLater {
  bool operator()(const Packet& a, const Packet& b) const {
    return std::tie(a.due, a.number) > std::tie(b.due, b.number);
  }
};

struct Port {
  uint32_t address = 0;  // in network order
  std::string text;
  int fd = -1;
};

// Sets address and state of the device in the namespace that this thread is in.
void BringUp(const char* device, uint32_t address) {
  const int control = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (control < 0) {
    DieOfErrno("a socket");
  }
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", device);
  const auto set = [&](unsigned long what, uint32_t value) {
    sockaddr_in socket_address{};
    socket_address.sin_family = AF_INET;
    socket_address.sin_addr.s_addr = value;
    std::memcpy(&request.ifr_addr, &socket_address, sizeof(socket_address));
    if (::ioctl(control, what, &request) != 0) {
      DieOfErrno("an address of the TUN device");
    }
  };
  set(SIOCSIFADDR, address);
  set(SIOCSIFNETMASK, htonl(0xffffff00));
  request.ifr_mtu = kMtu;
  if (::ioctl(control, SIOCSIFMTU, &request) != 0) {
    DieOfErrno("the MTU of the TUN device");
  }
  if (::ioctl(control, SIOCGIFFLAGS, &request) != 0) {
    DieOfErrno("the flags of the TUN device");
  }
  request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP | IFF_RUNNING);
  if (::ioctl(control, SIOCSIFFLAGS, &request) != 0) {
    DieOfErrno("bringing the TUN device up");
  }
  ::close(control);
}

// A port in the namespace; this thread stays in it.
Port OpenPort(const std::string& argument) {
  const size_t equals = argument.rfind('=');
  Port port;
  if (equals == std::string::npos ||
      ::inet_pton(AF_INET, argument.c_str() + equals + 1, &port.address) != 1) {
    Die("expected NAMESPACE=ADDRESS, found \"" + argument + "\"");
  }
  port.text = argument.substr(equals + 1);
  const std::string path = argument.substr(0, equals);
  const int ns = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (ns < 0 || ::setns(ns, CLONE_NEWNET) != 0) {
    DieOfErrno("the namespace " + path);
  }
  ::close(ns);
  port.fd = ::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof(request.ifr_name), "emu0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (port.fd < 0 || ::ioctl(port.fd, TUNSETIFF, &request) != 0) {
    DieOfErrno("/dev/net/tun");
  }
  BringUp("emu0", port.address);
  return port;
}

class Switch {
 public:
  Switch(uint64_t seed, std::vector<Port> ports) : ports_(std::move(ports)) {
    for (size_t from = 0; from < ports_.size(); ++from) {
      for (size_t to = 0; to < ports_.size(); ++to) {
        links_[{from, to}].random.seed(seed * 1'000'003 + from * 1'009 + to);
      }
    }
  }

  void Run();

 private:
  void ReadPort(size_t from);
  void Forward(size_t from, std::span<const uint8_t> packet);
  void SendDue();
  // False: the end.
  bool ReadCommands();
  bool Obey(std::string_view line);
  std::string Set(const std::vector<std::string_view>& words);
  std::vector<size_t> PortsOf(std::string_view word) const;

  std::vector<Port> ports_;
  std::map<std::pair<size_t, size_t>, Link> links_;
  std::priority_queue<Packet, std::vector<Packet>, IsLater> queue_;
  uint64_t num_packets_ = 0;
  std::string input_;
};

void Switch::ReadPort(size_t from) {
  std::array<uint8_t, 2 * kMtu> buffer;
  // Bounded, so that one sender does not hold up what is due.
  for (int i = 0; i < 64; ++i) {
    const ssize_t bytes = ::read(ports_[from].fd, buffer.data(), buffer.size());
    if (bytes <= 0) {
      return;
    }
    Forward(from, std::span(buffer).first(static_cast<size_t>(bytes)));
  }
}

void Switch::Forward(size_t from, std::span<const uint8_t> packet) {
  if (packet.size() < kHeaderBytes || packet[0] >> 4 != 4) {
    return;  // IPv6 has no way through here
  }
  uint32_t destination = 0;
  std::memcpy(&destination, packet.data() + kAddressesAt + 4, sizeof(destination));
  const auto to = std::find_if(ports_.begin(), ports_.end(), [destination](const Port& port) {
    return port.address == destination;
  });
  if (to == ports_.end()) {
    return;
  }
  const auto port = static_cast<size_t>(to - ports_.begin());
  Link& link = links_[{from, port}];
  const Policy& policy = link.policy;
  if (policy.cut != 0) {
    ++link.num_cut;
    return;
  }
  if (link.Draw(policy.loss) || queue_.size() >= kQueuedMax) {
    ++link.num_lost;
    return;
  }
  const int copies = link.Draw(policy.dup) ? 2 : 1;
  link.num_doubled += copies == 2 ? 1 : 0;
  for (int i = 0; i < copies; ++i) {
    Packet copy{.due = std::chrono::steady_clock::now(),
                .number = ++num_packets_,
                .port = port,
                .bytes = {packet.begin(), packet.end()}};
    if (policy.rate_mbit > 0) {
      link.free_at = std::max(link.free_at, copy.due) +
                     nanoseconds(static_cast<int64_t>(static_cast<double>(packet.size()) * 8000.0 /
                                                      policy.rate_mbit));
      copy.due = link.free_at;
    }
    const double jitter = policy.jitter_us == 0
                              ? 0
                              : std::uniform_real_distribution<double>(
                                    -policy.jitter_us, policy.jitter_us)(link.random);
    copy.due += microseconds(std::max<int64_t>(0, static_cast<int64_t>(policy.delay_us + jitter)));
    if (packet.size() > kDamageFrom && link.Draw(policy.corrupt)) {
      const size_t at = kDamageFrom + link.random() % (packet.size() - kDamageFrom);
      copy.bytes[at] = static_cast<uint8_t>(copy.bytes[at] ^ (1u << (link.random() % 8)));
      ++link.num_damaged;
    }
    queue_.push(std::move(copy));
    ++link.num_passed;
  }
}

void Switch::SendDue() {
  const Time now = std::chrono::steady_clock::now();
  while (!queue_.empty() && queue_.top().due <= now) {
    const Packet& packet = queue_.top();
    // A device that is gone or full loses the packet, as a network does.
    [[maybe_unused]] const ssize_t written =
        ::write(ports_[packet.port].fd, packet.bytes.data(), packet.bytes.size());
    queue_.pop();
  }
}

std::vector<size_t> Switch::PortsOf(std::string_view word) const {
  std::vector<size_t> found;
  for (size_t i = 0; i < ports_.size(); ++i) {
    if (word == "*" || word == ports_[i].text) {
      found.push_back(i);
    }
  }
  return found;
}

// Empty, or what is wrong.
std::string Switch::Set(const std::vector<std::string_view>& words) {
  if (words.size() < 3 || PortsOf(words[1]).empty() || PortsOf(words[2]).empty()) {
    return "expected set FROM TO ... with addresses of this network or *";
  }
  Policy policy;
  const std::pair<std::string_view, double*> fields[] = {{"loss", &policy.loss},
                                                         {"dup", &policy.dup},
                                                         {"corrupt", &policy.corrupt},
                                                         {"rate_mbit", &policy.rate_mbit},
                                                         {"delay_us", &policy.delay_us},
                                                         {"jitter_us", &policy.jitter_us},
                                                         {"cut", &policy.cut}};
  for (size_t i = 3; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    const std::string_view key = words[i].substr(0, equals);
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : words[i].substr(equals + 1);
    const auto* field = std::find_if(std::begin(fields), std::end(fields),
                                     [key](const auto& entry) { return entry.first == key; });
    if (field == std::end(fields)) {
      return "expected a known key, found \"" + std::string(words[i]) + "\"";
    }
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), *field->second);
    constexpr double kLargest = 60e6;  // a minute, in microseconds
    if (error != std::errc() || end != value.data() + value.size() || *field->second < 0 ||
        *field->second > kLargest) {
      return "expected a number of at most 60000000, found \"" + std::string(words[i]) + "\"";
    }
  }
  for (const size_t from : PortsOf(words[1])) {
    for (const size_t to : PortsOf(words[2])) {
      links_[{from, to}].policy = policy;
    }
  }
  return "";
}

bool Switch::Obey(std::string_view line) {
  std::vector<std::string_view> words;
  while (!line.empty()) {
    const size_t end = line.find(' ');
    if (end != 0) {
      words.push_back(line.substr(0, end));
    }
    line.remove_prefix(end == std::string_view::npos ? line.size() : end + 1);
  }
  const std::string_view command = words.empty() ? std::string_view() : words[0];
  std::string wrong;
  if (command == "set") {
    wrong = Set(words);
  } else if (command == "stats") {
    for (const auto& [ends, link] : links_) {
      if (ends.first != ends.second) {
        std::printf("%s %s %llu %llu %llu %llu %llu\n", ports_[ends.first].text.c_str(),
                    ports_[ends.second].text.c_str(),
                    static_cast<unsigned long long>(link.num_passed),
                    static_cast<unsigned long long>(link.num_lost),
                    static_cast<unsigned long long>(link.num_doubled),
                    static_cast<unsigned long long>(link.num_damaged),
                    static_cast<unsigned long long>(link.num_cut));
      }
    }
  } else if (command != "quit") {
    wrong = "expected set, stats or quit, found \"" + std::string(command) + "\"";
  }
  std::printf("%s\n", wrong.empty() ? "ok" : ("error: " + wrong).c_str());
  std::fflush(stdout);
  return command != "quit";
}

bool Switch::ReadCommands() {
  std::array<char, 4096> buffer;
  const ssize_t bytes = ::read(STDIN_FILENO, buffer.data(), buffer.size());
  if (bytes <= 0) {
    return bytes < 0 && errno == EINTR;
  }
  input_.append(buffer.data(), static_cast<size_t>(bytes));
  for (size_t end = input_.find('\n'); end != std::string::npos; end = input_.find('\n')) {
    const std::string line = input_.substr(0, end);
    input_.erase(0, end + 1);
    if (!Obey(line)) {
      return false;
    }
  }
  return true;
}

void Switch::Run() {
  std::vector<pollfd> entries{{STDIN_FILENO, POLLIN, 0}};
  for (const Port& port : ports_) {
    entries.push_back({port.fd, POLLIN, 0});
  }
  while (true) {
    SendDue();
    nanoseconds left = std::chrono::seconds(1);
    if (!queue_.empty()) {
      left = std::clamp<nanoseconds>(queue_.top().due - std::chrono::steady_clock::now(),
                                     nanoseconds(0), left);
    }
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{static_cast<time_t>(seconds.count()),
                           static_cast<long>((left - seconds).count())};
    if (::ppoll(entries.data(), entries.size(), &timeout, nullptr) < 0 && errno != EINTR) {
      DieOfErrno("ppoll");
    }
    for (size_t i = 0; i < ports_.size(); ++i) {
      if ((entries[i + 1].revents & POLLIN) != 0) {
        ReadPort(i);
      }
    }
    if (entries[0].revents != 0 && !ReadCommands()) {
      return;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  // The namespaces end with their last process, which this must not be.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  uint64_t seed = 0;
  const std::string_view text = argc > 1 ? argv[1] : "";
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  if (argc < 4 || error != std::errc() || end != text.data() + text.size()) {
    Die("expected SEED NAMESPACE=ADDRESS NAMESPACE=ADDRESS..., found " + std::to_string(argc - 1) +
        " arguments");
  }
  std::vector<Port> ports;
  for (int i = 2; i < argc; ++i) {
    ports.push_back(OpenPort(argv[i]));
  }
  std::printf("ready\n");
  std::fflush(stdout);
  Switch(seed, std::move(ports)).Run();
  return 0;
}
