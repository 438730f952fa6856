"""What an unknown name is answered with: names of other code bases, mistyped names, names of other verbs."""

from __future__ import annotations

from functools import cache

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from videodiff.verbs.config.arguments import split
from videodiff.verbs.config.checking import composed, valid_names
from videodiff.verbs.config.groups import conf_dir
from videodiff.verbs.config.names import READ, SAID, THERE, answer, meant, nearest

# Arguments of scripts that people come from: diffusers' training of CogVideoX, CogVideo's own, Open-Sora's
# configurations (1.2 and 2), Wan's generate.py, and the pipelines of diffusers.
SCRIPTS = {
    "train": """pretrained_model_name_or_path revision variant cache_dir dataset_name instance_data_root video_column
        caption_column id_token dataloader_num_workers validation_prompt validation_prompt_separator
        num_validation_videos validation_epochs guidance_scale use_dynamic_cfg seed rank lora_alpha mixed_precision
        output_dir height width video_reshape_mode fps max_num_frames skip_frames_start skip_frames_end random_flip
        train_batch_size num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit
        resume_from_checkpoint gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler
        lr_warmup_steps lr_num_cycles lr_power enable_slicing enable_tiling optimizer use_8bit_adam adam_beta1
        adam_beta2 adam_weight_decay adam_epsilon max_grad_norm tracker_name push_to_hub hub_token hub_model_id
        logging_dir allow_tf32 report_to
        model_path model_name model_type training_type data_root train_epochs train_steps checkpointing_limit batch_size
        train_resolution beta1 beta2 epsilon weight_decay num_workers pin_memory nccl_timeout target_modules
        do_validation validation_steps validation_dir validation_prompts validation_images validation_videos gen_fps
        dataset.type dataset.transform_name dataset.frame_interval bucket_config grad_checkpoint
        num_bucket_build_workers dtype plugin model.type model.from_pretrained model.qk_norm model.enable_flashattn
        model.enable_layernorm_kernel vae.type vae.from_pretrained vae.micro_frame_size text_encoder.type
        text_encoder.from_pretrained text_encoder.model_max_length scheduler.type scheduler.use_timestep_transform
        scheduler.sample_method mask_ratios outputs wandb epochs log_every ckpt_every load grad_clip lr ema_decay
        adam_eps warmup_steps grad_ckpt_settings optim.lr keep_n_latest wandb_project async_io model.hidden_size
        model.num_heads""",
    "sample": """task size frame_num ckpt_dir offload_model ulysses_size ring_size t5_fsdp t5_cpu dit_fsdp fp8 save_file
        prompt use_prompt_extend prompt_extend_method prompt_extend_model prompt_extend_target_lang base_seed image
        first_frame last_frame sample_solver sample_steps sample_shift sample_guide_scale src_video src_mask
        src_ref_images model_path output_path image_or_video_path num_inference_steps guidance_scale
        num_videos_per_prompt generate_type dtype negative_prompt num_frames video strength guidance_rescale eta
        generator use_dynamic_cfg resolution aspect_ratio fps fps_save frame_interval save_fps prompt_path save_dir
        batch_size multi_resolution condition_frame_length align aes flow reference_path mask_strategy loop
        scheduler.num_sampling_steps scheduler.cfg_scale cond_type sampling_option.resolution sampling_option.num_frames
        sampling_option.num_steps sampling_option.guidance sampling_option.guidance_img sampling_option.shift
        motion_score num_sample ref model.from_pretrained model.type vae.from_pretrained""",
}
MEANT = {
    "train": {
        "data.path": ["data.root"],
        "dataset.data_path": ["data.root"],
        "data.batch_size": ["data.global_batch"],
        "train_batch_size": ["data.micro_batch"],
        "num_frames": ["data.frames"],
        "resolution": ["data.height", "data.width"],
        "width": ["model.width", "text.width", "data.width"],
        "steps": ["trainer.max_steps"],
        "num_train_epochs": ["trainer.max_steps"],
        "num_inference_steps": ["sampler.steps"],
        "checkpointing_steps": ["callbacks.checkpoints.every"],
        "resume_from_checkpoint": ["resume"],
        "pretrained_model_name_or_path": ["start_from"],
        "vae.from_pretrained": ["start_from"],
        "vae.subfolder_of_it": ["codec"],
        "lr_warmup_steps": ["schedule.warmup"],
        "optimizer.learning_rate": ["optimizer.lr"],
        "output_dir": ["run", "name"],
        "seed_everything": ["seed"],
        "codec.path": [],
        "rank": [],
        "fps": [],
    },
    "sample": {
        "guidance_scale": ["scale"],
        "num_inference_steps": ["steps"],
        "size": ["height", "width"],
        "ckpt_dir": ["run", "checkpoint"],
        "last_frame": ["given", "known"],
        "image": ["given"],
        "output_path": ["out"],
        "length": ["seconds"],
        "task": [],
        "negative_prompt": [],
    },
    "pack": {"data_root": ["source"], "resolution": ["short_side"], "output_dir": ["out"]},
    "cache": {"data_root": ["root"], "num_frames": ["frames"], "vae": ["codec"]},
}


