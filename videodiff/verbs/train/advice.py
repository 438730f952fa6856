"""What a training says before it begins about settings that work but give less than expected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from videodiff.data.loader.datamodule import BatchModule
from videodiff.diffusion.levels import NoiseLevels
from videodiff.generation.sampling import latent_shape
from videodiff.verbs.config.build import Model


def below_limit(cfg: DictConfig, data: BatchModule, world: int) -> Iterator[str]:
    """Yield a line if the processes take fewer clips at once than data.micro_batch allows, as their share is odd."""
    limit, share = cfg.data.micro_batch, data.global_batch // data.mesh(world).data_world
    if limit is not None and (taken := data.at_once(world)) < min(limit, share):
        yield f"data.micro_batch: takes {taken} at once, not {limit}: the {share} clips of a process divide by no more"


def off_the_steps(cfg: DictConfig, model: Model) -> Iterator[str]:
    """Yield a line if an objective that trains the steps of a sampler trains those of another one than the run's."""
    if not model.objective.forwards:
        return
    tokens = math.prod(latent_shape(model.codec, cfg.data.frames, cfg.data.height, cfg.data.width)[1:])
    trained = model.objective.levels.shift(tokens)
    if not math.isclose(trained, cfg.sampler.shift, rel_tol=0.01):
        yield (
            f"sampler.shift: found {cfg.sampler.shift:g}, expected {trained:.3g}, at which objective.levels trains the "
            "steps: samples fall between them"
        )


def rarely_begun(cfg: DictConfig, model: Model, data: BatchModule) -> Iterator[str]:
    """Yield a line for clips no longer than the frames that lead, if they are trained at much lower levels.

    A shift that grows with the number of tokens gives a single frame few high levels. At high levels the network
    decides what is where.
    """
    lead, shift, levels = cfg.sampler.lead, cfg.sampler.shift, noise_levels(model)
    for shape in dict.fromkeys(one.shape for one in data.trained) if lead and levels else ():
        _, t, h, w = latent_shape(model.codec, *shape)
        found = levels.shift(t * h * w)
        if t <= lead and found < shift / 2:
            yield (
                f"objective.levels: found a shift of {found:.3g} for clips of {' x '.join(map(str, shape))}, expected "
                f"about {shift:g}, with which sampler.lead={lead} begins every clip; objective.levels.base_tokens=null "
                "gives all shapes the same shift"
            )


def never_warm(cfg: DictConfig) -> Iterator[str]:
    """Yield a line if a run ends before its learning rate has risen: a short trial then learns next to nothing."""
    warmup, steps = cfg.schedule.get("warmup"), cfg.trainer.max_steps
    if isinstance(warmup, int) and warmup > steps:
        yield (
            f"schedule.warmup: found {warmup} with trainer.max_steps={steps}: the learning rate reaches at most "
            f"{100 * steps // warmup} % of optimizer.lr"
        )


def noise_levels(model: Model) -> NoiseLevels | None:
    """Return the noise levels of the objective, None if a class of the user's draws them in its own way."""
    levels = getattr(model.objective, "levels", None)
    return levels if isinstance(levels, NoiseLevels) else None


def levels_apart(model: Model, data: BatchModule) -> dict[str, Sequence[int]]:
    """Return the latents that a policy gives levels of their own in the longest clips, by its key."""
    levels = noise_levels(model)
    if levels is None:
        return {}
    longest = model.codec.latent_frames(max(shape.frames for shape in data.trained))
    return {f"objective.levels.policies.{name}": at for name, at in levels.apart(longest).items()}
