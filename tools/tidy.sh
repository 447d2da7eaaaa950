#!/usr/bin/env bash
# clang-tidy over the project's C++ files, warnings as errors.
#
#   tools/tidy.sh [--build DIR] --changed    what differs from the commit before the last one, at most 40 files
#   tools/tidy.sh [--build DIR] --all        every file
#   tools/tidy.sh [--build DIR] FILE...      these
#
# DIR holds compile_commands.json (build/dev). A header is checked through the file that the build generates to compile
# it alone. Exit codes: 0 clean, 1 findings, 77 nothing that can be checked (ctest shows it as skipped).
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

readonly files_max=40
build=build/dev
if [[ ${1:-} == --build ]]; then
  build=$2
  shift 2
fi
[[ -f $build/compile_commands.json ]] || die "no compile_commands.json in $build; configure it first"
command -v clang-tidy >/dev/null || { echo "skipped: clang-tidy is not installed"; exit 77; }

# The checkout may belong to another user, which git refuses without this.
git_here() {
  git -c safe.directory="$root" "$@"
}

changed_files() {
  git_here rev-parse --quiet --verify HEAD >/dev/null || return 0
  local base
  base=$(git_here rev-parse --quiet --verify 'HEAD~1' || git_here hash-object -t tree /dev/null)
  git_here diff --name-only --diff-filter=d "$base"
  git_here ls-files --others --exclude-standard
}

case "${1:-}" in
  --changed)
    if ! command -v git >/dev/null || ! git_here rev-parse --git-dir >/dev/null 2>&1; then
      echo "skipped: not a git checkout, so nothing says what changed; tools/tidy.sh --all checks everything"
      exit 77
    fi
    mapfile -t candidates < <(changed_files)
    ;;
  --all)
    mapfile -t candidates < <(find libs frontend expert_worker router_service cli tests bench -name '*.h' -o -name '*.cc')
    ;;
  "" | --*) die "tidy.sh: expected --changed, --all or files, found '${1:-}'" ;;
  *) candidates=("$@") ;;
esac

# Keeps what the build compiles; a public header stands for its generated file.
mapfile -t files < <(
  for file in "${candidates[@]}"; do
    case "$file" in
      *.cc) echo "$root/$file" ;;
      */include/conclave/*.h) echo "$root/$build/tests/header_check/${file##*/include/conclave/}.cc" ;;
    esac
  done | sort -u | while read -r file; do
    ! grep --quiet --fixed-strings "\"file\": \"$file\"" "$build/compile_commands.json" || echo "$file"
  done
)
if ((${#files[@]} == 0)); then
  echo "no C++ file to check"
  exit 0
fi
if [[ $1 == --changed ]] && ((${#files[@]} > files_max)); then
  echo "${#files[@]} files changed: checking $files_max of them; tools/tidy.sh --all checks everything"
  files=("${files[@]:0:files_max}")
fi

echo "clang-tidy on ${#files[@]} files"
# --quiet still counts the warnings that it does not show.
# shellcheck disable=SC2016  # expanded by the inner shell
if printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$(jobs)" bash -o pipefail -c \
  'clang-tidy --quiet -p "$0" "$1" 2>&1 | { grep -v "warnings\? generated" || true; }' "$build"; then
  echo "clean"
else
  die "clang-tidy has findings, see above"
fi
