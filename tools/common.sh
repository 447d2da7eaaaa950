# Shared by the scripts of this folder; sourced, not run.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Heading of a stage, with the seconds since the script began.
stage() {
  printf '\n==> [%4ds] %s\n' "$SECONDS" "$*"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Compile jobs: every core, but not more than the memory carries. The heaviest files (Beast, Asio) need 1.5 GB each.
jobs() {
  local cores memory_kb by_memory
  cores=$(nproc)
  memory_kb=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo)
  by_memory=$((memory_kb / 1500000))
  ((by_memory >= 1)) || by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}

# configure_and_build PRESET TARGET...: quiet configure (its output is shown when it fails), build with progress.
configure_and_build() {
  local preset=$1 log=$root/build/configure-$1.log
  shift
  mkdir -p "$root/build"
  if ! (cd "$root" && cmake --preset "$preset") >"$log" 2>&1; then
    cat "$log" >&2
    die "configuring the preset $preset failed; its output is above and in build/configure-$preset.log"
  fi
  # ninja's own lines are the progress: one that counts up on a terminal, one per step elsewhere.
  cmake --build "$root/build/$preset" --parallel "$(jobs)" --target "$@"
}
