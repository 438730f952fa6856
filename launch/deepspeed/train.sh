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

fail() { echo "train.sh: $*" >&2 && exit 1; }
hostfile=${1:?expected a hostfile as first argument, with lines like: node0 slots=8}
shift
[ -r "$hostfile" ] || fail "found no file $hostfile, expected a hostfile with lines like: node0 slots=8"

line='^([^#[:space:]]+)[[:space:]]+slots=([1-9][0-9]*)[[:space:]]*$'
bad=$(grep -vnE "$line|^[[:space:]]*(#.*)?$" "$hostfile" | head -n 1) || true
[ -z "$bad" ] || fail "$hostfile: line ${bad%%:*}: found '${bad#*:}', expected a name and its processes: node0 slots=8"
mapfile -t hosts < <(sed -nE "s/$line/\1/p" "$hostfile")
mapfile -t slots < <(sed -nE "s/$line/\2/p" "$hostfile" | sort -nu)
[ ${#hosts[@]} -gt 0 ] || fail "$hostfile: found no line, expected lines like: node0 slots=8"
[ ${#slots[@]} -eq 1 ] || fail "$hostfile: found slots ${slots[*]}, expected the same number in every line"
twice=$(printf '%s\n' "${hosts[@]}" | sort | uniq -d | head -n 1)
[ -z "$twice" ] || fail "$hostfile: found $twice twice, expected each node in one line: $twice slots=$((2 * slots[0]))"
command -v pdsh >/dev/null || fail "found no pdsh, which DeepSpeed starts the nodes with, expected it: apt-get install pdsh"

# All at once, as each may take ten seconds: DeepSpeed asks the first node only, and leaves the others to a time-out.
answers=$(mktemp -d)
trap 'rm -rf "$answers"' EXIT
for host in "${hosts[@]}"; do
    { ssh -o BatchMode=yes -o ConnectTimeout=10 "$host" true </dev/null >"$answers/$host" 2>&1 && rm "$answers/$host"; } &
done
wait
for host in "${hosts[@]}"; do
    [ ! -e "$answers/$host" ] || fail "$hostfile: found no node $host by ssh ($(tail -n 1 "$answers/$host" | tr -d '\r')), expected" \
        "one that answers \`ssh $host true\` without a password"
done
rm -r "$answers"

# The nodes get VIDEODIFF as an argument: of the environment DeepSpeed's launcher hands on what begins with NCCL, PYTHON,
# MV2 and UCX, and the lines of ~/.deepspeed_env.
videodiff=${VIDEODIFF:-.venv/bin/videodiff}
exec "$(dirname "$videodiff")/deepspeed" --hostfile="$hostfile" --launcher=pdsh --no_python --no_local_rank \
    --master_addr="${MASTER:-${hosts[0]}}" --master_port="${PORT:-29500}" launch/deepspeed/process.sh "$videodiff" \
    trainer.num_nodes="${#hosts[@]}" trainer.devices="${slots[0]}" "$@"
