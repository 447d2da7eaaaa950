#!/usr/bin/env bash
# From a fresh clone to an answer: installs what is missing, builds `conclave`, asks the model that comes with it a
# question about a picture that it has never seen.
#
#   tools/demo.sh                        the question below
#   tools/demo.sh IMAGE "question"       one of your own (coloured shapes: models/demo/README.md says what it knows)
set -euo pipefail
# shellcheck source=tools/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

image=models/demo/samples/four-large.jpg
question="What is in the image?"
if (($# == 2)); then
  image=$(realpath -- "$1")
  question=$2
elif (($# != 0)); then
  die "demo.sh takes no argument, or IMAGE \"question\""
fi
[[ -r $image || -r $root/$image ]] || die "cannot read the image $image"
cd "$root"

stage "packages"
tools/setup.sh run

stage "build (the first time takes a few minutes)"
configure_and_build release conclave
conclave=build/release/conclave

stage "the picture $image, asked: $question"
"$conclave" ask "$image" "$question"

cat <<TEXT

To ask more:         $conclave ask IMAGE "question"
To serve an API:     $conclave serve
                     then curl http://127.0.0.1:8000/v1/models, or any OpenAI client with that base URL
To run the tests:    tools/test.sh
TEXT
