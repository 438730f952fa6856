"""The processes of a call: a dead one is named as such, and any other failure stays what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videodiff.generation.sharing import sharing
from videodiff.parallel.ranks import LostRank

GLOO = "[../third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:28531"


@pytest.mark.parametrize(
    ("world", "message", "kind"),
    [(2, GLOO, LostRank), (2, "mat1 and mat2 cannot be multiplied", RuntimeError), (1, GLOO, RuntimeError)],
)
def test_only_a_message_of_a_dead_process_is_one(
    world: int, message: str, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *args, **kwargs: None)
    with pytest.raises((RuntimeError, LostRank)) as failed, sharing(tmp_path, "sample"):
        raise RuntimeError(message)
    assert type(failed.value) is kind
