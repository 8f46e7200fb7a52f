"""Batches of videos with images, which joint training predicts together.

The frames of a sample are T frames of a video, then N images. An image is a sample of its own: it has its own caption
and the timestep of its video.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from opensora.ops.layout import concat, split, swap_frames_channels


def split_images(
    count: int,
    hidden_states: Tensor,
    timestep: Optional[Tensor],
    encoder_hidden_states: Optional[Tensor],
    attention_mask: Optional[Tensor],
    encoder_attention_mask: Optional[Tensor],
) -> tuple[tuple, tuple]:
    """The inputs of the videos alone, and those of their images as videos of one frame.

    Args:
        count: N, the number of images of a sample.
        hidden_states: latents (B, C, T + N, H, W).
        timestep: (B,).
        encoder_hidden_states: the captions of the video and of its images, (B, 1 + N, L, channels).
        attention_mask: of the latents, (B, T + N, H, W), or None.
        encoder_attention_mask: (B, 1 + N, L), or None.

    Returns:
        The inputs in the same order, of B samples with T frames, and of B N samples with one frame.

    Raises:
        ValueError: timestep or encoder_hidden_states is None.
    """
    if timestep is None or encoder_hidden_states is None:
        # Graph mode compiles only Python's own exception classes.
        raise ValueError("samples with images need timestep and encoder_hidden_states")
    frames = hidden_states.shape[2] - count
    video, images = split(hidden_states, 2, frames)
    text, captions = split(encoder_hidden_states, 1, 1)
    of_videos = video, timestep, text
    of_images = (
        _rows(swap_frames_channels(images).expand_dims(3)),
        ops.tile(timestep.expand_dims(1), (1, count)).reshape(-1),
        _rows(captions.expand_dims(2)),
    )
    mask, image_mask = (None, None) if attention_mask is None else split(attention_mask, 1, frames)
    text_mask, caption_mask = (None, None) if encoder_attention_mask is None else split(encoder_attention_mask, 1, 1)
    image_mask = None if image_mask is None else _rows(image_mask.expand_dims(2))
    caption_mask = None if caption_mask is None else _rows(caption_mask.expand_dims(2))
    return of_videos + (mask, text_mask), of_images + (image_mask, caption_mask)


def join_images(videos: Tensor, images: Tensor) -> Tensor:
    """Predictions of videos (B, C, T, H, W) and of their images (B N, C, 1, H, W) -> (B, C, T + N, H, W)."""
    b, c, _, h, w = videos.shape
    return concat(videos, swap_frames_channels(images.reshape(b, -1, c, h, w)), 2)


def _rows(x: Tensor) -> Tensor:
    """(B, N, ...) -> (B N, ...)."""
    return x.reshape((-1,) + x.shape[2:])
