// The streams of members that are open.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "rpc_stream.h"

namespace conclave::v1 {
class WorkerCommand;
class WorkerReport;
}  // namespace conclave::v1

namespace conclave::router_service {

// By session. Any thread.
class Streams {
 public:
  static constexpr size_t kStreamsMax = 4096;

  struct Entry {
    std::shared_ptr<PeerStream> stream;
    std::shared_ptr<RpcStream<v1::WorkerReport, v1::WorkerCommand>> worker;  // the same one, of a worker
    MonotonicTime since;
  };

  bool Add(SessionId session, Entry entry) {
    MutexLock lock(mu_);
    if (is_closed_ || entries_.size() >= kStreamsMax) {
      return false;
    }
    entries_.emplace(session, std::move(entry));
    return true;
  }
  void Remove(SessionId session) {
    MutexLock lock(mu_);
    entries_.erase(session);
  }
  Entry Find(SessionId session) const {
    MutexLock lock(mu_);
    const auto it = entries_.find(session);
    return it == entries_.end() ? Entry{} : it->second;
  }
  std::vector<Entry> All() const {
    MutexLock lock(mu_);
    std::vector<Entry> all;
    for (const auto& [session, entry] : entries_) {
      all.push_back(entry);
    }
    return all;
  }
  // Takes no more.
  void Close() {
    MutexLock lock(mu_);
    is_closed_ = true;
  }

 private:
  mutable Mutex mu_;
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;
  std::map<SessionId, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::router_service
