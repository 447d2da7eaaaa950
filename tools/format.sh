#!/usr/bin/env bash
# clang-format over the project's C++ files.
#
#   tools/format.sh           rewrites them
#   tools/format.sh --check   names those that differ and fails; 77 when clang-format is not installed
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

command -v clang-format >/dev/null || { echo "skipped: clang-format is not installed"; exit 77; }
mapfile -d '' -t files < <(
  find libs frontend expert_worker router_service cli tests bench \( -name '*.h' -o -name '*.cc' \) -print0
)
case "${1:-}" in
  --check) clang-format --dry-run --Werror "${files[@]}" && echo "${#files[@]} files are formatted" ;;
  "") clang-format -i "${files[@]}" ;;
  *) die "format.sh: expected --check or nothing, found '$1'" ;;
esac
