"""Print a JobSet or a TrainJob that trains on several nodes of a Kubernetes cluster, from the arguments of a run.

    python launch/kubernetes/jobset.py image=registry.example.org/videodiff:0.1 claim=shared \\
        name=my_run experiment=hdvila_256 strategy=zero2 trainer.num_nodes=4 trainer.devices=8 | kubectl apply -f -

A pod is a node; torchrun in it starts a process for each GPU. These keys are for the cluster, all others for the run:

    image      the image of the Dockerfile
    claim      a volume claim that all pods may write to (ReadWriteMany); it is mounted at /work: datasets/ and runs/
    gpu        the resource name of a GPU (nvidia.com/gpu); none: train on CPUs
    rdma       a resource of the fast network for each pod: rdma/ib=1, vpc.amazonaws.com/efa=4
    shm        shared memory of a pod, in which NCCL hands data on (64Gi)
    cpu, memory  the requests of a pod (64, 512Gi)
    restarts   how often a run that has lost a pod resumes from its last checkpoint (20)
    queue      a local queue of Kueue, which starts all pods or none
    namespace  where the run lives
    kind       jobset; or trainjob: a TrainJob of Kubeflow Trainer (2.x), with a runtime for all other settings

The cluster needs the JobSet controller, 0.10 or newer; Kubeflow Trainer brings it. An error of the run itself (exit
status 1) ends it at once. If a pod is lost, all pods restart; if the cluster drains a pod, the restart is not counted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from hydra import compose, initialize_config_dir

from videodiff.cli import one_line_a_failure, understand
from videodiff.verbs.config.checking import check_composed
from videodiff.verbs.config.groups import conf_dir

DEFAULTS = {
    **{"image": "", "claim": "", "gpu": "nvidia.com/gpu", "rdma": "", "shm": "64Gi", "cpu": "64", "memory": "512Gi"},
    **{"restarts": "20", "queue": "", "namespace": "", "kind": "jobset"},
}
TRAINER = "trainer.kubeflow.org"
PORT = 29500
# Seconds from SIGTERM to SIGKILL: for a step and a checkpoint, and some for torchrun itself.
GRACE_S = 180


class Run(NamedTuple):
    """The settings of a run that its manifest needs."""

    name: str
    nodes: int
    devices: int
    words: list[str]


def main(arguments: Sequence[str]) -> None:
    """Print the manifest."""
    with one_line_a_failure("jobset.py"):
        if not arguments or "--help" in arguments:
            print(__doc__)
            return
        settings, words = split(arguments)
        run = read(words)
        manifests = trainjob(settings, run) if settings["kind"] == "trainjob" else [jobset(settings, run)]
        print(yaml.safe_dump_all(manifests, sort_keys=False), end="")


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the settings of the cluster, and the arguments of the run."""
    settings, words = dict(DEFAULTS), []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in DEFAULTS:
            settings[key] = value
        else:
            words.append(word)
    for key in ("image", "claim"):
        if not settings[key]:
            raise ValueError(f"{key}: found nothing, expected {key}=<...>; --help says what it is")
    if settings["kind"] not in ("jobset", "trainjob"):
        raise ValueError(f"kind: found {settings['kind']!r}, expected jobset or trainjob")
    if not settings["restarts"].isdigit():
        raise ValueError(f"restarts: found {settings['restarts']!r}, expected a whole number")
    return settings, words


def read(words: Sequence[str]) -> Run:
    """Return the settings of a run for its manifest; a wrong argument is an error here, not later in the cluster."""
    overrides = understand("train", [*words, "--cfg", "job"]).overrides
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = compose("train", overrides=list(overrides))
    check_composed("train", cfg, overrides)
    devices = cfg.trainer.devices
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices: found {devices}, expected how many GPUs a pod has")
    return Run(cfg.name, cfg.trainer.num_nodes, devices, list(words))


