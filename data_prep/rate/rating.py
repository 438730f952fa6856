"""Rate: the models that the user gives score each clip once, if it meets all limits that need no model.

A few frames of each clip are read from the work folder. A score is stored under the id of the clip and the inputs of
the score: the weights and, for text-video similarity, the captions. Changed limits need no new rating.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import torch

from data_prep.books.work_folder import clip_file
from data_prep.choose.rules import refused
from data_prep.engine.local import Assignment, Node
from data_prep.engine.lock import join_run
from data_prep.preparation import Preparation
from data_prep.rate.model_score import Network, model_scores
from data_prep.rate.models import Models
from data_prep.rate.ratings import Unrated, source_captions
from data_prep.report.progress import Advance
from videodiff.data.processes.pool import Lost
from videodiff.data.video.decode import decode


def rate(preparation: Preparation) -> None:
    """Rate all clips that meet the limits without models and are not rated yet; without models do nothing."""
    ratings = preparation.ratings
    if ratings is None:
        return
    rules, how, rated = preparation.rules, preparation.settings.processes, ratings.models.names()
    limits = {name: sides for name, sides in rules.filter.items() if name not in rated}
    rules = replace(rules, filter=limits, require_caption=False)
    left = (clip for clip in preparation.clips if not refused(clip, rules))
    chunks, done = ratings.unrated((clip.id, clip.frames, source_captions(clip)) for clip in left), 0
    gpus = preparation.settings.rate.gpus
    function = partial(rate_clips, work=preparation.work, models=ratings.models, gpu=gpus > 0)
    folders = [preparation.work, *(path for _, path in ratings.models.paths)]
    assigned = Assignment(function, chunks, folders, how.workers, how.timeout, gpus)
    with closing(how.engine.run(assigned)) as batches:
        for number, answer in (answer for answers in batches for answer in answers):
            chunk = chunks[number]
            if isinstance(answer, Lost):
                raise ValueError(f"models: {answer.reason} at the clips from {chunk[0].id} on: {answer.detail}")
            ratings.add(chunk, answer)
            done += len(chunk)
            preparation.progress(Advance("rate", done, chunks.clips, "clips"))


def rate_clips(
    chunk: Sequence[Unrated], node: Node, work: Path, models: Models, gpu: bool
) -> list[dict[str, dict[str, Any]]]:
    """Return the scores of each clip by each wanted model; runs in a worker."""
    from data_prep.rate.network import looks

    join_run(node.scratch)
    cv2.setNumThreads(1)
    scorers, found = load(models, gpu), []
    for clip in chunk:
        video = clip_file(work, clip.id, "mp4").read_bytes()
        frames = decode(video, looks(clip.frames))
        found.append({kind: scorers[kind](frames, clip.captions) for kind in clip.wanted})
    return found


@cache
def load(models: Models, gpu: bool) -> dict[str, Network]:
    """Return the models, once a process: on one of the GPUs that it sees, or on one core."""
    torch.set_num_threads(1)
    number, scores = multiprocessing.current_process().name.rpartition("-")[2], model_scores()
    if gpu and not torch.cuda.is_available():
        raise ValueError("models.gpus: found no GPU, expected one, or models.gpus=0")
    device = f"cuda:{int(number) % torch.cuda.device_count()}" if gpu else "cpu"
    return {
        kind: scores[kind].load(paths[kind], device=device, **{k: path for k, path in paths.items() if k != kind})
        for kind, paths in models.kinds().items()
    }
