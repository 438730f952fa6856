#!/usr/bin/env bash
# What `make demo-rollout` runs: thirty seconds of the bouncing world from one prompt, window by window, measured second
# by second into runs/rollout/evaluation.json. With the model of `make demo`, or, without one, with the run bouncing_long,
# which comes with videodiff. Removes runs/rollout, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

run=bouncing_long
[ -d runs/demo/checkpoints ] && run=runs/demo
rm -rf runs/rollout
.venv/bin/videodiff sample "$run" 'prompts=["a large red ball moves right slowly"]' \
    seconds=30 rollout=continue drift=true out=runs/rollout
echo "== The clip is runs/rollout/000.mp4; the figures are in runs/rollout/evaluation.json."
