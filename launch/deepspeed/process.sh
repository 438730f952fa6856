#!/usr/bin/env bash
# One process of launch/deepspeed/train.sh. DeepSpeed's launcher sets the variables of torchrun, but not the one by which
# a program sees that they are meant.
set -euo pipefail
export TORCHELASTIC_RUN_ID=${TORCHELASTIC_RUN_ID:-deepspeed}
videodiff=${1:?expected the command as first argument, as launch/deepspeed/train.sh gives it}
exec "$videodiff" train resume=auto "${@:2}"
