"""What a network from a file may answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from videodiff.metrics.networks.loading import to_features


@pytest.mark.parametrize("output", [torch.zeros(2, 0), torch.zeros(2), torch.zeros(3, 4)])
def test_an_answer_that_is_no_row_of_features_for_each_clip_is_named(output: Tensor) -> None:
    shape = str(tuple(output.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"net\.pt: found {shape} for 2 clips, expected features \(2, width\)"):
        to_features(output, 2, "net.pt")
