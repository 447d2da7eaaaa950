#include "ucx_worker.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::transport {
namespace {

constexpr unsigned kMessageId = 1;

// Of a numeric address; 0 bytes for what is none.
std::string BytesOfAddress(const std::string& host) {
  std::string bytes(sizeof(in6_addr), '\0');
  if (::inet_pton(AF_INET, host.c_str(), bytes.data()) == 1) {
    bytes.resize(sizeof(in_addr));
    return bytes;
  }
  return ::inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1 ? bytes : std::string();
}

// HOST, [HOST], HOST:PORT or [HOST]:PORT.
std::string HostOf(const std::string& address) {
  if (!address.empty() && address.front() == '[') {
    return address.substr(1, address.find(']') - 1);
  }
  const size_t colon = address.find(':');
  return colon != address.npos && address.find(':', colon + 1) == address.npos
             ? address.substr(0, colon)
             : address;
}

// The interface that has the address.
absl::StatusOr<std::string> InterfaceOf(const std::string& host) {
  const std::string wanted = BytesOfAddress(host);
  ifaddrs* all = nullptr;
  if (wanted.empty() || ::getifaddrs(&all) != 0) {
    return InvalidArgument("config_range", host + ": expected a numeric address, found none");
  }
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> keep(all, &::freeifaddrs);
  for (const ifaddrs* entry = all; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) {
      continue;
    }
    std::string_view found;
    if (entry->ifa_addr->sa_family == AF_INET) {
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
      found = {reinterpret_cast<const char*>(&v4->sin_addr), sizeof(in_addr)};
    } else if (entry->ifa_addr->sa_family == AF_INET6) {
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      found = {reinterpret_cast<const char*>(&v6->sin6_addr), sizeof(in6_addr)};
    }
    if (found == wanted) {
      return std::string(entry->ifa_name);
    }
  }
  return Error(absl::StatusCode::kUnavailable, "ucx_unavailable",
               "ucx: expected an interface of this machine with address " + host +
                   ", found none; a wildcard address cannot be used");
}

// What UCX has to say goes where our own lines go: it would print to stdout, which has results
// alone, and a ready line first.
ucs_log_func_rc_t TakeLogLine(const char* /*file*/, unsigned /*line*/, const char* /*function*/,
                              ucs_log_level_t level, const ucs_log_component_config_t* /*config*/,
                              const char* format, va_list arguments) {
  std::array<char, 512> text{};
  std::vsnprintf(text.data(), text.size(), format, arguments);
  observability::Log(level <= UCS_LOG_LEVEL_WARN ? observability::LogLevel::kWarning
                                                 : observability::LogLevel::kInfo,
                     "ucx", {{"what", text.data()}});
  return UCS_LOG_FUNC_RC_STOP;
}

// What UCX reads before main, when its library is loaded: too late for a variable, so these are
// changed in place. Its signal handlers fight sanitizers and core files; its hooks of malloc and
// mmap serve GPUs that Debian's build cannot use.
void SetProcessOptions() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) {
      ucs_debug_disable_signal(signal);
    }
    ucs_global_opts_set_value("HANDLE_ERRORS", "none");
    ucs_global_opts_set_value("MEMTYPE_CACHE", "n");
    ucs_global_opts_set_value("LOG_LEVEL", "error");
    ucs_log_push_handler(&TakeLogLine);
  });
}

const char* Variable(const std::string& name) {
  return std::getenv(("UCX_" + name).c_str());  // NOLINT(concurrency-mt-unsafe)
}

// data-plane.md section 5, failure-model.md section 6.4.
std::vector<std::pair<std::string, std::string>> SettingsFor(bool is_local,
                                                             const std::string& interface) {
  std::string transports = is_local ? "posix,sysv,cma,tcp" : "tcp";
  if (const char* chosen = Variable("TLS"); chosen != nullptr) {
    transports = chosen;
  }
  std::vector<std::pair<std::string, std::string>> settings = {
      {"TLS", transports},
      {"NET_DEVICES", interface},
      // Without it peer-mode endpoints leave shared memory for TCP, silently.
      {"MM_ERROR_HANDLING", "y"},
      {"KEEPALIVE_INTERVAL", is_local ? "50ms" : "1s"},
      {"KEEPIDLE", "1s"},
      {"KEEPINTVL", "1s"},
      {"KEEPCNT", "3"},
      {"MAX_CONN_RETRIES", "3"},
      {"TX_SEG_SIZE", "512k"},
      {"RX_SEG_SIZE", "512k"},
  };
  // Over TCP a further round trip costs more than a copy, always; in shared memory from about 64
  // rows of 2,048 on (measured by transport_bench: 32 KiB take 4.5 us eagerly, 5.7 us fetched).
  settings.emplace_back("RNDV_THRESH", transports == "tcp" ? "inf" : "200k");
  return settings;
}

}  // namespace

