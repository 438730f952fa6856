"""What a configuration of FSDP2 asks of torch."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from videodiff.parallel.strategy import fsdp2


def test_weights_are_gathered_and_gradients_summed_each_in_its_type() -> None:
    how = fsdp2(reshard_after_forward=False, gather="bfloat16", reduce="float32").engine.how
    assert how["mp_policy"] == MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    assert how["reshard_after_forward"] is False
    how = fsdp2().engine.how
    assert how["mp_policy"] == MixedPrecisionPolicy(torch.float32, torch.float32, cast_forward_inputs=False)
    assert how["reshard_after_forward"] is True
