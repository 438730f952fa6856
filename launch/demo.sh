#!/usr/bin/env bash
# What `make demo` runs: two sets of clips of the bouncing world, shards, training, evaluation, report.
# Starts afresh each time: removes datasets/demo and runs/demo, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

train_clips=6000
held_out_clips=256
clip="world=bouncing world.balls={1:1,2:0,3:0} size=20 crf=10"   # as the experiment expects them
experiment="experiment=bouncing_cpu name=demo data.root=datasets/demo/train data.validation_root=datasets/demo/held_out"

stage() {
    local since=$SECONDS
    echo "== videodiff $*"
    .venv/bin/videodiff "$@"
    echo "== $1: $((SECONDS - since)) s"
}

rm -rf datasets/demo runs/demo
mkdir -p datasets/demo
# $clip and $experiment are lists of overrides: they have to fall apart into words.
# shellcheck disable=SC2086
{
    stage simulate $clip out=datasets/demo/train_clips clips=$train_clips
    stage simulate $clip out=datasets/demo/held_out_clips clips=$held_out_clips world.split=all first_seed=1000000
    stage pack source=datasets/demo/train_clips out=datasets/demo/train
    stage pack source=datasets/demo/held_out_clips out=datasets/demo/held_out
    stage train $experiment
}
stage evaluate runs/demo
stage report runs/demo
echo "== all: $SECONDS s. Open runs/demo/report.html; the figures are in runs/demo/evaluation.json."
