"""The options of the smaller commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from opensora.config.device import DEVICE_HELP, TARGETS, DeviceOptions
from opensora.config.families import DEFAULT_VAE, DIT_PRESETS, PLAN_V1_2
from opensora.config.generations import GENERATIONS, LATEST
from opensora.config.lora import LoRAOptions, LoRASpec, parse_lora
from opensora.config.memory import WEIGHTS, MemoryOptions
from opensora.config.options import check_at_least_one, option, option_of, seed, str2bool
from opensora.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "examples/demo_model"
PUBLISHED_REFINER = "LanguageBind/Open-Sora-Plan-v1.3.0/prompt_refiner"
MAX_NEW_TOKENS = 512
PRECISIONS = ("q8_0", "bf16", "fp16", "fp32")  # of converted weights
WEIGHT_FORMATS = ("safetensors", "gguf")
CARDS = ("910a", "910b", "910_93")
NEW_COLORS, WORLDS = ("cyan",), ("small", "large")  # see `opensora.demo.scenes`
DEMO_WORLD = "small"  # that of the demo model in the repository


@dataclass(frozen=True)
class EmbedOptions:
    data_file_path: str = option(help="json list of objects with `path` and `cap`")
    output_path: str = option(help="folder for the .npz files")
    text_encoder_name: str = option("google/mt5-xxl", "folder of mT5 or T5 v1.1")
    model_max_length: int = option(512, "maximum number of text tokens")
    batch_size: int = option(8, "captions per batch of the text encoder")
    memory: Optional[int] = option_of(
        MemoryOptions,
        "memory",
        help="most memory that the run may use, such as 3GB; a text encoder that does not fit is read from its files "
        "block by block; default: the memory that is free",
        group=None,
    )
    weights: Sequence[str] = option_of(
        MemoryOptions,
        "weights",
        help=f"format of the weights in memory, one of {', '.join(WEIGHTS)}; as_stored: 16-bit files stay 16-bit; "
        "default: as_stored",
        metavar="FORMAT",
        group=None,
    )

    def __post_init__(self):
        check_at_least_one(self, "model_max_length", "batch_size")
        for text in self.weights:
            if text.removeprefix("text_encoder=") not in WEIGHTS:
                raise UserError(f"--weights {text!r:.60}: the text encoder's weights are one of {', '.join(WEIGHTS)}")

    @property
    def held_weights(self) -> Optional[str]:
        """The format of the text encoder's weights; None: none is given."""
        return MemoryOptions(self.memory, self.weights).weights_by_model()["text_encoder"]


@dataclass(frozen=True)
class RefineOptions:
    caption_refiner: str = option(PUBLISHED_REFINER, "folder of a causal language model with its tokenizer")
    prompt: Optional[Sequence[str]] = option(None, "prompts; default: those of --text_prompt", exclusive=True)
    text_prompt: str = option(
        str(ROOT / "examples/sora.txt"), "a .txt file with one prompt per line, or a .csv file", exclusive=True
    )
    output: Optional[str] = option(None, "text file for the refined prompts, one per line; default: only print them")
    max_new_tokens: int = option(MAX_NEW_TOKENS, "maximum number of tokens of an answer")
    device: Optional[str] = option(None, DEVICE_HELP, choices=TARGETS)
    seed: int = option(DeviceOptions.seed, "random seed, for models that sample their answers", type=seed)

    def __post_init__(self):
        check_at_least_one(self, "max_new_tokens")
        if self.output and Path(self.output).is_dir():
            raise UserError(f"--output {self.output}: is a folder; name a file")


@dataclass(frozen=True)
class RefinerProcessOptions:
    caption_refiner: str = option(help="folder of a causal language model")
    max_new_tokens: int = option(help="maximum number of tokens of an answer")


@dataclass(frozen=True)
class TextEncoderProcessOptions:
    text_encoder_name: str = option(help="folder of mT5 or T5 v1.1")
    output_folder: str = option(help="folder for the states")
    weights: Optional[str] = option(None, "format of the weights in memory; default: as_stored", choices=WEIGHTS)
    processes: int = option(1, "processes that share the machine's memory")


