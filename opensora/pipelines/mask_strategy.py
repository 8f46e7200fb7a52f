"""Mask strategies: which frames of references stand where in the clips of a video, and how much they may change.

Groups joined by `;`, each up to six numbers joined by `,`; those that are left out are 0, 0, 0, 0, 1, 0:

    clip             the clip of a long video, counted from 0
    reference        the reference, counted from 0; those that come up on the way are counted behind those given
    reference start  its first frame that is taken, negative: counted from its end
    target start     where it stands in the clip, negative: counted from the clip's end, so that -1 is the last frame
    length           how many frames
    edit rate        0: they stay as they are, 1: they are made anew, between: made from what they are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np

from opensora.errors import UserError


class MaskGroup(NamedTuple):
    """One group, its numbers in their order; frames are those of latents."""

    clip: int = 0
    reference: int = 0
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_rate: float = 0.0


def parse_strategy(text: Optional[str]) -> list[MaskGroup]:
    """The groups of a strategy; none for None, "" and "None".

    Raises:
        UserError: a group that is not one to six numbers, or numbers that cannot be.
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
    """Raises UserError where a group names a reference that there is not, given so many.

    Before its k-th clip a long video has k references more: the clips so far.
    """
    for group in groups:
        if group.clip < loop and group.reference >= references + group.clip:
            raise UserError(
                f"the mask strategy names reference {group.reference} for clip {group.clip}, counted "
                f"from 0, but reference_path has {references}"
            )


def place_references(
    latents: np.ndarray, references: Sequence[Sequence[np.ndarray]], groups: Sequence[Sequence[MaskGroup]], clip: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the references' frames into the noise of a clip, (n, C, T, h, w).

    Of each sample later groups stand over earlier ones. A group is cut to the frames that there are; a reference of one
    frame fills its whole length.

    Args:
        references: of each sample, (C, t, h, w).
        groups: of each sample.

    Returns:
        The latents, and the edit rate of every frame, float32 (n, T): 1 where no reference stands.

    Raises:
        UserError: a first frame that the reference or the clip does not have.
    """
    latents = latents.copy()
    total = latents.shape[2]
    mask = np.ones((len(latents), total), np.float32)
    for sample, (known, wanted) in enumerate(zip(references, groups)):
        for group in (group for group in wanted if group.clip == clip):
            reference = known[group.reference]
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
    """Of a frame that may be counted from the end; from further than the beginning is from there."""
    place = max(0, frame + count) if frame < 0 else frame
    if place >= count:
        numbers = ",".join(f"{number:g}" for number in group)
        raise UserError(f"the mask strategy's group {numbers} wants frame {frame} of a {what} that has {count}")
    return place
