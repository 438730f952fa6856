"""videodiff plan: the memory, time and cost of a training on a cluster, before it is launched."""

from videodiff.verbs.plan.command import run as run
