"""Mask strategies: the positions of reference frames in the clips of a video, and how much they may change.

A strategy is a list of groups separated by `;`, each of up to six numbers separated by `,`. Defaults: 0, 0, 0, 0, 1, 0.

    clip             index of the clip in a long video
    reference        index of the reference; the clips generated so far come after the references of the prompt
    reference start  first frame used, negative: from the end of the reference
    target start     first frame in the clip, negative: from the end of the clip, -1 is the last frame
    length           number of frames
    edit rate        0: the frames are kept, 1: they are generated, between: they are partially noised and denoised
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from opensora.errors import UserError


class MaskGroup(NamedTuple):
    """One group, with its numbers in order; frames are latent frames."""

    clip: int = 0
    reference: int = 0
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_rate: float = 0.0


def parse_strategy(text: Optional[str]) -> list[MaskGroup]:
    """The groups of a strategy; an empty list for None, "" and "None".

    Raises:
        UserError: a group that is not one to six numbers, or numbers out of range.
    """
    if text is None or text.strip() in ("", "None"):
        return []
    return [_parse_group(group, text) for group in text.split(";")]


def _parse_group(group: str, text: str) -> MaskGroup:
    numbers = group.split(",")
    try:
        values = MaskGroup(*map(int, numbers[:5]), *map(float, numbers[5:]))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"mask strategy {text!r}: {group!r} should be one to six numbers: clip, reference, its first "
            f"frame, first frame in the clip, length, edit rate"
        ) from error
    if values.clip < 0 or values.reference < 0 or values.length < 1 or not 0 <= values.edit_rate <= 1:
        raise UserError(
            f"mask strategy {text!r}: in {group!r} clip and reference should be 0 or more, the length 1 "
            f"or more, the edit rate between 0 and 1"
        )
    return values


def check_strategy(groups: Sequence[MaskGroup], references: int, loop: int) -> None:
    """Raises UserError if a group refers to a reference that does not exist.

    Args:
        references: number of references of the prompt; clip k can also refer to the k clips before it.
        loop: number of clips.
    """
    for group in groups:
        if group.clip < loop and group.reference >= references + group.clip:
            raise UserError(
                f"the mask strategy uses reference {group.reference} for clip {group.clip}, counted "
                f"from 0, but reference_path has {references}"
            )


def place_references(
    latents: np.ndarray, references: Sequence[Sequence[np.ndarray]], groups: Sequence[Sequence[MaskGroup]], clip: int
) -> tuple[np.ndarray, np.ndarray]:
    """Copies the references' frames into the noise of a clip, (n, C, T, h, w).

    Later groups override earlier ones. A group is truncated to the available frames; a reference of one frame is
    repeated for the whole length.

    Args:
        references: for each sample, latents (C, t, h, w).
        groups: for each sample.

    Returns:
        The latents, and the edit rate of every frame, float32 (n, T): 1 for frames without reference.

    Raises:
        UserError: a first frame beyond the end of the reference or the clip.
    """
    latents = latents.copy()
    total = latents.shape[2]
    mask = np.ones((len(latents), total), np.float32)
    for sample, (sample_references, sample_groups) in enumerate(zip(references, groups)):
        for group in (group for group in sample_groups if group.clip == clip):
            reference = sample_references[group.reference]
            first = _from_start(group.reference_start, reference.shape[1], "reference", group)
            target = _from_start(group.target_start, total, "clip", group)
            frames = reference[:, first : first + group.length]
            if reference.shape[1] == 1:
                frames = np.repeat(frames, group.length, axis=1)
            frames = frames[:, : total - target]
            span = slice(target, target + frames.shape[1])
            latents[sample, :, span] = frames
            mask[sample, span] = group.edit_rate
    return latents, mask


def _from_start(frame: int, count: int, what: str, group: MaskGroup) -> int:
    """The index from the start of a frame that may count from the end; clamped to 0."""
    index = max(0, frame + count) if frame < 0 else frame
    if index >= count:
        numbers = ",".join(f"{number:g}" for number in group)
        raise UserError(f"the mask strategy's group {numbers} uses frame {frame} of a {what} that has {count}")
    return index
