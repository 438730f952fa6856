"""videodiff plan: what a training takes of a cluster, before it is launched."""

from videodiff.verbs.plan.command import run as run
