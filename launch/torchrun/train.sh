#!/usr/bin/env bash
# Train on all GPUs of one node, or of several:
#
#   launch/torchrun/train.sh experiment=... name=... strategy=zero2
#   NODES=4 MASTER=node0 launch/torchrun/train.sh ...      # the same line on each of the 4 nodes
#
# DEVICES is the number of processes on a node (default: its GPUs). To go on after a stop, add resume=runs/<name>.
set -euo pipefail
cd "$(dirname "$0")/../.."

nodes=${NODES:-1}
devices=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)} || {
    echo "train.sh: found no nvidia-smi, expected DEVICES=<processes on a node>" >&2
    exit 1
}
if [ "$nodes" -eq 1 ]; then
    rendezvous=(--standalone)
else
    master=${MASTER:?expected MASTER=<host name of one of the nodes> with NODES=$nodes}
    rendezvous=(--rdzv-backend=c10d --rdzv-id="${JOB:-videodiff}" --rdzv-endpoint="$master:${PORT:-29500}")
fi
exec .venv/bin/python -m videodiff.parallel.torchrun "${rendezvous[@]}" --nnodes="$nodes" --nproc-per-node="$devices" \
    -m videodiff train trainer.num_nodes="$nodes" trainer.devices="$devices" "$@"
