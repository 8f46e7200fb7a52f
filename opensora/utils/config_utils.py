"""The published import path of the config reader."""

from opensora.config.mmengine import *  # noqa: F403
