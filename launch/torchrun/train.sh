#!/usr/bin/env bash
# Train on all GPUs of one node, or of several:
#
#   launch/torchrun/train.sh experiment=... name=... strategy=zero2
#   NODES=4 MASTER=node0 launch/torchrun/train.sh ...                 # the same line on each of the 4 nodes
#   NODES=2:4 MASTER=node0 RESTARTS=10 launch/torchrun/train.sh ...   # elastic: on 2 to 4 nodes, whichever are there
#
# DEVICES is the number of processes on a node (default: its GPUs). A run that was stopped goes on from its last
# checkpoint. RESTARTS is how often all processes are started again after one was lost or a node came or went.
# STOP_S: seconds in which they may save after SIGTERM; PORT and JOB: where and under which name the nodes meet.
set -euo pipefail
cd "$(dirname "$0")/../.."

nodes=${NODES:-1}
devices=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)} || {
    echo "train.sh: found no nvidia-smi, expected DEVICES=<processes on a node>" >&2
    exit 1
}
if [ "$nodes" = 1 ]; then
    rendezvous=(--standalone)
else
    master=${MASTER:?expected MASTER=<host name of one of the nodes> with NODES=$nodes}
    rendezvous=(--rdzv-backend=c10d --rdzv-id="${JOB:-videodiff}" --rdzv-endpoint="$master:${PORT:-29500}")
fi
export VIDEODIFF=${VIDEODIFF:-.venv/bin/videodiff}
# How many nodes came together is known to each process only.
# shellcheck disable=SC2016
exec "$(dirname "$VIDEODIFF")/python" -m videodiff.parallel.torchrun "${rendezvous[@]}" --nnodes="$nodes" \
    --nproc-per-node="$devices" --max-restarts="${RESTARTS:-0}" --shutdown-timeout="${STOP_S:-60}" --no-python \
    bash -c 'exec "$VIDEODIFF" train resume=auto trainer.num_nodes="$GROUP_WORLD_SIZE" trainer.devices="$LOCAL_WORLD_SIZE" "$@"' \
    train "$@"
