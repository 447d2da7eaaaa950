#!/usr/bin/env bash
# Runs the fuzz targets of tests/fuzz: first every input of a target's corpus and seeds, then new ones.
#
#   tools/fuzz.sh [--seconds N] [--seed N] [--keep] [TARGET...]   builds and runs these targets (all of them), 10 s each
#   tools/fuzz.sh --build DIR ...                                 runs what DIR holds already
#
# Without --seed every run makes other inputs; with it they are those of the last run, as far as both get.
# --keep adds the inputs that reach code which no input of the corpus reaches to tests/fuzz/corpus/TARGET. The table at
# the end has one row per target: executions, seconds, inputs of the corpus, coverage (edges), findings. What breaks a
# target is written to build/fuzz-findings/, and the exit code is 1.
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"

# An input that takes longer is a finding, and so is one that needs more memory. The sanitizers are part of both.
readonly input_seconds_max=5
readonly memory_mib_max=1024

seconds=10
seed=0
keep=0
build=
targets=()
while (($# > 0)); do
  case "$1" in
    --seconds) seconds=$2 && shift ;;
    --build) build=$2 && shift ;;
    --seed) seed=$2 && shift ;;
    --keep) keep=1 ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*) die "fuzz.sh: unknown argument '$1'; expected --seconds N, --seed N, --build DIR, --keep or names of targets" ;;
    *) targets+=("$1") ;;
  esac
  shift
done

if [[ -z $build ]]; then
  stage "build"
  build=$root/build/asan
  configure_and_build asan fuzz_programs
fi
programs=$build/tests/fuzz
[[ -r $programs/targets.txt ]] || die "no fuzz targets in $build; build fuzz_programs of the preset asan first"
((${#targets[@]} > 0)) || mapfile -t targets <"$programs/targets.txt"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
findings=$root/build/fuzz-findings
mkdir -p "$findings"

# run_target NAME: prints its row of the table and returns whether it is clean.
run_target() {
  local name=$1 log=$work/$1.log program=$programs/fuzz_$1 corpus=$root/tests/fuzz/corpus/$1 found=0
  [[ -x $program ]] || die "there is no fuzz target $name; expected one of: $(tr '\n' ' ' <"$programs/targets.txt")"
  # The first folder gets the new inputs; they are worth nothing after the run unless --keep is given.
  mkdir "$work/$name" "$work/$name.seeds"
  local inputs=("$work/$name" "$work/$name.seeds") seeds=() path
  if ((keep)); then
    mkdir -p "$corpus"
  fi
  [[ ! -d $corpus ]] || inputs+=("$corpus")
  # libFuzzer reads folders only, hence the copies.
  mapfile -t seeds <"$programs/fuzz_$name.seeds"
  for path in "${seeds[@]}"; do
    [[ -z $path ]] || cp -r "$root/$path" "$work/$name.seeds/"
  done
  local limits=(-timeout="$input_seconds_max" -rss_limit_mb="$memory_mib_max" -artifact_prefix="$findings/$name-")
  local dictionary=$root/tests/fuzz/dictionaries/$name.txt
  [[ ! -r $dictionary ]] || limits+=(-dict="$dictionary")
  "$program" "${limits[@]}" -seed="$seed" -max_total_time="$seconds" -print_final_stats=1 \
    "${inputs[@]}" >"$log" 2>&1 || found=1
  if ((keep)) && ((!found)); then
    # By edges alone: counts of how often each was taken would keep many times as many files.
    "$program" "${limits[@]}" -merge=1 -use_counters=0 "$corpus" "$work/$name" >>"$log" 2>&1 || found=1
  fi
  awk -v name="$name" -v found="$found" -v inputs="$(find "${inputs[@]:1}" -type f | wc -l)" '
    / cov: / { for (i = 1; i < NF; ++i) if ($i == "cov:") coverage = $(i + 1) }
    /^stat::number_of_executed_units:/ { executions = $2 }
    /^Done .* runs in .* second/ { seconds = $5 }
    END { printf "%-24s %12s %8s %8d %9s %9d\n", name, executions, seconds, inputs, coverage, found }' "$log"
  if ((found)); then
    grep --before-context 2 --after-context 40 --max-count 1 \
      -e 'ERROR: ' -e 'runtime error' -e 'broken invariant' "$log" || tail -n 60 "$log"
    echo "the input is in build/fuzz-findings/; make it a unit test and a file of tests/fuzz/corpus/$name/"
  fi
  return "$found"
}

printf '%-24s %12s %8s %8s %9s %9s\n' target executions seconds corpus coverage findings
failed=0
for target in "${targets[@]}"; do
  run_target "$target" || failed=1
done
exit "$failed"
