"""The options of `opensora serve` and `opensora studio`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Optional

from opensora.config.device import DeviceOptions
from opensora.config.memory import MemoryOptions
from opensora.config.options import check_at_least_one, flags_of, option
from opensora.errors import UserError

TOKEN = "OPENSORA_TOKEN"  # environment variable
TOKEN_LENGTH = 16  # characters, at least
WEIGHT_FLAGS = ("model_path", "inpaint_path", "ae_path", "text_encoder_name_1")


@dataclass(frozen=True)
class ServeOptions:
    """Where the service listens, what it serves, and its limits.

    Raises:
        UserError: values out of range, weights that are incomplete, or an open address without a token.
    """

    host: str = option("127.0.0.1", "address to listen on; others than those of this machine need --token")
    port: int = option(7860, "port to listen on; 0: a free one")
    data: str = option("./studio", "folder of the queue, the uploads and the videos")
    token: Optional[str] = option(
        None, f"text that clients have to send; {TOKEN} in the environment keeps it out of lists of processes"
    )

    model_path: Optional[str] = option(
        None, "folder of the diffusion transformer; default: the demo model of the repository", group="weights"
    )
    inpaint_path: Optional[str] = option(
        None, "folder of the transformer that takes given frames; default: image-to-video is not offered",
        group="weights",
    )  # fmt: skip
    ae_path: Optional[str] = option(None, "folder of the autoencoder", group="weights")
    text_encoder_name_1: Optional[str] = option(None, "folder of the text encoder", group="weights")
    lora_dir: Optional[str] = option(
        None, "folder of the LoRA files that requests may name; default: none", group="weights"
    )

    max_queue: int = option(200, "videos that may wait", group="limits")
    max_frames: int = option(93, "most frames of a video", group="limits")
    max_pixels: int = option(640 * 640, "most pixels of a frame", group="limits")
    max_steps: int = option(200, "most sampling steps", group="limits")
    max_upload_mb: int = option(64, "most megabytes of an upload", group="limits")
    max_uploads: int = option(200, "uploads that are kept; the oldest is removed first", group="limits")
    rate_limit: int = option(
        240, "requests per minute of one client that create or change something; 0: no limit", group="limits"
    )

    worker_num: int = option(1, "worker processes; each makes one video at a time", group="workers")
    ranks_per_worker: int = option(1, "devices that share each video, under msrun", group="workers")
    preview_interval: float = option(5.0, "seconds between previews of a video; 0: none", group="workers")

    def __post_init__(self) -> None:
        check_at_least_one(
            self,
            "max_queue",
            "max_frames",
            "max_pixels",
            "max_steps",
            "max_upload_mb",
            "max_uploads",
            "worker_num",
            "ranks_per_worker",
        )
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: should be a number from 0 to 65535")
        if self.rate_limit < 0 or self.preview_interval < 0:
            raise UserError("--rate_limit and --preview_interval must be 0 or more")
        if self.token is not None and len(self.token) < TOKEN_LENGTH:
            raise UserError(f"--token: give at least {TOKEN_LENGTH} characters, for example from: openssl rand -hex 16")
        if self.token is None and not self.is_local:
            raise UserError(
                f"--host {self.host}: anyone who reaches this address could use the service; give --token, for "
                "example from: openssl rand -hex 16, or leave --host out"
            )
        if "," in str(Path(self.data).absolute()) or "\n" in self.data:
            raise UserError(f"--data {self.data!r}: lists of files are separated by commas; choose a path without one")
        self._check_weights()

    def _check_weights(self) -> None:
        given = [name for name in WEIGHT_FLAGS if getattr(self, name)]
        needed = ("ae_path", "text_encoder_name_1")
        if given and (not (self.model_path or self.inpaint_path) or any(not getattr(self, name) for name in needed)):
            raise UserError(
                f"--{given[0]} alone is not enough: give --model_path or --inpaint_path, or both, with "
                "--ae_path and --text_encoder_name_1, or none of them for the demo model"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_mb << 20


OPTIONS = (ServeOptions, DeviceOptions, MemoryOptions)


def arguments_of(cls: type, args: Any) -> list[str]:
    """The flags of `DeviceOptions` or `MemoryOptions` that differ from their defaults, as a command line.

    Not `use_parallel`, which depends on the launcher, and not `seed`: every request has one.

    Args:
        args: the parsed flags.
    """
    result: list[str] = []
    for flag in flags_of(cls):
        value = getattr(args, flag.name)
        if flag.name not in ("use_parallel", "seed") and value != flag.default:
            values = value if isinstance(value, (list, tuple)) else [value]
            result += [f"--{flag.name}", *map(str, values)]
    return result
