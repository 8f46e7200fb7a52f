"""The arguments of a run: recorded in its checkpoints, and compared with those of the resuming run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opensora.errors import UserError
from opensora.train.checkpoint_folder import read_state
from opensora.utils.logs import logger

# The effect of an argument that differs in the resuming run. An argument is a flag of a training command, or a field
# of a config file; a dotted name is looked up in full, then by its first component.
ARGUMENTS = {
    # They do not change the result: devices, processes, output, logging, validation.
    "silent": """
        all_to_all allow_changed_arguments cache_dir checkpointing_steps checkpoints_total_limit ckpt_every clip_path
        config dataloader_num_workers dataset.cache_dir device epochs eval_data_file_path eval_lpips eval_num_frames
        eval_num_video_log eval_resolution eval_sample_rate eval_subset_size eval_video_path exp_name fvd_protocol
        grad_checkpoint gradient_checkpointing i3d_path jit_level load log_every log_interval max_device_memory
        max_train_steps mode model_name num_bucket_build_workers num_workers output_dir outputs parallel_mode plugin
        print_losses resume_from_checkpoint sp_size start_from_scratch use_parallel val_batch_size val_data
        val_guidance_scale val_interval val_interval_steps val_latent_cache val_num_sampling_steps val_sample_method
        val_samples validate wandb zero_stage
    """,
    # They change the following steps, but the state of the checkpoint stays valid.
    "listed": """
        adam_beta1 adam_beta2 adam_epsilon adam_weight_decay add_noise_to_condition batch_size betas cfg clip_grad
        default_text_ratio disc_start disc_weight dtype ema_decay ema_start_step enable_tiling grad_clip
        gradient_accumulation_steps init_loss_scale kl_weight latent_cache logvar_init lora_dropout lpips_path lr
        lr_scheduler lr_warmup_steps mask_config mask_ratios max_grad_norm model.enable_flashattn model.from_pretrained
        multi_resolution noise_offset optim perceptual_weight precision pretrained pretrained_model_name_or_path
        processes start_learning_rate tile_overlap_factor train_batch_size train_sp_batch_size use_ema vae.enable_tiling
        vae.micro_batch_size vae_fp32 vae_precision wavelet_weight weight_decay weights
    """,
    # They make the state invalid: it belongs to another model, task or data.
    "refused": """
        ae ae_path bucket_config cogvideox_scheduler data data_file_path data_path dataset disc_cls disc_loss
        drop_short_ratio dynamic_sample force_resolution freeze_encoder group_data hw_stride image_data
        interpolation_scale_h interpolation_scale_t interpolation_scale_w logit_mean logit_std lora_alpha lora_rank
        lora_target_modules loss_type max_height max_hxw max_image_size max_width min_hxw min_steps_per_size mode_scale
        model model_config model_max_length num_frames prediction_type rescale_betas_zero_snr resolution rf_scheduler
        sample_rate scheduler seed snr_gamma sparse1d sparse_n speed_factor text_embed_cache text_encoder
        text_encoder_name_1 train_fps use_discriminator use_image_num use_img_from_vid use_rope v1_5_scheduler vae
        video_column video_data video_num_frames video_path wavelet_loss weighting_scheme
    """,
}
EFFECTS = {name: effect for effect, names in ARGUMENTS.items() for name in names.split()}
# Paths (some may also be a preset): the same relative path in another folder is another file.
PATHS = frozenset(
    """ae_path data data_file_path data_path from_pretrained image_data latent_cache lpips_path mask_config model
       model_config pretrained pretrained_model_name_or_path text_encoder_name_1 video_data video_path""".split()
)
BASE_WEIGHTS = ("pretrained", "model.from_pretrained")
FIXED_RATES = ("constant", "constant_with_warmup")  # schedules that do not depend on the number of steps


class Change(NamedTuple):
    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.before)} -> {_shown(self.now)}"


def recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as state.json holds them: json types, absolute paths of files that exist, and flat.

    Args:
        arguments: of the command line, or the fields of a config. A field `dict(type=..., ...)` becomes one argument
            with a dotted name for each key.
    """
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "type" in value:
            flat.update({f"{name}.{key}": item for key, item in value.items()})
        else:
            flat[name] = value
    return {name: json.loads(json.dumps(_absolute(name, value), default=str)) for name, value in flat.items()}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Change]]:
    """The differences between two results of `recorded`, by their effect.

    A name that only one of them has belongs to another command or version and is ignored. A key of a field that both
    have counts as a difference, because keys that are not given are not recorded.
    """
    found: dict[str, list[Change]] = {effect: [] for effect in ARGUMENTS}
    for name in sorted({*before, *now}):
        parent, _, key = name.partition(".")
        marker = f"{parent}.type" if key else name
        if marker in before and marker in now:
            change = Change(name, before.get(name), now.get(name))
            if change.before != change.now:
                found[_effect(name, now)].append(change)
    return found


def check_arguments(checkpoint: Path, now: Mapping[str, Any], allow: bool, quiet: bool = False) -> None:
    """Prints the differences from the arguments of a checkpoint's run to stderr, unless `quiet`.

    Checkpoints of versions that recorded no arguments are accepted.

    Raises:
        UserError: a difference makes the checkpoint's state invalid, and `allow` is False.
    """
    found = changes(read_state(checkpoint).get("arguments", {}), now)
    if found["refused"] and not allow:
        raise UserError(
            f"{checkpoint} is of a run with other arguments: {_joined(found['refused'])}; resume with the "
            f"same, or add --allow_changed_arguments to resume with the new ones"
        )
    differences = [*found["refused"], *found["listed"]]
    if differences and not quiet:
        logger.warning(f"these arguments differ from those of {checkpoint}: {_joined(differences)}")


def _effect(name: str, now: Mapping[str, Any]) -> str:
    if name == "max_train_steps" and now.get("lr_scheduler", FIXED_RATES[0]) not in FIXED_RATES:
        return "listed"
    if name in BASE_WEIGHTS and now.get("lora_rank"):  # which the checkpoint does not have
        return "refused"
    return EFFECTS.get(name) or EFFECTS.get(name.split(".")[0], "listed")


def _absolute(name: str, value: Any) -> Any:
    is_path = name.split(".")[-1] in PATHS and isinstance(value, (str, Path))
    return os.path.abspath(value) if is_path and os.path.exists(value) else value


def _joined(differences: Sequence[Change]) -> str:
    return ", ".join(map(str, differences))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