bool IsLoopback(const std::string& address) {
  const std::string host = HostOf(address);
  const std::string bytes = BytesOfAddress(host);
  if (bytes.size() == sizeof(in_addr)) {
    return bytes.front() == 127;
  }
  return bytes.size() == sizeof(in6_addr) &&
         std::memcmp(bytes.data(), &in6addr_loopback, sizeof(in6_addr)) == 0;
}

absl::Status CheckUcxReach(const UcxReach& reach) {
  if (IsLoopback(reach.host) || reach.is_trusted_network) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kFailedPrecondition, "untrusted_network",
               "ucx at " + reach.host +
                   ": expected an address of the loopback, or --trusted-network for one that "
                   "nobody else can reach, found neither");
}

absl::StatusOr<UcxReach> UcxReachTo(const std::string& address, bool is_trusted_network) {
  UcxReach reach{HostOf(address), is_trusted_network};
  CONCLAVE_RETURN_IF_ERROR(CheckUcxReach(reach));
  if (IsLoopback(reach.host)) {
    return reach;
  }
  const absl::Status no_way =
      Error(absl::StatusCode::kUnavailable, "ucx_unavailable",
            "ucx to " + address + ": expected a way to this numeric address, found none");
  const std::string peer = BytesOfAddress(reach.host);
  sockaddr_storage storage{};
  socklen_t length = 0;
  if (peer.size() == sizeof(in_addr)) {
    auto& v4 = reinterpret_cast<sockaddr_in&>(storage);
    v4.sin_family = AF_INET;
    v4.sin_port = htons(9);
    std::memcpy(&v4.sin_addr, peer.data(), peer.size());
    length = sizeof(v4);
  } else if (peer.size() == sizeof(in6_addr)) {
    auto& v6 = reinterpret_cast<sockaddr_in6&>(storage);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(9);
    std::memcpy(&v6.sin6_addr, peer.data(), peer.size());
    length = sizeof(v6);
  } else {
    return no_way;
  }
  // Sends nothing: the kernel picks the route, and with it the address that the socket is bound to.
  const int fd = ::socket(storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return no_way;
  }
  const bool has_way = ::connect(fd, reinterpret_cast<sockaddr*>(&storage), length) == 0 &&
                       ::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) == 0;
  ::close(fd);
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* own =
      storage.ss_family == AF_INET
          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(storage).sin_addr)
          : &reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr;
  if (!has_way || ::inet_ntop(storage.ss_family, own, text.data(), text.size()) == nullptr) {
    return no_way;
  }
  reach.host = text.data();
  return reach;
}

bool ReadHead(const void* head, size_t bytes, UcxHead& out) {
  if (bytes != kUcxHeadBytes) {
    return false;
  }
  std::memcpy(&out.session, head, sizeof(out.session));
  std::memcpy(&out.header, static_cast<const std::byte*>(head) + sizeof(out.session),
              sizeof(out.header));
  return true;
}

absl::Status UcxError(const std::string& what, ucs_status_t status) {
  return Error(absl::StatusCode::kUnavailable, "ucx_unavailable",
               "ucx: " + what + ": expected success, found: " + ucs_status_string(status));
}

// What the environment says stays.
static absl::Status SetUnlessChosen(ucp_config_t* config, const std::string& name,
                                    const std::string& value) {
  if (Variable(name) != nullptr) {
    return absl::OkStatus();
  }
  const ucs_status_t status = ucp_config_modify(config, name.c_str(), value.c_str());
  return status == UCS_OK ? absl::OkStatus() : UcxError("setting " + name + " to " + value, status);
}

absl::StatusOr<std::shared_ptr<UcxContext>> UcxContext::Get(const UcxReach& reach) {
  CONCLAVE_RETURN_IF_ERROR(CheckUcxReach(reach));
  SetProcessOptions();
  const bool is_local = IsLoopback(reach.host);
  CONCLAVE_ASSIGN_OR_RETURN(const std::string interface,
                            is_local ? std::string("lo") : InterfaceOf(reach.host));
  static Mutex mu;
  static auto& contexts = *new std::map<std::string, std::weak_ptr<UcxContext>>();
  const std::vector<std::pair<std::string, std::string>> settings =
      SettingsFor(is_local, interface);
  const std::string key = interface + " " + settings.front().second;
  MutexLock lock(mu);
  if (std::shared_ptr<UcxContext> known = contexts[key].lock(); known != nullptr) {
    return known;
  }
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) {
    return UcxError("reading the UCX_ variables", status);
  }
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> keep(config,
                                                                          &ucp_config_release);
  for (const auto& [name, value] : settings) {
    CONCLAVE_RETURN_IF_ERROR(SetUnlessChosen(config, name, value));
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  std::shared_ptr<UcxContext> context(new UcxContext());
  context->has_payload_crc_ = !is_local;
  status = ucp_init(&params, config, &context->context_);
  if (status != UCS_OK) {
    context->context_ = nullptr;
    return UcxError("UCX_TLS: no usable transport", status);
  }
  const std::vector<std::string> transports = context->Transports();
  context->has_shared_memory_ =
      is_local && std::any_of(transports.begin(), transports.end(), [](const std::string& name) {
        return name == "posix" || name == "sysv" || name == "xpmem";
      });
  contexts[key] = context;
  return context;
}