@dataclass(frozen=True)
class ReconstructOptions:
    """The VAE of examples/rec_*.py."""

    ae_path: str = option(help="folder with config.json and weights")
    ae: str = option(DEFAULT_VAE, "name of the VAE")
    ms_checkpoint: Optional[str] = option(None, "file of weights, instead of those in --ae_path")


_tiling = partial(option, False, "process the video in chunks along time: memory stays constant")


@dataclass(frozen=True)
class RecVideoOptions:
    video_path: str = option(help="the video to reconstruct")
    rec_path: str = option(help="path of the reconstruction (.mp4, .mkv, .gif ...)")
    num_frames: int = option(65, "frames of the clip, 4n+1")
    sample_rate: int = option(1, "take every n-th frame")
    height: int = option(336, "height of the result in pixels")
    width: int = option(336, "width of the result in pixels")
    fps: float = option(30, "frame rate of the result")
    enable_tiling: bool = _tiling()
    grid: bool = option(False, "write original and reconstruction side by side")


@dataclass(frozen=True)
class RecImageOptions:
    image_path: str = option(help="the image to reconstruct")
    rec_path: str = option(help="path of the reconstruction (.png, .jpg ...)")
    short_size: int = option(336, "shorter side in pixels")


@dataclass(frozen=True)
class RecFolderOptions:
    real_video_dir: str = option(help="folder of the videos to reconstruct")
    generated_video_dir: str = option(help="folder for the reconstructions")
    data_file_path: Optional[str] = option(
        None, "csv file with a column 'video', paths relative to --real_video_dir; default: all videos of the folder"
    )
    output_origin: bool = option(False, "also write the cropped and resized input, to origin/")
    num_frames: int = option(17, "frames of a clip, 4n+1")
    sample_rate: int = option(1, "take every n-th frame")
    sample_fps: float = option(30, "frame rate of the real videos; files are written at sample_fps / sample_rate")
    height: Optional[int] = option(None, "with --width: crop to this aspect ratio and resize")
    width: Optional[int] = option(None, "see --height")
    resolution: int = option(336, "shorter side in pixels, without --height and --width")
    crop_size: Optional[int] = option(None, "then crop the center to a square of this size; default: to multiples of 8")
    subset_size: int = option(0, "only the first n videos; 0: all")
    batch_size: int = option(1, "videos of one size per batch")
    num_workers: int = option(2, "videos read at the same time")
    enable_tiling: bool = _tiling()


@dataclass(frozen=True)
class ContactSheetOptions:
    videos: Sequence[str] = option(help="the videos, in the order in which they are shown", positional=True)
    output: str = option(help="file of the image: png, jpg or webp; gif or webp with --animated")
    columns: int = option(8, "frames of each video, which has a row; with --animated: videos in a row")
    animated: bool = option(
        False, "write an animation that plays the videos side by side, at the frame rate of the first"
    )

    def __post_init__(self) -> None:
        check_at_least_one(self, "columns")


@dataclass(frozen=True)
class ConvertOptions:
    src: str = option(help="file of torch.save, or index.json of its shards")
    target: str = option(help="safetensors file to write")
    config: str = option(help="config.json of the model")


@dataclass(frozen=True)
class ConvertMindSporeOptions(ConvertOptions):
    src: str = option_of(ConvertOptions, "src", help="MindSpore checkpoint; the states of an optimizer are left out")


@dataclass(frozen=True)
class ConvertWFVAEOptions(ConvertOptions):
    src: str = option_of(ConvertOptions, "src", help="checkpoint of torch.save")
    use_ema: bool = option(True, "take the EMA weights; False: the plain weights (gen_model)", type=str2bool)


@dataclass(frozen=True)
class ConvertAnyOptions(ConvertWFVAEOptions):
    src: str = option_of(
        ConvertOptions, "src", help="PyTorch, safetensors or GGUF file, index.json of shards, or MindSpore checkpoint"
    )
    target: str = option_of(ConvertOptions, "target", help="safetensors or GGUF file to write")
    to: Optional[str] = option(
        None, "precision of the large weights; default: safetensors with the types of the source", choices=PRECISIONS
    )
    format: Optional[str] = option(
        None, "format of the file; default: gguf for q8_0, else safetensors", choices=WEIGHT_FORMATS
    )


