"""The names that tools give to the tensors of LoRA files, resolved to the layers of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from opensora.config.options import did_you_mean
from opensora.errors import UserError

LONGEST_NAME = 1000
# Prefixes of the names of layers, which may be nested: of PEFT, diffusers, ComfyUI and of kohya's tools.
PREFIXES = ("base_model.model.", "model.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")
# A is also called down, and B up. PEFT inserts the name of the adapter.
FACTOR = re.compile(r"(.+)\.(?:lora_(A|B)(?:(?:\.[^.]+)?\.weight)?|lora(?:_linear_layer)?[._](down|up)\.weight)")
PARTS = {"A": "a", "down": "a", "B": "b", "up": "b"}
ALPHA = ".alpha"
TEXT_ENCODER = re.compile(r"(?:base_model\.model\.)?(?:lora_te\d*_|text_encoders?(?:_\d+)?\.)")
UNSUPPORTED = (
    (re.compile(r"lora_magnitude_vector|dora_scale"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.b?oft_"), "OFT"),
    (re.compile(r"\.(?:diff|diff_b|set_weight)$"), "a difference of whole tensors"),
    (re.compile(r"\.lora_mid\."), "LoRA of convolutions"),
    (re.compile(r"\.lora_embedding_[AB]"), "LoRA of embeddings"),
    (re.compile(r"\.lora_(?:A|B|down|up)(?:\.[^.]+)?\.bias$"), "LoRA with biases"),
)


class LayerNames(NamedTuple):
    """The names of a layer's tensors; `stem` is what they begin with."""

    stem: str
    a: str
    b: str
    alpha: Optional[str]


def layers_in_file(names: Iterable[str], modules: Collection[str], path: Path) -> dict[str, LayerNames]:
    """The layers of a LoRA file by the model's names for them.

    Args:
        names: of all tensors.
        modules: names of the model's linear layers.
        path: of the file, for errors.

    Raises:
        UserError: the file is not a LoRA for the model, or has tensors that cannot be applied.
    """
    names = list(names)
    _check_kind(names, path)
    parts = {name: _parse(name) for name in names}
    if not any(parsed and parsed[1] != "alpha" for parsed in parts.values()):
        raise _not_a_lora(names, modules, path)
    by_stem: dict[str, dict[str, str]] = {}
    for name, parsed in parts.items():
        if parsed is None:
            raise UserError(f"{path}: {name!r:.100} is not part of a LoRA, and no layer could be given its values")
        stem, part = parsed
        if by_stem.setdefault(stem, {}).setdefault(part, name) != name:
            raise UserError(f"{path}: the layer {stem!r:.100} comes twice; save one adapter in each file")
    return _by_module(by_stem, modules, path)


def _check_kind(names: Collection[str], path: Path) -> None:
    """Raises UserError for a text encoder's tensors and for adapters of other kinds."""
    of_text = [name for name in names if TEXT_ENCODER.match(name)]
    if of_text:
        raise UserError(
            f"{path}: {len(of_text)} of {len(names)} tensors are for the text encoder ({of_text[0]!r:.100}), "
            f"whose LoRA is not supported; save that of the transformer alone"
        )
    for pattern, kind in UNSUPPORTED:
        found = next((name for name in names if pattern.search(name)), None)
        if found is not None:
            raise UserError(
                f"{path}: {found!r:.100} is of {kind}, which is not supported; only LoRA of linear layers is"
            )


def _parse(name: str) -> Optional[tuple[str, str]]:
    """The layer's name in the file and "a", "b" or "alpha"; None for other names."""
    if len(name) > LONGEST_NAME:
        return None
    if name.endswith(ALPHA):
        return name[: -len(ALPHA)], "alpha"
    found = FACTOR.fullmatch(name)
    return (found[1], PARTS[found[2] or found[3]]) if found else None


def _not_a_lora(names: Collection[str], modules: Collection[str], path: Path) -> UserError:
    underscored = _underscored(modules)
    for name in names:
        if name.endswith(".weight") and _module(name[: -len(".weight")], modules, underscored):
            return UserError(f"{path}: holds a whole model, not a LoRA ({name!r:.100}); give it as the model's weights")
    first = f": its first tensor is {next(iter(names))!r:.100}" if names else ""
    return UserError(f"{path}: holds no LoRA, whose tensors end in .lora_A.weight or .lora_down.weight{first}")


def _by_module(by_stem: Mapping[str, Mapping[str, str]], modules: Collection[str], path: Path) -> dict[str, LayerNames]:
    underscored = _underscored(modules)
    module_of = {stem: _module(stem, modules, underscored) for stem in by_stem}
    unknown = [stem for stem, module in module_of.items() if module is None]
    if unknown:
        hint = did_you_mean(list(_without_prefixes(unknown[0]))[-1], modules)
        raise UserError(
            f"{path}: {len(unknown)} of {len(by_stem)} layers are not linear layers of this model, such as "
            f"{unknown[0]!r:.100}{hint}; the LoRA may be for another model"
        )
    layers: dict[str, LayerNames] = {}
    for stem, parts in by_stem.items():
        module = module_of[stem] or ""
        if module in layers:
            raise UserError(
                f"{path}: the layer {module} comes twice, as {layers[module].stem!r:.100} and {stem!r:.100}"
            )
        missing = [name for part, name in (("a", "lora_A"), ("b", "lora_B")) if part not in parts]
        if missing:
            raise UserError(f"{path}: the layer {stem!r:.100} has no {' and no '.join(missing)}; save the LoRA again")
        layers[module] = LayerNames(stem, parts["a"], parts["b"], parts.get("alpha"))
    return layers


def _module(stem: str, modules: Collection[str], underscored: Mapping[str, str]) -> Optional[str]:
    """The model's name of a layer, None if it has no such layer."""
    for name in _without_prefixes(stem):
        if name in modules:
            return name
        if name in underscored:
            return underscored[name]
    return None


def _without_prefixes(stem: str) -> Iterator[str]:
    """Yields the name, then the name without its first prefix, and so on."""
    name: Optional[str] = stem[:LONGEST_NAME]
    while name is not None:
        yield name
        name = next((name[len(prefix) :] for prefix in PREFIXES if name.startswith(prefix)), None)


def _underscored(modules: Collection[str]) -> dict[str, str]:
    """The layers by kohya's names, which replace the dots by underscores; without names that two layers would have."""
    counts = Counter(module.replace(".", "_") for module in modules)
    return {name: module for module in modules if counts[(name := module.replace(".", "_"))] == 1}