@cache
def known(verb: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return valid_names(verb, [])


@pytest.mark.parametrize("verb", SCRIPTS)
def test_every_argument_of_the_scripts_that_people_come_from_is_answered(verb: str) -> None:
    names = [name for name in SCRIPTS[verb].split() if name not in known(verb)]
    assert [name for name in names if not answer(name, known(verb))] == []
    assert [key for name in names for key in meant(name, known(verb)) if key not in known(verb)] == []


@pytest.mark.parametrize("verb", MEANT)
def test_a_name_of_another_code_base_leads_to_the_keys_that_are_meant(verb: str) -> None:
    assert {name: meant(name, known(verb)) for name in MEANT[verb]} == MEANT[verb]


def test_every_key_and_every_page_that_is_named_exists() -> None:
    verbs = ("train", "sample", "evaluate", "pack", "prep", "simulate", "cache")
    there = {key for verb in verbs for key in known(verb)}
    # Keys of options that are not the default.
    there |= {"codec.tile", "codec.slice_frames", "text.max_length", "data.urls"}
    named = {key for ours in THERE for way in ours.split(" | ") for key in way.split()}
    assert named - there - {"world.frames", "encode.fps"} == set()
    pages = {word.strip("(),;") for sentence in READ.values() for word in sentence.split() if ".md" in word}
    root = conf_dir().parent
    assert [page for page in pages if not (root / page).is_file()] == []


def test_a_mistyped_name_is_answered_by_the_one_that_is_meant_or_by_none() -> None:
    known = ["data", "data.root", "data.validation_root", "data.frames", "logger", "path", "path.kind", "seed"]
    known += ["optimizer.lr", "optimizer.betas", "optimizer.ema_decay", "data.batch", "data.global_batch", "steps"]
    meant = {
        "lr": "optimizer.lr",
        "optimizer.ema": "optimizer.ema_decay",
        "data.val_root": "data.validation_root",
        "data.path": None,
        "data.nothing": None,
        "end": None,
    }
    assert {name: nearest(name, known) for name in meant} == meant
    assert [nearest(one, ["B", "L", "S", "XL", "tiny"]) for one in ("xxl", "large", "7b")] == ["XL", None, None]


def test_a_key_that_refers_to_a_group_is_not_what_another_group_lacks() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        with pytest.raises(ValueError, match=r"found no key 'codec\.path', expected one of codec\.channels"):
            composed("train", ["codec.path=x"])
        with pytest.raises(ValueError, match="found no key 'rank'; there are no low-rank adapters yet"):
            composed("train", ["rank=8"])
        with pytest.raises(ValueError, match="found no key 'leaderboard'; it is a key of videodiff evaluate"):
            composed("sample", ["leaderboard=x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_frames", "49"], "'data.frames=49'"),
        (["--train-resolution=49x480x720"], "'data.frames=49x480x720 data.height"),
        (["--rank", "64"], SAID["rank"]),
        (["--gradient_checkpointing", "--lr", "1e-4"], "'recompute=...'"),
        (["--my_own", "3"], "'my_own=3'"),
    ],
)
def test_a_flag_of_another_program_is_answered_by_a_key_of_the_verb(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="expected key=value") as error:
        split(words, "train")
    assert said in str(error.value)
