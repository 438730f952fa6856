#!/usr/bin/env bash
# What `make demo-rollout` runs: thirty seconds of the bouncing world from one prompt, with the model of `make demo`,
# window by window, measured second by second into runs/rollout/evaluation.json.
# Trains the model first where runs/demo has none; removes runs/rollout, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -d runs/demo/checkpoints ] || launch/demo.sh
rm -rf runs/rollout
.venv/bin/videodiff sample runs/demo 'prompts=["a large red ball moves right slowly"]' \
    seconds=30 rollout=continue drift=true out=runs/rollout
echo "== The clip is runs/rollout/000.mp4; the figures are in runs/rollout/evaluation.json."
