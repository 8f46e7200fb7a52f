"""The published import path of the config reader."""

from opensora.cli.config_files import parse_configs
from opensora.config.mmengine import (
    check_fields,
    check_finite,
    device_arguments,
    field_names,
    precision,
    read_config,
    read_config_file,
)

__all__ = [
    "check_fields",
    "check_finite",
    "device_arguments",
    "field_names",
    "parse_configs",
    "precision",
    "read_config",
    "read_config_file",
]
