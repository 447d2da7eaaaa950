#!/usr/bin/env bash
# Builds the tests and runs them: unit, component, golden, bad inputs, end to end with the official OpenAI client, the
# parsers under AddressSanitizer and UndefinedBehaviorSanitizer and under libFuzzer, and clang-tidy over what changed last.
#
#   tools/test.sh                  all but the long suites; each fuzz target replays its corpus and runs for 10 s, with the
#                                  same new inputs every time; a test that fails is run once more, and both show
#   tools/test.sh --long           also the long tests, all programs under AddressSanitizer, ThreadSanitizer, clang,
#                                  clang-tidy over the whole tree, and 10 minutes of each fuzz target with new inputs;
#                                  nothing is run twice
#   tools/test.sh [--long] -- ...  the rest goes to ctest, for example -- -L unit
#
# Everything runs as ctest tests, so the last lines are ctest's own summary.
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

long=0
ctest_args=()
while (($# > 0)); do
  case "$1" in
    --long) long=1 ;;
    --)
      shift
      ctest_args=("$@")
      break
      ;;
    -h | --help)
      sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "test.sh: unknown argument '$1'; expected --long or -- followed by arguments for ctest" ;;
  esac
  shift
done

stage "packages"
tools/setup.sh test

stage "python environment for the end-to-end tests"
pins=$(sha256sum tests/requirements.txt)
if [[ ! -x .venv/bin/python || $(cat .venv/pins 2>/dev/null) != "$pins" ]]; then
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
  # Written last: an interrupted installation is done again.
  echo "$pins" >.venv/pins
fi

stage "build"
configure_and_build dev all

stage "build with AddressSanitizer and UndefinedBehaviorSanitizer: parsers, transport, components, fuzz targets"
configure_and_build asan "sanitizer_programs$( ((long)) && echo _all || true)" fuzz_programs

stage "release build, for the check that it has no failpoints"
configure_and_build release conclave

# A change must not fail for what it did not do (docs/decisions/0024-one-more-try.md).
labels=(--label-exclude '^long$')
repeat=(--repeat until-pass:2)
fuzz_seconds=10
fuzz_seed=1
if ((long)); then
  labels=()
  repeat=()
  fuzz_seconds=600
  fuzz_seed=0
  for preset in tsan clang; do
    stage "preset $preset: build"
    configure_and_build "$preset" all
    stage "preset $preset: unit and component tests"
    ctest --preset "$preset" --label-regex '^(unit|component)' --parallel "$(jobs)" --no-label-summary
  done
  stage "clang-tidy over the whole tree"
  tools/tidy.sh --build build/dev --all
fi

stage "tests"
progress=()
[[ ! -t 1 ]] || progress=(--progress)
# These programs join the run only here, where they have just been built: elsewhere they may be stale.
sanitizer_all=$( ((long)) && echo 1 || true)
CONCLAVE_SANITIZER_BUILD=$root/build/asan CONCLAVE_SANITIZER_ALL=$sanitizer_all \
CONCLAVE_FUZZ_BUILD=$root/build/asan CONCLAVE_FUZZ_SECONDS=$fuzz_seconds CONCLAVE_FUZZ_SEED=$fuzz_seed \
  ctest --preset dev --parallel "$(jobs)" --no-tests=error --no-label-summary \
  "${progress[@]}" "${repeat[@]}" "${labels[@]}" "${ctest_args[@]}"
