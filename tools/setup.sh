#!/usr/bin/env bash
# Installs the Debian packages that conclave needs, and nothing that is there already.
#
#   tools/setup.sh run    what building and running `conclave` needs (the default)
#   tools/setup.sh test   that, and what the tests and the checks of the code need
#   tools/setup.sh bench  what is in run, and what bench/ needs
#
# Needs root or sudo only when a package is missing. CONCLAVE_SKIP_SETUP=1 trusts that all is there.
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# One group per line of cmake/Dependencies.cmake. Boost by its version: the unversioned packages are 1.74, and the
# two families conflict.
run_packages=(
  g++ cmake ninja-build pkg-config
  libabsl-dev libspdlog-dev prometheus-cpp-dev
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libucx-dev
  libboost1.81-dev libboost-json1.81-dev libboost-url1.81-dev
  libssl-dev zlib1g-dev libyaml-cpp-dev libcli11-dev
  libpcre2-dev libutf8proc-dev libgif-dev libjpeg-dev libpng-dev libwebp-dev
)
# libclang-rt-14-dev holds the sanitizer runtimes of clang; ca-certificates is for pip; etcd-server is for e2e.etcd, which
# starts its own; nftables and iproute2 are for e2e.partition; prometheus, with promtool, is for tests/monitoring, nginx for
# deploy.proxy, and both start their own; chromium, which needs some font, is for tests/page;
# curl is in the commands of docs/deploy.md, wget in a health check of the compose file.
test_packages=(
  libgtest-dev libgmock-dev git python3-venv ca-certificates ccache
  clang clang-tidy clang-format libclang-rt-14-dev etcd-server nftables iproute2
  prometheus nginx curl wget chromium fonts-dejavu-core
)

case "${1:-run}" in
  run) packages=("${run_packages[@]}") ;;
  test) packages=("${run_packages[@]}" "${test_packages[@]}") ;;
  bench) packages=("${run_packages[@]}" libbenchmark-dev libdnnl-dev python3-venv) ;;
  -h | --help)
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) die "setup.sh: unknown set of packages; expected run, test or bench, found '$1'" ;;
esac

if [[ ${CONCLAVE_SKIP_SETUP:-0} == 1 ]]; then
  exit 0
fi
if ! command -v dpkg-query >/dev/null; then
  die "this is not a Debian system: install the equivalents of: ${packages[*]}; then set CONCLAVE_SKIP_SETUP=1"
fi

missing=()
installed=$(dpkg-query --show --showformat '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
for package in "${packages[@]}"; do
  grep --quiet --line-regexp --fixed-strings "$package installed" <<<"$installed" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${ID:-unknown} ${VERSION_ID:-unknown}")
if [[ $release != "debian 12" ]]; then
  echo "warning: conclave is built and tested on Debian 12; this is $release, package names may differ" >&2
fi

as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null ||
    die "packages are missing and neither root nor sudo is at hand; as root run: apt-get install -y --no-install-recommends ${missing[*]}"
  as_root=(sudo)
fi

mkdir -p "$root/build"
log=$root/build/setup.log
: >"$log"

# Turns apt's status lines ("pmstatus:package:percent:what") into one line that counts up, or into a line every 20 %.
show_progress() {
  local kind package percent what last=-20
  while IFS=: read -r kind package percent what; do
    [[ $kind == dlstatus || $kind == pmstatus ]] || continue
    percent=${percent%%[.,]*}
    if [[ -t 2 ]]; then
      printf '\r\033[K  %3d %%  %s' "$percent" "${what:0:80}" >&2
    elif ((percent >= last + 20 || percent < last)); then
      printf '  %3d %%  %s\n' "$percent" "$what" >&2
      last=$percent
    fi
  done
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

# apt writes its status to descriptor 3, here the pipe, and everything else to the log. The redirection is made inside
# of sudo, which closes every descriptor above 2.
apt() {
  # shellcheck disable=SC2016  # expanded by the inner shell
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive bash -c 'log=$1; shift
    exec apt-get -q -o APT::Status-Fd=3 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" \
      3>&1 >>"$log" 2>&1 </dev/null' apt "$log" "$@" | show_progress
}

# The packages etcd-server, prometheus and nginx start servers on fixed ports, which nobody here uses, and where that fails
# some installations do: nothing is started while this script installs. Services that it brought are switched off below, or
# the next boot would start them; one that was there before stays as it is.
services=()
[[ " ${missing[*]} " != *" etcd-server "* ]] || services+=(etcd)
[[ " ${missing[*]} " != *" prometheus "* ]] || services+=(prometheus)
[[ " ${missing[*]} " != *" nginx "* ]] || services+=(nginx)
policy=/usr/sbin/policy-rc.d
if ((${#services[@]} > 0)) && [[ ! -e $policy ]]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

echo "installing ${#missing[@]} Debian packages and what they depend on: ${missing[*]}"
for step in "update" "install -y --no-install-recommends ${missing[*]}"; do
  # shellcheck disable=SC2086  # a list of words
  if ! apt $step; then
    tail -n 20 "$log" >&2
    die "apt-get ${step%% *} failed; the whole output is in build/setup.log"
  fi
done
if ((${#services[@]} > 0)) && command -v systemctl >/dev/null; then
  # A policy that was there may have let them start.
  now=()
  [[ ! -d /run/systemd/system ]] || now=(--now)
  "${as_root[@]}" systemctl disable "${now[@]}" "${services[@]}" >>"$log" 2>&1 ||
    echo "warning: could not disable ${services[*]}, which the next boot may start; see build/setup.log" >&2
fi
echo "packages installed in $SECONDS s"
