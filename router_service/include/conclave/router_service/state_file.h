// The router's state in a folder: one file per generation, written whole, the newest three kept.
//
//   state.<20 digits>   "CNCLVRS1", version u32, crc32c u32 of the blob, length u64, blob
//
// A write goes to a temporary file, fsync, rename, fsync of the folder: after a crash the folder
// holds the old generation or the new one, never a half. After a failed write or fsync the file is
// given up and the next try writes another (what a retried fsync reports is worth nothing).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/router_service/state_store.h"

namespace conclave::router_service {

class StateFolder final : public StateStore {
 public:
  // Creates the folder if it is missing (its parent must exist) and takes its lock until
  // destruction. kUnavailable ("state_dir") when it cannot be used; kFailedPrecondition
  // ("state_dir_locked") with the pid of the router that has it.
  static absl::StatusOr<std::unique_ptr<StateFolder>> Open(const std::string& path);
  ~StateFolder() override;
  StateFolder(const StateFolder&) = delete;
  StateFolder& operator=(const StateFolder&) = delete;

  // Files that cannot be used ("state_corrupt", "state_version_unsupported") are passed over, kept
  // as state.<number>.refused and reported; kUnavailable ("state_dir") when the folder cannot be
  // read.
  absl::StatusOr<StoredState> Load() override;

  // Durable when it returns OK. kUnavailable ("state_write_failed") otherwise; the older
  // generations stay. The term is in the blob; one folder has one router at a time.
  absl::Status Save(std::string_view blob, uint32_t term) override;

 private:
  struct State;
  explicit StateFolder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The bytes of a file, and back. Pure. `version` is that of the blob's format.
std::string EncodeStateFile(uint32_t version, std::string_view blob);
// kInvalidArgument ("state_corrupt"), kFailedPrecondition ("state_version_unsupported").
absl::StatusOr<std::string_view> DecodeStateFile(std::string_view bytes, uint32_t version_max);

}  // namespace conclave::router_service