@dataclass(frozen=True)
class CastOptions:
    input_path: str = option(help="safetensors file with float32 tensors", flags=("-i",))
    output_path: str = option(help="safetensors file to write, with float16 tensors", flags=("-o",))


@dataclass(frozen=True)
class MergeOptions:
    input_folder: str = option(help="folder of the shards", flags=("-i",))
    output_path: str = option(help="safetensors file to write", flags=("-o",))
    index_file: str = option(help="the index.json: its name in that folder or its path", flags=("-f",))


@dataclass(frozen=True)
class FuseLoRAOptions:
    model_path: str = option(help="file or folder of the weights, in 16 or 32 bits, with config.json")
    lora: Sequence[LoRASpec] = option(
        help="files or folders of LoRAs to add, each times its scale; default of the scale: 1",
        type=parse_lora,
        metavar="FILE[:SCALE]",
    )
    output: str = option(help="folder for config.json and the weights, with the types of the source")


@dataclass(frozen=True)
class ExtractLoRAOptions:
    base: str = option(help="file or folder of the weights before training")
    tuned: str = option(help="file or folder of the trained weights")
    output: str = option(help="safetensors file to write")
    rank: Optional[int] = option(None, "rank of every layer; default: chosen by --energy", exclusive=True)
    energy: Optional[float] = option(
        None,
        "share of the squared norm of each layer's difference to keep, such as 0.99, with the smallest rank that does; "
        "default: chosen by --rank",
        exclusive=True,
    )

    def __post_init__(self):
        if (self.rank is None) == (self.energy is None):
            raise UserError("give either --rank or --energy, such as --rank 32 or --energy 0.99")
        check_at_least_one(self, "rank")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(f"--energy {self.energy} should be above 0 and at most 1")
        if Path(self.output).suffix != ".safetensors":
            raise UserError(f"--output {self.output}: the name of the file must end in .safetensors")


@dataclass(frozen=True)
class LatentScaleOptions:
    ae_path: str = option(help="folder of the VAE")
    video_path: str = option(help="folder of videos")
    num_frames: int = option(17, "frames of a clip, 4n+1")
    resolution: int = option(256, "height and width in pixels, a multiple of 8")
    sample_rate: int = option(1, "take every n-th frame")
    count: int = option(200, "maximum number of videos to measure")


@dataclass(frozen=True)
class BucketReportOptions:
    config: str = option(help="a training config with bucket_config", positional=True)
    csv: str = option(help="table of the training data, with num_frames, height and width", positional=True)
    epoch: int = option(0, "epoch whose random draws are shown")
    output: Optional[str] = option(None, "image file of a chart")


@dataclass(frozen=True)
class FailedRanksOptions:
    log_dir: Path = option(help="folder of worker_*.log and scheduler.log, --log_dir of msrun", positional=True)
    since: float = option(0.0, "ignore logs last written before this time, in seconds since the epoch")


@dataclass(frozen=True)
class ScoreOptions:
    model_path: str = option(str(DEMO_MODEL / "transformer"), "folder of the diffusion transformer")
    ae_path: str = option(str(DEMO_MODEL / "vae"), "folder of the autoencoder")
    text_encoder_name_1: str = option(str(DEMO_MODEL / "text_encoder"), "folder of the text encoder")
    count: int = option(
        100, "prompts, half of them held-out combinations; as many with two objects, if the model was trained on them"
    )
    guidance_scale: Sequence[float] = option((1.0, 4.0), "guidance scales to score")
    num_sampling_steps: int = option(50, "steps of the sampler")
    output_dir: Optional[str] = option(None, "also write contact sheets and the scores as json to this folder")
    lora: Sequence[Any] = option_of(LoRAOptions, "lora", group=None)
    new_color: Optional[str] = option(
        None, "also score prompts with this color, which the model can only know from fine-tuning", choices=NEW_COLORS
    )
    new_count: int = option(20, "prompts with --new_color")


@dataclass(frozen=True)
class DrawAssetsOptions:
    output_dir: Path = option(ROOT / "assets/images/condition", "folder for the images")


