"""Draws the conditioning images of the guides:

python tools/demo/draw_assets.py [--output_dir assets/images/condition]

wave.png  ship.png  sunset1.png  sunset2.png      240 x 426 pixels each
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import DrawAssetsOptions
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

HEIGHT, WIDTH = 240, 426
Color = Sequence[int]  # RGB, 0 to 255


def gradient(top: Color, bottom: Color, height: int = HEIGHT) -> np.ndarray:
    """A vertical gradient between two colors, float (height, WIDTH, 3)."""
    weight = np.linspace(0, 1, height)[:, None, None]
    return np.broadcast_to((1 - weight) * np.array(top, float) + weight * np.array(bottom, float), (height, WIDTH, 3))


def blend(image: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    """Blends a color into the image by a mask (H, W), 0 to 1."""
    return image + mask[..., None] * (np.array(color, float) - image)


def ripples(image: np.ndarray, horizon: int, strength: float) -> np.ndarray:
    """Adds brightness waves to the water below the horizon, wider toward the viewer."""
    y, x = np.mgrid[0 : HEIGHT - horizon, 0:WIDTH].astype(float)
    depth = 1 + y / 12
    waves = np.sin(6 * np.pi * np.sqrt(y + 1) + 0.8 * np.sin(x / (9 * depth))) * np.sin(x / (16 * depth) + y)
    result = image.copy()
    result[horizon:] += strength * waves[..., None]
    return result


def sunset(sun_height: int, sky: tuple[Color, Color], sea: tuple[Color, Color]) -> np.ndarray:
    """The sun above the sea; a negative height puts it below the horizon."""
    horizon = 150
    image = np.concatenate([gradient(*sky, horizon), gradient(*sea, HEIGHT - horizon)])
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    distance = np.hypot(x - WIDTH / 2, y - (horizon - sun_height))
    above = y < horizon
    image = blend(image, above * np.exp(-((distance / 90) ** 2)) * 0.6, (255, 190, 90))
    image = blend(image, above * np.clip(26 - distance, 0, 1), (255, 232, 170))
    width = 8 + 0.5 * np.maximum(y - horizon, 0)  # of the light on the water
    glitter = (y >= horizon) * np.exp(-(((x - WIDTH / 2) / width) ** 2))
    return ripples(blend(image, glitter * (0.7 if sun_height > 0 else 0.2), (255, 205, 120)), horizon, 9)


def wave() -> np.ndarray:
    """A breaking wave in front of a beach."""
    horizon = 80
    image = np.concatenate(
        [gradient((120, 185, 235), (215, 235, 245), horizon), gradient((25, 95, 140), (60, 165, 170), HEIGHT - horizon)]
    )
    image = ripples(image, horizon, 7)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    crest = 138 - 14 * np.sin(x / 95) + 3 * np.sin(x / 11)
    image = blend(image, np.clip(1 - np.abs(y - crest - 16) / 22, 0, 1) * 0.75, (15, 80, 115))
    foam = np.clip(1 - np.abs(y - crest) / (7 + 3 * np.sin(x / 7) * np.sin(x / 19)), 0, 1)
    image = blend(image, foam, (245, 250, 252))
    shore = 200 - 6 * np.sin(x / 60)
    image = blend(image, np.clip((y - shore) / 3, 0, 1), (222, 196, 150))
    return blend(image, np.clip(1 - np.abs(y - shore) / 4, 0, 1) * 0.9, (240, 245, 245))


def ship() -> np.ndarray:
    """A sailing ship on a calm sea."""
    horizon = 160
    import cv2

    image = ripples(
        np.concatenate(
            [
                gradient((150, 200, 240), (235, 240, 240), horizon),
                gradient((70, 130, 165), (30, 85, 120), HEIGHT - horizon),
            ]
        ),
        horizon,
        6,
    )
    for color, corners in (
        ((110, 70, 45), [(150, 150), (280, 150), (262, 182), (168, 182)]),
        ((90, 60, 40), [(212, 40), (216, 40), (216, 150), (212, 150)]),
        ((250, 248, 238), [(218, 48), (218, 142), (276, 142)]),
        ((238, 234, 220), [(210, 60), (210, 142), (162, 142)]),
        ((200, 45, 50), [(216, 36), (240, 43), (216, 50)]),
    ):
        mask = np.zeros((HEIGHT * 4, WIDTH * 4), np.float32)
        cv2.fillPoly(mask, [np.array(corners, np.int32) * 4], 1.0)
        image = blend(image, cv2.resize(mask, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), color)
    return image


IMAGES = {
    "wave.png": wave,
    "ship.png": ship,
    "sunset1.png": lambda: sunset(55, ((95, 130, 190), (255, 170, 95)), ((180, 120, 90), (50, 60, 95))),
    "sunset2.png": lambda: sunset(-12, ((40, 40, 90), (190, 90, 120)), ((90, 55, 95), (20, 22, 50))),
}


def main() -> None:
    args = parse_flags("Draws the conditioning images of the guides.", (DrawAssetsOptions,))
    from opensora.datasets.media import save_image

    for name, draw in IMAGES.items():
        save_image(args.output_dir / name, np.rint(np.clip(draw(), 0, 255)).astype(np.uint8))


if __name__ == "__main__":
    run_main(main)
