"""The manifests that are made for a run are ones that the cluster takes, and say what the configuration says."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from torch.distributed.run import parse_args

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/material/jobset_schema.json").read_text())
TRAINER = json.loads((ROOT / "tests/material/trainjob_schema.json").read_text())
CLUSTER = ["image=registry.example.org/videodiff:0.1", "claim=shared"]
RUN = ["experiment=hdvila_256", "data.root=datasets/mine", "trainer.num_nodes=4", "trainer.devices=8", "name=My_Run"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("jobset", ROOT / "launch/kubernetes/jobset.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["jobset"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(script: ModuleType, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return a function that prints a manifest and reads it."""

    def run(*words: str) -> dict[str, Any]:
        script.main(words)
        return yaml.safe_load(capfd.readouterr().out)

    return run


def problems(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(manifest)]


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_manifest_is_as_the_cluster_wants_it(make: Callable[..., dict[str, Any]]) -> None:
    for more in ([], ["rdma=vpc.amazonaws.com/efa=4", "queue=night", "namespace=video"], ["gpu=none"]):
        assert problems(make(*CLUSTER, *more, *RUN)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "replicatedJobs", 0, "template", "spec", "completionMode"), 3),
        (("spec", "replicatedJobs", 0, "template", "spec", "parallelisms"), 3),
        (("spec", "failurePolicy", "restartStrategy"), "Sometimes"),
        (("spec", "failurePolicy", "maxRestarts"), "20"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "images"), "x"),
    ],
    ids=str,
)
def test_a_manifest_with_a_mistake_is_refused_by_the_schema(
    make: Callable[..., dict[str, Any]], place: tuple[Any, ...], value: Any
) -> None:
    manifest = copy.deepcopy(make(*CLUSTER, *RUN))
    node = manifest
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    assert len(problems(manifest)) == 1


def test_nodes_processes_and_words_are_those_of_the_configuration(make: Callable[..., dict[str, Any]]) -> None:
    manifest = make(*CLUSTER, "rdma=rdma/ib=2", "shm=8Gi", *RUN, "seed=7")
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    (container,) = pod(manifest)["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["resources"]["limits"]["rdma/ib"] == "2"
    assert {"--nnodes=4", "--nproc-per-node=8", "--node-rank=$(POD_INDEX)"} <= set(container["command"])
    assert container["args"] == ["-m", "videodiff", "train", "resume=auto", *RUN, "seed=7"]
    shm = next(volume for volume in pod(manifest)["volumes"] if volume["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/work", "/dev/shm"}
    # The first pod of the first job of the replicated job, within the subdomain.
    name = manifest["metadata"]["name"]
    assert f"--master-addr={name}-node-0-0.{name}" in container["command"]


def test_an_error_of_the_run_ends_it_and_a_lost_pod_begins_again(make: Callable[..., dict[str, Any]]) -> None:
    manifest = make(*CLUSTER, "restarts=5", *RUN)
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    # What the controller of jobs writes when a rule of podFailurePolicy matches.
    messages = {
        "Container node for pod n/a-node-0-1-x failed with exit code 1 matching FailJob rule at index 1": "FailJobSet",
        "Pod n/a-node-0-1-x has condition DisruptionTarget matching FailJob rule at index 0": (
            "RestartJobSetAndIgnoreMaxRestarts"
        ),
        "Job has reached the specified backoff limit": "RestartJobSet",
        "Container node for pod n/a failed with exit code 137 matching FailJob rule at index 1": "RestartJobSet",
    }
    for message, action in messages.items():
        first = next(
            rule
            for rule in policy["rules"]
            if not (patterns := rule.get("onJobFailureMessagePatterns"))
            or any(re.search(pattern, message) for pattern in patterns)
        )
        assert first["action"] == action, message


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("My_Run", "my-run"),
        ("lr_0.001", "lr-0-001"),
        ("7b", "run-7b"),
        ("x" * 90, "x" * 40),
        # The dash is the last of the forty characters.
        ("1" * 35 + "-x", "run-" + "1" * 35),
        ("a" * 39 + "_b", "a" * 39),
    ],
)
def test_a_name_becomes_one_that_kubernetes_takes(script: ModuleType, name: str, wanted: str) -> None:
    assert script.label(name) == wanted
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", script.label(name))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["claim=c", *RUN], "image: found nothing"),
        ([*CLUSTER, *RUN, "restarts=often"], "restarts: found 'often', expected a whole number"),
        ([*CLUSTER, *RUN, "optimizer.lrr=1"], "did you mean 'optimizer.lr'?"),
        ([*CLUSTER, *RUN, "trainer.num_nodes=two"], "trainer.num_nodes=two"),
        ([*CLUSTER, *RUN, "trainer.devices=auto"], "trainer.devices: found auto, expected how many GPUs a pod has"),
        ([*CLUSTER, *RUN, "name=___"], "name: found '___'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_submitted(
    script: ModuleType, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as leave:
        script.main(words)
    assert leave.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line


@pytest.fixture
def make_trainjob(script: ModuleType, capfd: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that prints a runtime and its TrainJob and reads them."""

    def run(*words: str) -> list[dict[str, Any]]:
        script.main([*CLUSTER, "kind=trainjob", *words, *RUN])
        return list(yaml.safe_load_all(capfd.readouterr().out))

    return run


def refused(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(TRAINER[manifest["kind"]]).iter_errors(manifest)]


def test_a_trainjob_and_its_runtime_are_as_kubeflow_trainer_wants_them(
    make_trainjob: Callable[..., list[dict[str, Any]]],
) -> None:
    for more in ([], ["rdma=vpc.amazonaws.com/efa=4", "queue=night", "namespace=video"], ["gpu=none"]):
        manifests = make_trainjob(*more)
        assert [manifest["kind"] for manifest in manifests] == ["TrainingRuntime", "TrainJob"]
        assert [refused(manifest) for manifest in manifests] == [[], []]
    manifests[0]["spec"]["mlPolicy"]["numNode"] = 4
    manifests[1]["spec"]["trainer"]["numProcPerNode"] = "8"
    assert [len(refused(manifest)) for manifest in manifests] == [1, 1]


def test_a_trainjob_says_what_a_jobset_says(
    make: Callable[..., dict[str, Any]],
    make_trainjob: Callable[..., list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, (runtime, wanted) = make(*CLUSTER, *RUN), make_trainjob()
    assert wanted["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert runtime["spec"]["template"]["spec"]["failurePolicy"] == plain["spec"]["failurePolicy"]
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # By these the controller finds the pods that train, and gives them the variables of torchrun.
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (node,), (other,) = pod({"spec": runtime["spec"]["template"]["spec"]})["containers"], pod(plain)["containers"]
    assert node["name"] == "node"
    assert {**node, "command": None} == {**other, "command": None}
    # As the controller sets them: torchrun is then told the same as in the JobSet.
    address, policy = f"{wanted['metadata']['name']}-node-0-0.{wanted['metadata']['name']}", wanted["spec"]["trainer"]
    variables = {"NNODES": policy["numNodes"], "NPROC_PER_NODE": policy["numProcPerNode"], "NODE_RANK": 3}
    for name, value in (variables | {"MASTER_ADDR": address, "MASTER_PORT": 29500}).items():
        monkeypatch.setenv(f"PET_{name}", str(value))
    settings = [
        vars(parse_args([word.replace("$(POD_INDEX)", "3") for word in one["command"][3:]] + one["args"]))
        for one in (node, other)
    ]
    assert settings[0] == settings[1]
