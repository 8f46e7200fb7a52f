"""The published path of the config files' reader."""

from opensora.config.mmengine import *  # noqa: F403
