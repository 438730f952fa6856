"""Whether a network knows which words of a caption belong to which ball, with the first frame given.

    python bench/physics/binding.py bouncing_long datasets/bouncing_long/held_out

The true first frame shows every ball, so all that is left to find out is where each one moves. A network that cannot
tell the phrases of a caption apart follows one of n direction words, and is right in 1/n + (1 - 1/n)/4 of the cases.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from videodiff.data.loader.trained import usual
from videodiff.data.samples.manifest import Manifest
from videodiff.generation.sampling import going_on, sample_clips
from videodiff.generation.shape import shapes_of_run
from videodiff.metrics.worlds.captions import phrases
from videodiff.metrics.worlds.following import text_to_video
from videodiff.shipped.runs import take_run
from videodiff.verbs.config.build import build_generation, load_run
from videodiff.verbs.evaluate.held_out import Dataset

WORDS = ("direction_accuracy", "speed_accuracy", "size_accuracy")


def main() -> None:
    """Print the share of balls that follow their words, by the number of balls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or the name of weights that come with videodiff")
    parser.add_argument("dataset", help="a dataset of a world")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = str(take_run(args.run))
    run_cfg, model, _ = load_run(run, None, [])
    generation = build_generation(OmegaConf.create(), run_cfg)
    shape = usual(shapes_of_run(Path(run), run_cfg.data))
    read = (candidate.read() for candidate in Dataset(Manifest.load(args.dataset), shape))
    cases = list(islice(filter(None, read), args.clips))
    found = defaultdict(list)
    for start in range(0, len(cases), args.batch):
        some = cases[start : start + args.batch]
        wanted = [going_on(one.caption, one.fps, start + i, 1, one.frames) for i, one in enumerate(some)]
        for case, made in zip(some, sample_clips(model, generation, wanted, shape.shape), strict=True):
            grammar = case.scene.law.grammar
            clip = text_to_video(made, case.caption, case.fps, grammar)
            found[len(phrases(case.caption, grammar))].append(clip)
    for balls, clips in sorted(found.items()):
        shares = [f"{word.partition('_')[0]} {np.mean([clip[word] for clip in clips]):.3f}" for word in WORDS]
        chance = 1 / balls + (1 - 1 / balls) / 4
        told = f"any phrase would give direction {chance:.3f}"
        print(f"{balls} balls, {len(clips)} clips: {', '.join(shares)}; {told}", flush=True)


if __name__ == "__main__":
    main()
