#!/usr/bin/env bash
# What `make demo-rollout` runs: thirty seconds of the bouncing world from one prompt, window by window, measured second
# by second into runs/rollout/evaluation.json. With the model of `make demo`, or, without one, with the run bouncing_long,
# which comes with videodiff. Removes runs/rollout, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

# Guided by its caption at every window, the demo's ball slows down; docs/sampling.md has the figures of both ways.
run=bouncing_long how=guide
[ -d runs/demo/checkpoints ] && run=runs/demo how=tell
rm -rf runs/rollout
.venv/bin/videodiff sample "$run" 'prompts=["a large red ball moves right slowly"]' \
    seconds=30 rollout=continue rollout_caption="$how" drift=true out=runs/rollout
echo "== The clip is runs/rollout/000.mp4; the figures are in runs/rollout/evaluation.json."
