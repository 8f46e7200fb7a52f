"""Writes random weights with the layout and sizes of the published release, for measurements without the download:

    python tools/make_full_size_release.py --output_dir DIR

DIR/LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640      transformer, 2.77 G parameters
DIR/LanguageBind/Open-Sora-Plan-v1.3.0/vae                autoencoder, 0.15 G parameters, always float32
DIR/google/mt5-xxl                                        text encoder, 5.66 G parameters, with a tokenizer

In bfloat16, the default, it writes 17.5 GB. Videos made with these weights are noise.
"""

from __future__ import annotations

import sys

try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import FullSizeReleaseOptions
    from opensora.config.options import from_mapping
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")


def main() -> None:
    description = "Writes random weights with the layout and sizes of the published release."
    options = from_mapping(FullSizeReleaseOptions, vars(parse_flags(description, (FullSizeReleaseOptions,))))
    from opensora.cli.full_size_release import TEXT_ENCODER, TRANSFORMER, components, write_release  # imports MindSpore

    transformer = {**TRANSFORMER, "num_layers": options.layers or TRANSFORMER["num_layers"]}
    text_encoder = {**TEXT_ENCODER, "num_layers": options.text_layers or TEXT_ENCODER["num_layers"]}
    release = components(options.dtype, transformer, text_encoder=text_encoder)
    write_release(options.output_dir, release, options.tokenizer, options.seed)


if __name__ == "__main__":
    run_main(main)