def label(name: str) -> str:
    """Return a name that Kubernetes accepts: at most 40 characters, because names of pods extend it."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not found:
        raise ValueError(f"name: found {name!r}, expected letters or digits in it")
    return (found if found[0].isalpha() else f"run-{found}")[:40].strip("-")


def metadata(settings: dict[str, str], name: str) -> dict[str, Any]:
    """Return name, namespace and queue."""
    found: dict[str, Any] = {"name": name}
    if settings["namespace"]:
        found["namespace"] = settings["namespace"]
    if settings["queue"]:
        found["labels"] = {"kueue.x-k8s.io/queue-name": settings["queue"]}
    return found


def jobset(settings: dict[str, str], run: Run) -> dict[str, Any]:
    """Return the JobSet of a run."""
    name = label(run.name)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(settings, name),
        "spec": {
            # The pods look for the first one before it is ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            **jobs(settings, job(settings, run, place(run, name))),
        },
    }


def trainjob(settings: dict[str, str], run: Run) -> list[dict[str, Any]]:
    """Return the runtime of a TrainJob, then the TrainJob.

    The controller sets PET_* variables, which tell torchrun its node, the number of nodes and their meeting point.
    """
    name, version = label(run.name), f"{TRAINER}/v1alpha1"
    template = job(settings, run, [])
    ancestor = {"labels": {f"{TRAINER}/trainjob-ancestor-step": "trainer"}}
    home = {key: value for key, value in metadata(settings, name).items() if key != "labels"}
    runtime = {
        "apiVersion": version,
        "kind": "TrainingRuntime",
        "metadata": {**home, "labels": {f"{TRAINER}/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": run.nodes, "torch": {}},
            "template": {"spec": jobs(settings, template, ancestor)},
        },
    }
    wanted = {
        "apiVersion": version,
        "kind": "TrainJob",
        "metadata": metadata(settings, name),
        "spec": {
            "runtimeRef": {"apiGroup": TRAINER, "kind": "TrainingRuntime", "name": name},
            "trainer": {"numNodes": run.nodes, "numProcPerNode": run.devices},
        },
    }
    return [runtime, wanted]


def jobs(settings: dict[str, str], spec: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the job of a JobSet, and its rules for a failed pod; `more`: metadata of the job."""
    template = {"metadata": more, "spec": spec} if more else {"spec": spec}
    return {
        "failurePolicy": {
            "maxRestarts": int(settings["restarts"]),
            # No new pod meets an old one.
            "restartStrategy": "BlockingRecreate",
            "rules": [
                {
                    "name": "error",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": ["exit code 1 "],
                },
                {
                    "name": "drained",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": ["DisruptionTarget"],
                },
                {"name": "lost", "action": "RestartJobSet"},
            ],
        },
        "replicatedJobs": [{"name": "node", "replicas": 1, "template": template}],
    }


def place(run: Run, name: str) -> list[str]:
    """Return the arguments that tell torchrun the nodes of a JobSet."""
    return [
        *(f"--nnodes={run.nodes}", f"--nproc-per-node={run.devices}", f"--master-addr={name}-node-0-0.{name}"),
        *(f"--master-port={PORT}", "--node-rank=$(POD_INDEX)"),
    ]


def job(settings: dict[str, str], run: Run, where: list[str]) -> dict[str, Any]:
    """Return the job whose pods are the nodes; a lost pod ends the job, and the JobSet restarts it."""
    return {
        "parallelism": run.nodes,
        "completions": run.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"containerName": "node", "operator": "In", "values": [1]}},
            ]
        },
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": GRACE_S,
                "containers": [container(settings, run, where)],
                "volumes": [
                    {"name": "work", "persistentVolumeClaim": {"claimName": settings["claim"]}},
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings["shm"]}},
                ],
            }
        },
    }


def container(settings: dict[str, str], run: Run, where: list[str]) -> dict[str, Any]:
    """Return the container of a node; Kubeflow Trainer finds it by its name."""
    limits: dict[str, str] = {"cpu": settings["cpu"], "memory": settings["memory"]}
    if settings["gpu"] != "none":
        limits[settings["gpu"]] = str(run.devices)
    if settings["rdma"]:
        resource, _, count = settings["rdma"].partition("=")
        limits[resource] = count or "1"
    torchrun = ["python", "-m", "videodiff.parallel.torchrun", *where, f"--shutdown-timeout={GRACE_S - 20}"]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return {
        "name": "node",
        "image": settings["image"],
        "workingDir": "/work",
        "command": torchrun,
        # A dollar sign is Kubernetes' own.
        "args": ["-m", "videodiff", "train", "resume=auto", *(word.replace("$(", "$$(") for word in run.words)],
        "env": [
            {"name": "POD_INDEX", "valueFrom": {"fieldRef": {"fieldPath": index}}},
            {"name": "OMP_NUM_THREADS", "value": "1"},
        ],
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": limits, "requests": dict(limits)},
        # Fast networks pin the memory that they read and write.
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "volumeMounts": [{"name": "work", "mountPath": "/work"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