@dataclass(frozen=True)
class DemoDataOptions:
    output_dir: str = option(help="folder for the data")
    world: str = option(
        DEMO_WORLD, "size of the videos: small 64 pixels; large 128, also with two objects and textures", choices=WORLDS
    )
    clips: int = option(4000, "clips for training")
    pictures: int = option(6000, "images for training")
    details: int = option(2000, "parts of further clips, for training of the autoencoder")
    held_out: int = option(100, "clips of combinations that training never sees")


@dataclass(frozen=True)
class InspectOptions:
    paths: Sequence[str] = option(
        help="files of weights, folders of models, or folders of such folders", positional=True
    )


@dataclass(frozen=True)
class NewClipsOptions:
    output_dir: str = option(help="folder for the clips and captions")
    color: str = option("cyan", "the color of the shapes", choices=NEW_COLORS)
    world: str = option_of(DemoDataOptions, "world")
    clips: int = option(10, "number of clips")
    seed: int = option(0, "seed of their content", type=seed)

    def __post_init__(self):
        check_at_least_one(self, "clips")


@dataclass(frozen=True)
class DemoTextEncoderOptions:
    output_dir: str = option(help="folder for the text encoder")


@dataclass(frozen=True)
class FullSizeReleaseOptions:
    output_dir: Path = option(help="new or empty folder for the weights, or that of an interrupted run")
    dtype: str = option("bf16", "stored type of transformer and text encoder", choices=("bf16", "fp16", "fp32"))
    seed: int = option(0, "seed of the weights", type=seed)
    layers: Optional[int] = option(None, "blocks of the transformer; default: all 32")
    text_layers: Optional[int] = option(None, "blocks of the text encoder; default: all 24")
    tokenizer: Path = option(DEMO_MODEL / "text_encoder", "folder whose tokenizer is copied")

    def __post_init__(self):
        check_at_least_one(self, "layers", "text_layers")


@dataclass(frozen=True)
class TinyReleaseOptions:
    output_dir: Path = option(help="folder for the weights")
    version: str = option(LATEST, "generation of the release", choices=tuple(GENERATIONS))


@dataclass(frozen=True)
class DoctorOptions:
    device: Optional[str] = option(None, DEVICE_HELP, choices=TARGETS)
    only: Optional[Sequence[str]] = option(None, "names of the checks to run, see --list; default: all")
    timeout: float = option(120.0, "seconds that a row of a check may take before it is killed")
    json: Optional[str] = option(None, "file for all results, to attach to a report; default: only print them")
    list: bool = option(False, "print the names of the checks and exit")


@dataclass(frozen=True)
class CostFlags:
    """Flags of `python -m opensora.cost_model` that are not fields of `opensora.cost_model.Run`."""

    model: str = option(help=f"folder with a config.json, or {', '.join((*DIT_PRESETS, PLAN_V1_2))}")
    sp_size: Sequence[int] = option((1,), "processes that share a sequence; several numbers give several columns")
    world_size: Optional[int] = option(None, "number of processes; default: --sp_size")
    card: Optional[str] = option(None, "also count time and memory on one of these NPUs", choices=CARDS)
    efficiency: float = option(0.2, "with --card: share of its peak that a run reaches")
    num_sampling_steps: int = option(100, "with --card: steps of the sampler, one call of the transformer each")
    memory: Optional[int] = option_of(
        MemoryOptions,
        "memory",
        help="print how sample.py holds the published models within this memory, such as 8GB: of --card, or of a CPU",
        group=None,
    )
    weights: Sequence[str] = option_of(
        MemoryOptions,
        "weights",
        help="with --memory: as the flag of sample.py; with --lora_rank: format of the frozen weights",
        group=None,
    )
    stored: str = option("bf16", "with --memory: type of the numbers in the files", choices=WEIGHTS[1:])

    def __post_init__(self):
        check_at_least_one(self, "num_sampling_steps")
        self.held_weights()
        if not 0 < self.efficiency <= 1:
            raise UserError(f"--efficiency {self.efficiency} should be above 0 and at most 1")

    def held_weights(self) -> Mapping[str, Optional[str]]:
        """The format of the weights by model, see `MemoryOptions`."""
        return MemoryOptions(self.memory, self.weights).weights_by_model()