UcxContext::~UcxContext() {
  if (context_ != nullptr) {
    ucp_cleanup(context_);
  }
}

std::vector<std::string> UcxContext::Transports() const {
  // UCX has no call that lists them; its text names each as "resource 3 : md 2 dev 1 ... tcp/lo".
  char* text = nullptr;
  size_t bytes = 0;
  std::FILE* stream = ::open_memstream(&text, &bytes);
  CONCLAVE_CHECK(stream != nullptr);
  ucp_context_print_info(context_, stream);
  std::fclose(stream);
  const std::unique_ptr<char, decltype(&std::free)> keep(text, &std::free);
  std::vector<std::string> names;
  std::string_view rest(text, bytes);
  while (!rest.empty()) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    const size_t slash = line.rfind('/');
    if (line.find("resource") == line.npos || slash == line.npos) {
      continue;
    }
    const size_t space = line.rfind(' ', slash);
    std::string name(line.substr(space + 1, slash - space - 1));
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(std::move(name));
    }
  }
  return names;
}

absl::StatusOr<UcxReport> ProbeUcx(const UcxReach& reach) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::shared_ptr<UcxContext> context, UcxContext::Get(reach));
  CONCLAVE_RETURN_IF_ERROR(UcxWorker::Create(context).status());
  return UcxReport{ucp_get_version_string(), context->Transports()};
}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(std::shared_ptr<UcxContext> context) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker());
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS |
                      UCP_WORKER_PARAM_FIELD_FLAGS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_RX | UCP_WAKEUP_TX;
  // Requests of an endpoint that was given up end with their worker.
  params.flags = UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK;
  ucs_status_t status = ucp_worker_create(context->handle(), &params, &worker->worker_);
  if (status != UCS_OK) {
    worker->worker_ = nullptr;
    return UcxError("making a worker", status);
  }
  worker->context_ = std::move(context);
  status = ucp_worker_get_efd(worker->worker_, &worker->fd_);
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  if (status == UCS_OK) {
    status = ucp_worker_get_address(worker->worker_, &address, &bytes);
  }
  if (status != UCS_OK) {
    return UcxError("setting up a worker", status);
  }
  worker->address_.assign(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(worker->worker_, address);
  return worker;
}

void UcxWorker::SetHandler(OnMessage on_message, void* argument) {
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = on_message;
  handler.arg = argument;
  // Fails only for a context without active messages.
  CONCLAVE_CHECK(ucp_worker_set_am_recv_handler(worker_, &handler) == UCS_OK);
}

UcxWorker::~UcxWorker() {
  if (worker_ != nullptr) {
    ucp_worker_destroy(worker_);
  }
}

absl::StatusOr<ucp_ep_h> UcxWorker::Connect(const std::string& peer_address,
                                            ucp_err_handler_cb_t on_error, void* argument) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_error;
  params.err_handler.arg = argument;
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint);
  if (status != UCS_OK) {
    return UcxError("connecting to the peer", status);
  }
  return endpoint;
}

ucs_status_ptr_t UcxWorker::StartClose(ucp_ep_h endpoint) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint, &param);
  return UCS_PTR_IS_PTR(request) ? request : nullptr;
}

bool UcxWorker::IsOver(ucs_status_ptr_t& request) {
  if (request == nullptr) {
    return true;
  }
  if (ucp_request_check_status(request) == UCS_INPROGRESS) {
    return false;
  }
  ucp_request_free(std::exchange(request, nullptr));
  return true;
}

UcxWorker::Sent UcxWorker::Send(ucp_ep_h endpoint, uint64_t session, std::span<std::byte> block,
                                size_t frame_bytes, ucp_send_nbx_callback_t on_sent,
                                void* argument) {
  CONCLAVE_CHECK(frame_bytes >= kFrameHeaderBytes && kUcxPrefixBytes + frame_bytes <= block.size());
  std::byte* frame = block.data() + kUcxPrefixBytes;
  std::byte* head = frame - sizeof(session);
  std::memcpy(head, &session, sizeof(session));
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_sent;
  param.user_data = argument;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(endpoint, kMessageId, head, kUcxHeadBytes, frame + kFrameHeaderBytes,
                      frame_bytes - kFrameHeaderBytes, &param);
  if (request == nullptr) {
    return Sent::kDone;
  }
  return UCS_PTR_IS_ERR(request) ? Sent::kFailed : Sent::kPending;
}

UcxWorker::Sent UcxWorker::Receive(void* message, std::span<std::byte> out,
                                   ucp_am_recv_data_nbx_callback_t on_received, void* argument) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv_am = on_received;
  param.user_data = argument;
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_, message, out.data(), out.size(), &param);
  if (request == nullptr) {
    return Sent::kDone;
  }
  return UCS_PTR_IS_ERR(request) ? Sent::kFailed : Sent::kPending;
}

}  // namespace conclave::transport
