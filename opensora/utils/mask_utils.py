"""The published import path of the inpaint masks."""

from opensora.datasets.masks import *  # noqa: F403
