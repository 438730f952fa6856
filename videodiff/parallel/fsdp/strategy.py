"""Lightning's strategy of FSDP2, whose processes end together."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecisionPolicy

from videodiff.parallel.fsdp.engine import FsdpEngine
from videodiff.parallel.launcher import watched
from videodiff.parallel.sequence.group import SequenceGroup
from videodiff.parallel.sequence.strategy import SharesClips

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Fsdp(SharesClips, ModelParallelStrategy):
    """Fully sharded data parallelism over all processes; the engine splits the network in `configure_model`."""

    def __init__(
        self,
        reshard_after_forward: bool = True,
        gather: str = "float32",
        reduce: str = "float32",
        sequence_parallel: int = 1,
    ) -> None:
        super().__init__(tensor_parallel_size=1)
        self.sequence = SequenceGroup(sequence_parallel)
        policy = MixedPrecisionPolicy(param_dtype=TYPES[gather], reduce_dtype=TYPES[reduce], cast_forward_inputs=False)
        self.engine = FsdpEngine(self, reshard_after_forward=reshard_after_forward, mp_policy=policy)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        self._launcher = watched(self._launcher)

    def setup_environment(self) -> None:
        """Set up devices and processes; Lightning would take each node for one process of data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def teardown(self) -> None:
        """Leave the process group: gloo may wait for ever if it is left to the end of the process."""
        super().teardown()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
