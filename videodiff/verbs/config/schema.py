"""The schema of the configuration: what every key of every verb and of every class in `conf/` may be.

The schema is checked before anything is built, and needs neither torch nor the classes that it describes. Limits that
involve several keys are checked by constructors. A test compares it with `conf/` and the signatures: no key without an
entry, and no entry without a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from videodiff.verbs.config.kinds import (
    ANYTHING,
    FLAG,
    HERE,
    MISSING,
    NAME,
    PLACE,
    TEXT,
    Fault,
    Kind,
    choice,
    either,
    even,
    instead,
    is_whole,
    kind,
    many,
    number,
    optional,
    record,
    table,
    unknown,
    whole,
)

COUNT, SHARE, SECONDS = whole(1), number(0, 1), number(above=0)
STEPS = whole(1, 100_000)
# Frames a second that a file can have: the limits of `data/video/encode.py`, which would import ffmpeg here.
RATE = number(least=0.001, most=500)
TRUST = many(NAME)


def part(none: bool = False, named: bool = False) -> Kind:
    """Return the kind of a mapping with `_target_`; `CLASSES` says which other keys the class takes.

    named: it is one of several under names of their own, which may be taken away.
    """

    def check(place: str, value: Any) -> Iterator[Fault]:
        if value is MISSING or (none and value is None):
            return
        if not isinstance(value, Mapping):
            expected = f"a class with its arguments; ~{place} leaves it out" if named else "an option of the group"
            yield Fault(place, value, expected)
            return
        if "_target_" not in value:
            yield Fault(f"{place}._target_", MISSING, "the class of this part, as the files of conf/ name it")
            return
        known = CLASSES.get(str(value["_target_"]))
        if known is None:
            return
        yield from (
            Fault(f"{place}.{key}", MISSING, known.keys[key].expected) for key in known.needed if key not in value
        )
        for name, item in value.items():
            where = f"{place}.{name}"
            if str(name).startswith("_") and str(name).endswith("_"):
                continue
            if name in known.keys:
                yield from known.keys[name].check(where, item)
            elif known.rest is None:
                yield unknown(where, str(name), item, known.keys)

    return Kind("an option of the group", check, optional=none)


PART = part()
PARTS = table(NAME, part(named=True))
NO_PARTS = optional(PARTS)

BUCKET = record(
    needed=("frames", "height", "width"),
    frames=COUNT,
    height=COUNT,
    width=COUNT,
    keep=number(above=0, most=1),
    strides=many(COUNT, 1),
    crop=number(least=0, below=1),
    global_batch=optional(COUNT),
)
POLICY = kind(
    "shared, prefix, ends, independent, lead, prefix_<k>, or lead_<k> from lead_1 on",
    lambda name: re.fullmatch(r"shared|ends|independent|prefix(_[0-9]+)?|lead(_0*[1-9][0-9]*)?", str(name)) is not None,
)
WEIGHT = number(0)


def shares(key: Kind, least: int = 0) -> Kind:
    """Return the kind of shares by name, which belong together: new ones replace all."""
    return table(key, WEIGHT, least, whole=True)


EVERY = whole(1)
SAMPLED = kind(f"{EVERY.expected}; ~callbacks.samples samples nothing", lambda value: is_whole(value) and value >= 1)
CAPTION_MIX = optional(
    record(
        weights=optional(shares(ANYTHING)),
        other=WEIGHT,
        lengths=optional(shares(whole(0))),
    )
)
CLIP_DATA = {
    "validation_root": optional(PLACE),
    "validation_clips": COUNT,
    "frames": COUNT,
    "height": COUNT,
    "width": COUNT,
    "stride": COUNT,
    "buckets": optional(many(BUCKET, 1)),
    "global_batch": COUNT,
    "micro_batch": optional(COUNT),
    "num_workers": whole(0),
    "seed": whole(0),
    "fixed": FLAG,
    "captions": CAPTION_MIX,
    "decoder": choice("pyav", "decord"),
    "timeout": SECONDS,
    "budget": whole(0),
    "quarantine": optional(PLACE),
}
TARS = either(PLACE, many(PLACE, 1))
DTYPE = choice("bfloat16", "float16", "float32")
PREDICTION = choice("x", "v", "eps")
OBJECTIVE = {
    "path": PART,
    "levels": PART,
    "prediction": PREDICTION,
    "loss": PREDICTION,
    "floor": number(above=0, below=1),
    "caption_dropout": SHARE,
}
SPLIT = choice("train", "in_distribution", "out_of_distribution")
PHYWORLD = record(frames=COUNT, fps=RATE, split=SPLIT, grid=choice("30k", "300k", "3m"))
OPTIMIZER = {
    "params": instead("the parameters are those of the model"),
    "lr": number(above=0),
    "betas": many(number(least=0, below=1), 2, 2),
    "eps": number(above=0),
    "weight_decay": number(0),
    "ema_decay": number(least=0, below=1),
    "fused": optional(FLAG),
}
PRECISIONS = (
    *("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "16", "bf16", "64"),
    *("transformer-engine", "transformer-engine-float16"),
)
PRECISION = kind(f"one of {', '.join(PRECISIONS)}", lambda value: str(value) in PRECISIONS)
DEVICES = either(
    kind("a number of processes, -1 for all GPUs", lambda value: is_whole(value) and (value > 0 or value == -1)),
    choice("auto"),
    many(whole(0), 1),
)
BY_VERB = "it follows from the configuration"

CLASSES: dict[str, Kind] = {
    "hydra.utils.get_method": record(path=NAME),
    "videodiff.denoiser.transformer.SpaceTimeTransformer": record(
        channels=instead("codec= decides it"),
        text_width=instead("text= decides it"),
        patch=many(COUNT, 3, 3),
        # A configuration from elsewhere must not build a network that fits in no memory.
        width=whole(1, 65_536),
        depth=whole(1, 1024),
        heads=whole(1, 1024),
        axes=many(choice("space", "time", "spacetime"), 1),
        mlp_ratio=number(above=0),
        gate=number(),
        step_rank=whole(0, 65_536),
        captioned=many(FLAG, 1),
        padding=choice("masked", "learned"),
    ),
    "videodiff.diffusion.path.RectifiedFlow": record(),
    "videodiff.diffusion.path.Cosine": record(),
    "videodiff.diffusion.objective.Objective": record(**OBJECTIVE),
    "videodiff.diffusion.flow_map.FlowMap": record(
        **OBJECTIVE,
        steps=many(COUNT),
        pieces=COUNT,
        own=SHARE,
        width=number(above=0),
        near=number(0),
        whole=number(0),
        spread=number(0),
        history=number(),
        scale=number(),
        lead=whole(0),
    ),
    "videodiff.diffusion.distillation.ProgressiveDistillation": record(
        **OBJECTIVE,
        steps=COUNT,
        teacher=optional(PLACE),
    ),
    "videodiff.diffusion.levels.NoiseLevels": record(
        policies=optional(shares(POLICY, 1)),
        distribution=choice("logit_normal", "uniform"),
        mean=number(),
        std=number(above=0),
        base_shift=number(above=0),
        base_tokens=optional(COUNT),
        pure=SHARE,
    ),
    "videodiff.generation.settings.Generation": record(
        sampler=PART,
        steps=STEPS,
        shift=number(above=0),
        scale=number(),
        interval=many(SHARE, 2, 2),
        lead=whole(0),
        apart=FLAG,
        rescale=SHARE,
        history=number(),
        history_level=number(above=0, most=1),
        reconstruction=number(0),
        guide=choice("caption", "history"),
        noise=number(above=0),
    ),
    "videodiff.codec.pixels.Pixels": record(channels=COUNT),
    "videodiff.codec.autoencoder.Autoencoder": record(
        path_or_name=PLACE,
        subfolder=optional(PLACE),
        dtype=DTYPE,
        mean=optional(many(number(), 1)),
        std=optional(many(number(above=0), 1)),
        tile=optional(COUNT),
        tile_overlap=number(above=0, below=1),
        slice_frames=optional(COUNT),
        revision=NAME,
    ),
    "videodiff.text.words.Words": record(
        vocabulary=optional(either(PLACE, many(NAME, 1))),
        width=COUNT,
        max_words=optional(COUNT),
        long=choice("refuse", "cut"),
        unknown=choice("refuse", "drop"),
        near=whole(0),
    ),
    "videodiff.text.transformers.Transformers": record(
        path_or_name=PLACE,
        kind=optional(choice("t5", "umt5", "clip", "clip_text_model")),
        max_length=COUNT,
        dtype=DTYPE,
        layer=whole(most=-1),
        subfolder=optional(PLACE),
        tokenizer_subfolder=optional(PLACE),
        revision=NAME,
    ),
    "videodiff.data.loader.datamodule.clip_data": record(
        **CLIP_DATA,
        root=PLACE,
        cache_gib=number(0),
        deliver=many(choice("video", "latent", "text"), 1),
        skip_short=FLAG,
        more=many(record(needed=("root",), root=PLACE, repeat=number(above=0))),
        weights=optional(many(WEIGHT, 1)),
        window=optional(COUNT),
        stages=optional(
            many(
                record(until=optional(COUNT), buckets=optional(many(BUCKET, 1)), weights=optional(many(WEIGHT, 1))),
                1,
            )
        ),
        batch=optional(record(needed=("micro_batches", "tokens"), micro_batches=COUNT, tokens=COUNT)),
        disk_cache=optional(PLACE),
        disk_cache_gib=number(above=0),
        cost=instead("model=, codec= and text= decide it"),
    ),
    "videodiff.data.tars.datamodule.tar_data": record(
        **CLIP_DATA,
        urls=TARS,
        validation_urls=optional(TARS),
        shuffle=whole(0),
        resampled=FLAG,
        readers=COUNT,
        wait=SECONDS,
        pipes=FLAG,
    ),
    "videodiff.training.optimizer.AdamW": record(**OPTIMIZER),
    "videodiff.training.optimizer.Muon": record(**OPTIMIZER, momentum=number(least=0, below=1)),
    "videodiff.training.schedule.constant": record(
        step=instead(BY_VERB), total=instead("trainer.max_steps"), warmup=whole(0)
    ),
    "videodiff.training.schedule.warmup_stable_decay": record(
        step=instead(BY_VERB),
        total=instead("trainer.max_steps"),
        warmup=whole(0),
        decay=SHARE,
        floor=SHARE,
    ),
    "videodiff.parallel.strategy.automatic": record(sequence_parallel=COUNT),
    "videodiff.parallel.strategy.single": record(),
    "videodiff.parallel.strategy.fsdp2": record(
        sequence_parallel=COUNT,
        reshard_after_forward=FLAG,
        gather=choice("float32", "bfloat16"),
        reduce=choice("float32", "bfloat16"),
    ),
    "videodiff.parallel.strategy.ddp": record(rest=ANYTHING, sequence_parallel=COUNT),
    "videodiff.parallel.strategy.zero": record(
        rest=ANYTHING,
        stage=whole(1, 3),
        sequence_parallel=COUNT,
        offload=optional(choice("state", "all")),
        nvme=optional(PLACE),
        pin_memory=FLAG,
    ),
    "videodiff.parallel.recompute.recompute_blocks": record(
        denoiser=instead("it is that of model="),
        level=choice("none", "selective", "full"),
        every=COUNT,
        offload=FLAG,
    ),
    "videodiff.parallel.compile.compile_blocks": record(
        denoiser=instead("it is that of model="),
        backend=NAME,
        mode=optional(NAME),
        dynamic=optional(FLAG),
        graphs=COUNT,
    ),
    "videodiff.parallel.fp8.multiply_in_fp8": record(
        denoiser=instead("it is that of model="),
        recipe=choice("none", "rowwise", "tensorwise"),
        least_width=COUNT,
        keep=many(NAME),
        emulate=FLAG,
    ),
    "videodiff.training.callbacks.checkpoints.Checkpoints": record(
        folder=PLACE,
        every=EVERY,
        keep=whole(0),
        keep_every=optional(EVERY),
        best=optional(NAME),
        minutes=optional(number(above=0)),
        asynchronous=FLAG,
        mirror=optional(PLACE),
    ),
    "videodiff.training.callbacks.samples.SampleClips": record(
        folder=PLACE, generation=PART, every=SAMPLED, clips=COUNT, given=optional(whole(0)), prompts=many(TEXT)
    ),
    "videodiff.training.callbacks.guard.Guard": record(
        budget=whole(0), within=COUNT, spike=optional(number(above=1)), history=COUNT, rollbacks=whole(0)
    ),
    "videodiff.training.callbacks.garbage.CollectGarbage": record(every=COUNT),
    "videodiff.training.callbacks.goodput.Goodput": record(every=COUNT),
    "videodiff.training.callbacks.stop.StopGently": record(),
    "videodiff.parallel.watchdog.Watchdog": record(folder=PLACE, lost=SECONDS, still=SECONDS),
    "videodiff.training.callbacks.progress.Progress": record(work=instead(BY_VERB), every=EVERY),
    "lightning.pytorch.loggers.CSVLogger": record(
        save_dir=PLACE,
        name=optional(TEXT),
        version=optional(either(whole(0), TEXT)),
        prefix=TEXT,
        flush_logs_every_n_steps=EVERY,
    ),
    "videodiff.training.run.logging.Board": record(rest=ANYTHING, save_dir=PLACE, name=optional(TEXT)),
    "videodiff.training.run.logging.wandb_logger": record(
        rest=ANYTHING,
        project=optional(NAME),
        name=NAME,
        save_dir=PLACE,
        id=optional(NAME),
        mode=optional(NAME),
    ),
    "lightning.Trainer": record(
        accelerator=choice("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
        devices=DEVICES,
        num_nodes=COUNT,
        precision=PRECISION,
        max_steps=whole(1),
        min_steps=optional(COUNT),
        max_time=optional(either(TEXT, table(NAME, whole(0)))),
        gradient_clip_val=optional(number(0)),
        gradient_clip_algorithm=optional(choice("norm", "value")),
        val_check_interval=whole(1),
        limit_val_batches=number(0),
        num_sanity_val_steps=whole(-1),
        log_every_n_steps=EVERY,
        deterministic=either(FLAG, choice("warn")),
        benchmark=optional(FLAG),
        detect_anomaly=FLAG,
        inference_mode=FLAG,
        profiler=optional(choice("simple", "advanced", "pytorch", "xla")),
        enable_progress_bar=FLAG,
        plugins=ANYTHING,
        accumulate_grad_batches=instead("data.global_batch is a step, data.micro_batch what a process takes at once"),
        max_epochs=instead("trainer.max_steps"),
        min_epochs=instead("trainer.min_steps"),
        limit_train_batches=instead("trainer.max_steps"),
        overfit_batches=instead("data.fixed=true with a small dataset"),
        fast_dev_run=instead("trainer.max_steps=1"),
        check_val_every_n_epoch=instead("trainer.val_check_interval, in steps"),
        strategy=instead("strategy="),
        logger=instead("logger="),
        callbacks=instead("+callbacks.<name>._target_=<class>"),
        enable_checkpointing=instead("callbacks.checkpoints.every and .keep"),
        enable_model_summary=instead("videodiff inspect <run>"),
        default_root_dir=instead("run="),
        use_distributed_sampler=instead("the order of data is fixed by data.seed"),
        limit_test_batches=instead("videodiff evaluate"),
        limit_predict_batches=instead("videodiff sample"),
        reload_dataloaders_every_n_epochs=instead("the stream of data has no end"),
        sync_batchnorm=instead("the model has no batch norm"),
        barebones=instead("callbacks.progress.every"),
        enable_autolog_hparams=instead("the configuration is in the run's config.yaml"),
        model_registry=instead("the checkpoints lie in the run folder"),
    ),
    "videodiff.worlds.bouncing.Bouncing": record(
        frames=COUNT,
        fps=RATE,
        balls=optional(shares(whole(1), 1)),
        held_out=many(many(NAME, 2, 2)),
        split=choice("train", "held_out", "all"),
        free_frames=whole(0),
        jitter_degrees=number(0),
    ),
    "videodiff.worlds.uniform.Uniform": PHYWORLD,
    "videodiff.worlds.collision.Collision": PHYWORLD,
    "videodiff.worlds.parabola.Parabola": PHYWORLD,
    "videodiff.planning.forecast.hardware.Cluster": record(
        needed=(
            *("card", "nodes", "cards", "memory_gib", "tflops", "products"),
            *("memory_gb_per_s", "node_gb_per_s", "network_gb_per_s"),
        ),
        card=NAME,
        nodes=COUNT,
        cards=COUNT,
        cpu=FLAG,
        tflops=record(needed=("half", "full"), half=number(above=0), full=number(above=0)),
        products=table(whole(1), number(above=0, most=1), 1),
        kinds=table(NAME, table(whole(1), number(above=0), 1)),
        engine_ms=table(NAME, number(0), 0),
        engine_gb_per_s=table(NAME, number(above=0), 0),
        cores=COUNT,
        traffic=number(above=0, most=1),
        fusion=number(above=0, most=1),
        slack=number(least=0, below=1),
        **dict.fromkeys(
            ("memory_gib", "memory_gb_per_s", "node_gb_per_s", "network_gb_per_s", "host_gb_per_s", "host_gib"),
            number(above=0),
        ),
        **dict.fromkeys(("decode_mpixel_per_s", "storage_gb_per_s"), number(above=0)),
        **dict.fromkeys(
            ("latency_us", "launch_us", "dispatch_us", "trainer_ms", "context_gib", "stall_s", "restart_minutes"),
            number(0),
        ),
        **dict.fromkeys(("price", "faults"), number(0)),
    ),
    "data_prep.engine.local.Local": record(),
    "data_prep.engine.on_ray.OnRay": record(address=optional(NAME), scratch=optional(PLACE)),
}

TRAINING = {
    "model": PART,
    "path": PART,
    "objective": PART,
    "sampler": PART,
    "codec": PART,
    "text": PART,
    "data": PART,
    "optimizer": PART,
    "schedule": PART,
    "strategy": PART,
    "trainer": PART,
    "callbacks": NO_PARTS,
    "logger": NO_PARTS,
    "name": NAME,
    "run": HERE,
    "seed": whole(0, 2**63 - 1),
    "targets": optional(table(NAME, number(), whole=True)),
    "trust": TRUST,
}
# The rest of what one types behind `train`, and so behind `plan` and `inspect`.
LAUNCH = {
    "start_from": optional(PLACE),
    "fresh": many(NAME),
    "freeze": many(NAME),
    "recompute": PART,
    "compile": part(none=True),
    "fp8": PART,
}
SAMPLING = {
    "sampler": part(none=True),
    "run": HERE,
    "checkpoint": optional(PLACE),
    "seed": whole(0, 2**63 - 1),
    "steps": optional(STEPS),
    "scale": optional(number()),
    "shift": optional(number(above=0)),
    "guide": optional(choice("caption", "history")),
    "noise": optional(number(above=0)),
    "trust": TRUST,
}
LIMITS = record(min=optional(number()), max=optional(number()))

VERBS: dict[str, Kind] = {
    "train": record(
        needed=tuple(name for name in TRAINING if name != "logger"),
        **TRAINING,
        **LAUNCH,
        resume=optional(PLACE),
        checkpoint=optional(PLACE),
    ),
    "plan": record(
        **TRAINING,
        **LAUNCH,
        resume=optional(PLACE),
        checkpoint=optional(PLACE),
        cluster=PART,
        clips=optional(number(above=0)),
        tokens=optional(number(above=0)),
        clip_mb=optional(number(above=0)),
        calibrate=optional(PLACE),
        json=optional(HERE),
    ),
    "inspect": record(
        **TRAINING,
        **LAUNCH,
        folder=optional(PLACE),
        world_size=COUNT,
        captions=whole(0),
        strips=optional(HERE),
        batches=COUNT,
        clips=COUNT,
        throughput=FLAG,
        verify=FLAG,
        seconds=SECONDS,
    ),
    "sample": record(
        **SAMPLING,
        prompts=either(TEXT, many(TEXT)),
        dimensions=many(NAME),
        samples=COUNT,
        given=optional(either(PLACE, many(PLACE, 1))),
        start=number(),
        known=optional(many(whole(), 1)),
        strength=optional(number(above=0, most=1)),
        mask=optional(PLACE),
        seconds=optional(number(above=0, most=86_400)),
        rollout=optional(choice("continue", "rolling", "keys")),
        rollout_caption=choice("guide", "tell", "drop"),
        captions=optional(table(number(above=0), TEXT, 1)),
        window=optional(whole(2)),
        overlap=optional(COUNT),
        history_noise=number(least=0, below=1),
        drift=FLAG,
        batch=COUNT,
        lossless=FLAG,
        interval=optional(many(SHARE, 2, 2)),
        rescale=optional(SHARE),
        history=optional(number()),
        history_level=optional(number(above=0, most=1)),
        reconstruction=optional(number(0)),
        frames=optional(COUNT),
        height=optional(COUNT),
        width=optional(COUNT),
        fps=optional(RATE),
        out=optional(HERE),
    ),
    "evaluate": record(
        **SAMPLING,
        metric=NO_PARTS,
        dataset=optional(PLACE),
        clips=COUNT,
        tasks=many(choice("continuation", "text_to_video"), 1),
        given=optional(COUNT),
        batch=COUNT,
        keep=whole(0),
        leaderboard=optional(HERE),
    ),
    "arrange": record(
        source=PLACE,
        suite=choice("vbench", "vbench2", "phygenbench", "physics_iq", "fvd"),
        out=HERE,
        info=optional(PLACE),
        dimensions=many(NAME),
        complete=FLAG,
    ),
    "report": record(run=HERE, hero=optional(HERE)),
    "convert": record(
        checkpoint=PLACE,
        what=choice("average", "weights", "state", "run"),
        out=optional(HERE),
        dtype=optional(DTYPE),
        files=whole(1, 100_000),
    ),
    "doctor": record(
        folder=PLACE,
        device=choice("auto", "cpu", "cuda"),
        seconds=SECONDS,
        gib=number(0),
        mib=COUNT,
        gb_per_s=number(0),
    ),
    "simulate": record(
        world=PART, out=HERE, clips=COUNT, first_seed=whole(0), size=even(2), crf=whole(0, 51), workers=optional(COUNT)
    ),
    "pack": record(
        source=PLACE,
        out=HERE,
        captions=optional(PLACE),
        require_caption=FLAG,
        hdr=choice("tonemap", "reject"),
        deinterlace=choice("auto", "off", "on"),
        video_column=optional(NAME),
        caption_column=optional(NAME),
        short_side=whole(2),
        crf=whole(0, 51),
        workers=optional(COUNT),
        timeout=SECONDS,
        shard_bytes=COUNT,
    ),
    "index": record(tars=TARS, out=optional(HERE), workers=optional(COUNT)),
    "cache": record(
        codec=part(none=True),
        text=part(none=True),
        root=PLACE,
        out=HERE,
        sizes=many(many(COUNT, 2, 2), 1),
        stride=COUNT,
        frames=optional(COUNT),
        video=optional(FLAG),
        workers=optional(COUNT),
        decoders=optional(whole(0)),
        timeout=SECONDS,
    ),
    "prep": record(
        engine=PART,
        prep=record(
            filter=optional(table(NAME, LIMITS)),
            duplicates=record(near=optional(whole(0, 256))),
            models=optional(
                record(
                    # Each file of data_prep/rate/kinds has its own key.
                    rest=optional(PLACE),
                    clip=optional(PLACE),
                    aesthetic=optional(PLACE),
                    nsfw=optional(PLACE),
                    gpus=number(0),
                )
            ),
        ),
        out=HERE,
        source=optional(PLACE),
        format=PART,
        root=optional(PLACE),
        # The reader of a format checks its own options.
        reader=record(
            rest=ANYTHING, licence=TEXT, columns=optional(table(NAME, TEXT)), unit=TEXT, captions=optional(PLACE)
        ),
        acquire=record(
            rate=number(above=0),
            attempts=COUNT,
            timeout=SECONDS,
            deadline=SECONDS,
            height=COUNT,
            cookies=optional(PLACE),
            proxies=many(NAME),
            private=either(FLAG, many(NAME)),
            local=optional(PLACE),
            pause=SECONDS,
            longest=SECONDS,
            max_bytes=COUNT,
            storage=optional(ANYTHING),
        ),
        cut=record(
            by=choice("spans", "scenes"),
            detector=choice("adaptive", "content"),
            threshold=optional(number(above=0)),
            min_scene=number(0),
            minimum=number(0),
            maximum=SECONDS,
        ),
        encode=record(
            short_side=whole(2),
            fps=optional(RATE),
            crf=whole(0, 51),
            preset=NAME,
            codec=NAME,
            deinterlace=choice("off", "auto", "on"),
        ),
        audio=choice("drop", "keep"),
        caption=record(
            by=choice("none", "endpoint", "model"),
            model=optional(PLACE),
            origin=optional(NAME),
            prompt=TEXT,
            frames=COUNT,
            side=COUNT,
            max_tokens=COUNT,
            max_words=COUNT,
            missing=FLAG,
            give_up=COUNT,
            url=NAME,
            key=optional(NAME),
            concurrency=COUNT,
            timeout=SECONDS,
            attempts=COUNT,
            pause=number(0),
            body=optional(table(NAME, ANYTHING)),
            batch=COUNT,
            revision=NAME,
            use=optional(many(NAME)),
            camera=FLAG,
            words=optional(many(ANYTHING)),
        ),
        crop=FLAG,
        score=FLAG,
        scores=many(NAME),
        licences=optional(many(TEXT)),
        require_caption=FLAG,
        takedown=optional(PLACE),
        retry=optional(choice("failed", "all")),
        shard_bytes=COUNT,
        buckets=optional(many(BUCKET, 1)),
        workers=optional(COUNT),
        timeout=SECONDS,
    ),
}


def faults(verb: str, tree: Mapping[str, Any]) -> list[Fault]:
    """Return the faults of a composed configuration."""
    return list(VERBS[verb].check("", tree))
