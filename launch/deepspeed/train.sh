#!/usr/bin/env bash
# Train on the nodes of a hostfile, started from one of them over ssh by DeepSpeed's launcher:
#
#   launch/deepspeed/train.sh hostfile experiment=... name=... strategy=zero2
#
# A line of the hostfile is `node0 slots=8`: a name that ssh reaches without a password, and its processes. All lines need
# the same number. The checkout lies at the same place on all nodes. A run that was stopped goes on from its last checkpoint.
# It needs pdsh. MASTER is the address of the first node where ssh has another one, PORT where the processes meet.
set -euo pipefail
cd "$(dirname "$0")/../.."

hostfile=${1:?expected a hostfile as first argument, with lines like: node0 slots=8}
shift
[ -r "$hostfile" ] || {
    echo "train.sh: found no file $hostfile, expected a hostfile with lines like: node0 slots=8" >&2
    exit 1
}
slots=$(sed -n 's/^[^#[:space:]][^[:space:]]*[[:space:]]*slots=\([0-9][0-9]*\).*/\1/p' "$hostfile")
kinds=$(sort -u <<<"$slots" | wc -l)
if [ -z "$slots" ] || [ "$kinds" -ne 1 ]; then
    echo "train.sh: $hostfile: found slots $(tr '\n' ' ' <<<"$slots"), expected the same number in every line" >&2
    exit 1
fi
first=$(sed -n 's/^\([^#[:space:]][^[:space:]]*\)[[:space:]]*slots=.*/\1/p' "$hostfile" | head -n 1)
exec "$(dirname "${VIDEODIFF:-.venv/bin/videodiff}")/deepspeed" --hostfile="$hostfile" --launcher=pdsh --no_python --no_local_rank \
    --master_addr="${MASTER:-$first}" --master_port="${PORT:-29500}" \
    launch/deepspeed/process.sh trainer.num_nodes="$(wc -l <<<"$slots")" trainer.devices="$(head -n 1 <<<"$slots")" "$@"
