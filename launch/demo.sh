#!/usr/bin/env bash
# What `make demo` runs: two sets of clips of the bouncing world, shards, training, evaluation, report.
# Starts afresh each time: removes datasets/bouncing and runs/demo, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

train_clips=6000
held_out_clips=256
# On a CPU two processes of one thread each are faster than one process of two threads: the operations of a network this
# small are too short to share.
processes=(trainer.accelerator=cpu trainer.devices=2 strategy=ddp)
if command -v nvidia-smi >/dev/null; then processes=(); fi
clip="world=bouncing world.balls={1:1,2:0,3:0} size=20 crf=10"   # as the experiment expects them

videodiff() {
    local since=$SECONDS
    echo "== videodiff $*"
    .venv/bin/videodiff "$@"
    echo "== $1: $((SECONDS - since)) s"
}

rm -rf datasets/bouncing runs/demo
# $clip is a list of overrides: it has to fall apart into words.
# shellcheck disable=SC2086
{
    videodiff simulate $clip out=datasets/bouncing/clips clips=$train_clips
    videodiff simulate $clip out=datasets/bouncing/held_out_clips clips=$held_out_clips world.split=all first_seed=1000000
    videodiff pack source=datasets/bouncing/clips out=datasets/bouncing/train
    videodiff pack source=datasets/bouncing/held_out_clips out=datasets/bouncing/held_out
    videodiff train experiment=bouncing_cpu name=demo "${processes[@]}"
}
videodiff evaluate runs/demo
videodiff report runs/demo
echo "== all: $SECONDS s. Open runs/demo/report.html; the figures are in runs/demo/evaluation.json."
