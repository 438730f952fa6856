"""What a name means that is no key: the names of other code bases, and the known names that a mistyped one is like."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

# Our keys, and what they are called in diffusers, Open-Sora, CogVideo, Wan and scripts like theirs. Between bars are
# alternatives for verbs that have other keys; the first of which a verb has all keys is meant.
THERE = {
    "source | data.root | data.urls": """data_root instance_data_root dataset_name dataset_path data_path data_dir
        train_data_dir train_data dataset dataset_base_path dataset_metadata_path metadata_path meta_path csv_path
        video_folder video_dir video_root root_dir input_dir data.path data.dir data.folder data.source data.dataset
        data.name data.file data.type""",
    "data.validation_root | dataset": """validation_data val_data eval_data val_dataset validation_dataset
        validation_dir val_dir validation_images validation_videos do_validation""",
    "data.frames | world.frames": """num_frames max_num_frames n_frames frame_num num_frame video_length sample_n_frames
        sample_frames frames_per_clip clip_length clip_len sequence_length video_frames""",
    "seconds | data.frames": "duration video_duration clip_duration length length_seconds loop",
    "data.frames data.height data.width": "train_resolution video_shape",
    "data.height data.width | size | sizes | short_side | encode.short_side": """resolution size image_size input_size
        sample_size video_size video_resolution image_resolution aspect_ratio multi_resolution""",
    "data.stride": """frame_interval sample_stride video_sample_stride frame_stride frame_skip sampling_rate sample_rate
        temporal_stride""",
    "fps | encode.fps | world.fps": """gen_fps frame_rate framerate save_fps fps_save target_fps output_fps export_fps
        frames_per_second""",
    "data.micro_batch | batch": """train_batch_size per_device_batch_size per_device_train_batch_size
        train_micro_batch_size_per_gpu micro_batch_size batch_size_per_gpu local_batch_size gradient_accumulation_steps
        accumulate_grad_batches accumulation_steps grad_accum grad_accumulation_steps accum_iter""",
    "data.global_batch | batch": "batch_size global_batch_size train_batch total_batch_size bs",
    "data.num_workers | workers": "dataloader_num_workers num_bucket_build_workers num_data_workers n_workers num_proc",
    "data.buckets | buckets": "bucket_config bucket video_resolution_buckets aspect_ratio_buckets",
    "trainer.max_steps": """max_train_steps train_steps total_steps training_steps num_train_steps num_training_steps
        max_iters max_iterations iterations num_iterations train_iters steps num_steps epochs num_epochs
        num_train_epochs train_epochs max_epochs n_epochs""",
    "callbacks.checkpoints.every": """checkpointing_steps checkpointing_interval ckpt_every save_every save_steps
        save_interval save_freq save_every_n_steps checkpoint_every ckpt_interval every_n_train_steps""",
    "callbacks.checkpoints.keep": """checkpoints_total_limit checkpointing_limit save_total_limit keep_n_latest
        keep_last save_top_k""",
    "callbacks.checkpoints.asynchronous": "async_io async_save",
    "callbacks.samples.every": "validation_steps validation_epochs sample_every sample_interval visualize_every",
    "callbacks.samples.clips": "num_validation_videos num_validation_images",
    "prompts | callbacks.samples.prompts": """prompt prompt_path prompt_file text caption txt_file input_prompt
        validation_prompt validation_prompts validation_prompt_separator sample_prompts""",
    "trainer.val_check_interval": "eval_every eval_steps eval_interval val_every val_interval validate_every",
    "trainer.log_every_n_steps": "log_every log_interval logging_steps log_steps log_freq print_every",
    "callbacks.watchdog.still": "nccl_timeout",
    "resume": """resume_from_checkpoint resume_from resume_path resume_checkpoint resume_ckpt auto_resume
        continue_training continue_from""",
    "start_from | run checkpoint | checkpoint": """pretrained_model_name_or_path pretrained pretrained_path
        from_pretrained load load_from init_from init_checkpoint finetune_from weights model_path model_name model_id
        model ckpt ckpt_path ckpt_dir checkpoint_path checkpoint_dir model_dir transformer_path dit_path
        model_name_or_path""",
    "out | run name": """output_dir output outputs output_path out_dir outdir out_path save_dir save_path save_file
        save_folder logging_dir log_dir work_dir workdir results_dir exp_dir output_folder""",
    "name": "exp_name experiment_name run_name project_name job_name",
    "seed": "base_seed global_seed manual_seed sample_seed random_seed set_seed seed_everything generator",
    "optimizer": "optim optimizer_type optimizer_name use_8bit_adam",
    "optimizer.lr": "learning_rate base_lr max_lr scale_lr",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "adam_epsilon adam_eps epsilon",
    "optimizer.weight_decay": "adam_weight_decay wd",
    "optimizer.ema_decay": "use_ema ema ema_rate",
    "schedule": "lr_scheduler lr_scheduler_type lr_schedule lr_num_cycles lr_power",
    "schedule.warmup": "lr_warmup_steps warmup_steps num_warmup_steps lr_warmup",
    "trainer.gradient_clip_val": "max_grad_norm grad_clip clip_grad gradient_clipping grad_clip_norm clip_grad_norm",
    "trainer.precision": "mixed_precision dtype weight_dtype torch_dtype bf16 fp16 amp allow_tf32",
    "trainer.devices": "gpus num_gpus n_gpus nproc_per_node num_processes world_size num_devices n_devices",
    "trainer.num_nodes": "nnodes num_machines n_nodes nodes",
    "recompute": """gradient_checkpointing grad_checkpoint grad_checkpointing activation_checkpointing use_checkpoint
        checkpoint_activations grad_ckpt_settings gradient_checkpoint""",
    "strategy": "plugin zero_stage fsdp use_fsdp dit_fsdp sharding_strategy",
    "strategy.sequence_parallel": """sp_size sequence_parallel_size ulysses_size ulysses_degree ring_size ring_degree
        cp_size context_parallel_size""",
    "logger": """report_to tracker_name log_with tracker wandb use_wandb tensorboard wandb_project wandb_entity
        with_tracking""",
    "objective.caption_dropout": """dropout cfg_dropout p_uncond class_dropout_prob caption_dropout_prob uncond_prob
        text_dropout drop_text_prob cond_drop_prob y_dropout""",
    "objective.prediction": "prediction_type pred_type parameterization",
    "objective.loss": "loss_type",
    "objective.levels.policies": "mask_ratios condition_config",
    "objective.levels.distribution": "sample_method timestep_sampling weighting_scheme",
    "objective.levels.mean": "logit_mean",
    "objective.levels.std": "logit_std",
    "objective.levels.base_shift": "use_timestep_transform discrete_flow_shift",
    "model.width": "hidden_size hidden_dim d_model embed_dim dim",
    "model.depth": "num_layers n_layers num_blocks",
    "model.heads": "num_heads n_heads num_attention_heads",
    "model.patch": "patch_size",
    "codec": "vae vae_path vae_model ae autoencoder vae_type",
    "codec.tile | codec": "enable_tiling tiling use_tiling vae_tiling use_spatial_tiling",
    "codec.slice_frames | codec": "enable_slicing vae_slicing micro_frame_size",
    "text": "text_encoder tokenizer t5 text_encoder_path text_encoder_name",
    "text.max_length | text.max_words": "model_max_length max_sequence_length text_len max_text_length",
    "compile": "torch_compile use_compile",
    "sampler": "sample_solver solver sampling_method scheduler sampler_name noise_scheduler eta",
    "sampler.steps": """num_inference_steps num_sampling_steps sample_steps sampling_steps inference_steps infer_steps
        ddim_steps denoising_steps num_steps n_steps""",
    "sampler.scale": """guidance_scale cfg_scale cfg guidance guide_scale sample_guide_scale guidance_strength
        text_guidance_scale unconditional_guidance_scale""",
    "sampler.interval": "use_dynamic_cfg guidance_interval text_osci",
    "sampler.history": "guidance_img image_guidance_scale image_cfg_scale",
    "sampler.rescale": "guidance_rescale cfg_rescale",
    "sampler.shift": "flow_shift sample_shift time_shift timestep_shift",
    "samples | clips": """num_videos_per_prompt num_images_per_prompt num_sample num_samples n_samples num_videos
        num_outputs num_clips n_clips clips""",
    "given": """image image_path image_or_video_path input_image init_image first_frame first_image start_image
        condition_image cond_image ref reference_path ref_path reference_image src_video src_ref_images video video_path
        input_video init_video""",
    "given known": "last_frame last_image end_image end_frame",
    "known": "condition_frame_length cond_frames condition_frames num_cond_frames mask_strategy",
    "mask": "src_mask mask_path mask_image",
    "strength": "denoise denoising_strength",
    "history_noise": "noise_aug_strength image_noise",
}
# Names of other code bases that no key here has, and what is so instead.
READ = {
    """rank lora lora_rank lora_alpha lora_path lora_scale lora_dropout use_lora target_modules training_type peft
    network_dim network_alpha""": (
        "there are no low-rank adapters yet (docs/architecture.md says where they would go); start_from= and freeze= "
        "train a part of the weights (README, Resume)"
    ),
    "negative_prompt neg_prompt n_prompt sample_neg_prompt": (
        "guidance is away from the empty caption, and scale= is its strength (docs/sampling.md)"
    ),
    "task generate_type cond_type mode model_type task_type": (
        "there is no mode: given= and known= say what is given of a clip (docs/sampling.md)"
    ),
    """use_prompt_extend prompt_extend_method prompt_extend_model prompt_extend_target_lang prompt_extend llm_refine
    refine_prompt aes flow motion_score align""": "the text encoder gets a prompt as it is typed (docs/sampling.md)",
    "id_token trigger_word": "captions are taken as they lie beside the clips (docs/data.md)",
    "video_column caption_column image_column": (
        "`videodiff pack` has video_column= and caption_column= (docs/data.md)"
    ),
    """offload_model cpu_offload offload enable_model_cpu_offload enable_sequential_cpu_offload t5_cpu t5_fsdp
    low_vram""": (
        "strategy=zero3_offload keeps the state of a training on the host (docs/cluster.md); sampling holds the whole "
        "network on its device"
    ),
    "push_to_hub hub_token hub_model_id": (
        "`videodiff convert <run> what=run out=<folder>` makes a folder to share (README, Resume)"
    ),
    "random_flip center_crop random_crop video_reshape_mode transform_name": (
        "clips are scaled and cut to their bucket, and never flipped (docs/streaming.md)"
    ),
    "skip_frames_start skip_frames_end": "`videodiff prep` cuts spans and shots out of videos (docs/data.md)",
    "fps gen_fps frame_rate framerate target_fps": (
        "clips keep their rate, which the network is told; data.stride= takes every so many frames of them"
    ),
    "frame_interval sample_stride frame_stride": "fps= is the rate of a clip (docs/sampling.md)",
    """qk_norm enable_flashattn enable_flash_attn flash_attn use_flash_attention enable_layernorm_kernel xformers
    enable_xformers_memory_efficient_attention attention_mode use_liger_rope fused_qkv""": (
        "norms of queries and keys, and torch's own attention, are always used (docs/performance.md)"
    ),
    """gpus num_gpus n_gpus nproc_per_node world_size ulysses_size ulysses_degree ring_size ring_degree sp_size
    dit_fsdp fsdp""": "torchrun lets several processes share the clips (docs/sampling.md)",
    "device gpu_id device_id local_rank master_port machine_rank main_process_port": (
        "CUDA_VISIBLE_DEVICES chooses GPUs, and torchrun or the cluster starts processes (docs/cluster.md)"
    ),
    "dtype mixed_precision precision torch_dtype weight_dtype bf16 fp16 fp8": (
        "a network samples in the precision of its training (docs/sampling.md)"
    ),
    "revision variant cache_dir subfolder": (
        "codec= and text= name models of the hub, with keys of their own; HF_HOME is where they are kept"
    ),
    "snr_gamma min_snr_gamma noise_offset": (
        "objective.levels says how levels of noise are drawn (conf/objective/latent.yaml)"
    ),
    "pin_memory": "batches beside a GPU are always pinned (docs/streaming.md)",
    "type class_name": ("the option of a group decides it: model=, codec=, text=, objective= (videodiff train --help)"),
}
SAID = {name: sentence for names, sentence in READ.items() for name in names.split()}
# Last names that say nothing without their group.
VAGUE = {"path", "dir", "folder", "file", "name"}
# Keys of one last name that a message lists.
MOST = 4


def translated(name: str, known: Callable[[str], bool]) -> list[str]:
    """Return our keys for a name of other code bases; none if it is none of them, or the verb has no such keys."""
    for ours, theirs in THERE.items():
        if name not in theirs.split():
            continue
        for way in ours.split(" | "):
            keys = [key if known(key) else key.rpartition(".")[2] for key in way.split()]
            if all(map(known, keys)):
                return keys
    return []


def meant(name: str, known: Iterable[str]) -> list[str]:
    """Return the known keys that an unknown name most likely means, none if none is likely.

    A name of another code base comes first, alone or below a group that is none here; then a key of another group
    with this last name, then the one that is most alike.
    """
    known = list(known)
    group, _, last = name.lower().rpartition(".")
    for one in (name.lower(), last):
        if keys := translated(one, known.__contains__):
            return keys
    if last in SAID:
        return []
    first = group.partition(".")[0]
    if group and first not in known and (keys := translated(first, known.__contains__)):
        return keys
    same = [] if group else [key for key in known if key.rpartition(".")[2] == last]
    near = nearest(name, known)
    return same[:MOST] if len(same) > 1 else [near] if near else []


def answer(name: str, known: Iterable[str]) -> str:
    """Return what to say to an unknown name: the keys that are meant, or what there is instead; empty if unknown."""
    keys = meant(name, known)
    listed = ", ".join(map(repr, keys))
    return f"did you mean {listed}?" if keys else SAID.get(name.lower().rpartition(".")[2], "")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a mistyped one is most like, None if it is like none.

    The last parts of dotted names are compared: by letters, and by words where one has all words of the other, as
    `guidance_scale` has those of `scale`. A name of another group has to be more alike. Between equally likely names
    the whole names decide.
    """
    group, _, last = name.rpartition(".")
    wanted, known = last.lower(), list(known)
    above = {one.rpartition(".")[0] for one in known}

    def likeness(one: str) -> tuple[float, float]:
        own_group, _, own = one.rpartition(".")
        alike = max(same_letters(wanted, own.lower()), same_words(wanted, own.lower()))
        if group != own_group and group and wanted in VAGUE:
            alike = 0.0
        return (alike if alike >= (0.7 if own_group == group else 0.75) else 0.0), same_letters(name, one)

    # A key inside a group is not meant by the name of a group.
    likely = [(likeness(one), one) for one in known if not group or one not in above]
    best = max(likely, default=((0.0, 0.0), ""))
    return best[1] if best[0][0] else None


def same_words(typed: str, known: str) -> float:
    """Return 0.8 or more, by their number, where one text has all words of the other, whole or cut short; else 0."""
    words, others = (re.findall(r"[^\W_]+", text) for text in (typed, known))
    met = sum(any(other.startswith(word) for other in others) for word in words)
    return 1 - 0.2 / met if met and met == min(len(words), len(others)) else 0.0


def same_letters(one: str, other: str) -> float:
    """Return how far two texts have the same letters in the same order, 0 to 1."""
    return difflib.SequenceMatcher(None, one, other).ratio()
