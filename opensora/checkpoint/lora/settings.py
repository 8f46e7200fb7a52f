"""The settings of a LoRA, which scale its product, and their form in files of PEFT, diffusers and kohya."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional, TypeVar, Union

from opensora.errors import UserError
from opensora.utils.json_text import parse_json
from opensora.utils.numbers import finite_number, whole_number

METADATA_KEY = "lora_adapter_metadata"  # of diffusers, in the header of a safetensors file
COMPONENT = "transformer."  # the prefix of diffusers for the model of a pipeline, in that json and in tensor names
LARGEST_RANK = 1 << 20
MOST_PATTERNS = 2000
# PEFT's patterns are regular expressions. Those of strangers are not evaluated, as they may take exponential time.
PLAIN_PATTERN = re.compile(r"\^?(?:\w|-|\\?\.)+\$?")
# Initializations that leave the base weights as they are. The others subtract the product from them.
PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Options of LoraConfig under which a layer computes something else than W x + factor B A x.
VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "kasa_config", "alora_invocation_tokens")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LoRASettings:
    """The settings with which a LoRA was trained, as in PEFT's LoraConfig.

    A key of a pattern is the name of a layer, or its last components, or after "^" the whole name.

    Attributes:
        rank: of the layers that `rank_pattern` does not name.
        alpha: of the layers that `alpha_pattern` does not name; a layer's factor is alpha / rank.
        dropout: probability with which elements of the input of A are zero in training.
        target_modules: names of the layers, or their last components, or a regular expression for the whole name.
        rank_pattern: ranks of other layers.
        alpha_pattern: alphas of other layers.
        use_rslora: the factor is alpha / sqrt(rank).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    target_modules: Union[str, Sequence[str]] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    @classmethod
    def from_config(cls, config: Any, where: str) -> LoRASettings:
        """The settings in the json of a LoraConfig.

        Args:
            config: the content of adapter_config.json.
            where: name of the source, for errors.

        Raises:
            UserError: values of wrong types, or a feature that would change the product.
        """
        if not isinstance(config, dict):
            raise UserError(f"{where}: should be a json object")
        _check_features(config, where)
        targets = config.get("target_modules") or ()
        if not isinstance(targets, str) and not _is_list_of_texts(targets):
            raise UserError(f"{where}: target_modules {targets!r:.60} should be a list of names or a text")
        return cls(
            rank=whole_number(config.get("r"), f"{where}: r", 1, LARGEST_RANK),
            alpha=finite_number(config.get("lora_alpha"), f"{where}: lora_alpha", 0),
            dropout=finite_number(config.get("lora_dropout") or 0, f"{where}: lora_dropout", 0, 1),
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            rank_pattern={
                key: whole_number(value, f"{where}: rank_pattern {key!r:.60}", 1, LARGEST_RANK)
                for key, value in _pattern(config, "rank_pattern", where).items()
            },
            alpha_pattern={
                key: finite_number(value, f"{where}: alpha_pattern {key!r:.60}", 0)
                for key, value in _pattern(config, "alpha_pattern", where).items()
            },
            use_rslora=_flag(config, "use_rslora", where),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], where: str) -> Optional[LoRASettings]:
        """The settings in the metadata of a safetensors file of diffusers or kohya; None: there are none.

        Raises:
            UserError: invalid json; also as `from_config`. `where` names the file.
        """
        if METADATA_KEY in metadata:
            where = f"{where}: {METADATA_KEY}"
            try:
                config = parse_json(metadata[METADATA_KEY].encode())
            except ValueError as error:
                raise UserError(f"{where}: not json ({error!s:.200})") from error
            return cls.from_config(_of_transformer(config), where)
        try:
            return cls(
                whole_number(metadata["ss_network_dim"], "ss_network_dim", 1, LARGEST_RANK),
                finite_number(metadata["ss_network_alpha"], "ss_network_alpha", 0),
            )
        except (KeyError, UserError):  # kohya's tools also write "None" and "Dynamic"
            return None

    def to_config(self) -> dict[str, Any]:
        """The keyword arguments of PEFT's LoraConfig."""
        targets = self.target_modules
        return {
            "r": self.rank,
            "lora_alpha": _shortest(self.alpha),
            "lora_dropout": self.dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": {name: _shortest(alpha) for name, alpha in self.alpha_pattern.items()},
            "use_rslora": self.use_rslora,
            "use_dora": False,
            "bias": "none",
        }

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file as diffusers writes and reads them."""
        config = {f"{COMPONENT}{key}": value for key, value in self.to_config().items()}
        return {METADATA_KEY: json.dumps(config, indent=2)}

    def rank_of(self, *names: str) -> int:
        """The rank of a layer, which may have several names."""
        return _first_match(self.rank_pattern, names, self.rank)

    def factor_of(self, *names: str) -> float:
        """What the product of a layer's matrices is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
        return _first_match(self.alpha_pattern, names, self.alpha) / self._divisor(self.rank_of(*names))

    def fitted(self, ranks: Mapping[str, int], factors: Mapping[str, float]) -> LoRASettings:
        """These settings with patterns and targets that give the layers their ranks and factors.

        Args:
            ranks: rank of each layer by name.
            factors: the factors of some of the layers; the others have that of their rank and alpha.
        """
        # New entries come first, since the first match counts, and replace older ones of the same key.
        rank_pattern = {f"^{name}": rank for name, rank in ranks.items() if rank != self.rank_of(name)}
        fitted = replace(self, rank_pattern={**rank_pattern, **self.rank_pattern, **rank_pattern})
        alpha_pattern = {
            f"^{name}": float(factor) * self._divisor(ranks[name])
            for name, factor in factors.items()
            if factor != fitted.factor_of(name)
        }
        selects_all = not isinstance(self.target_modules, str) and all(map(self._selects, ranks))
        return replace(
            fitted,
            alpha_pattern={**alpha_pattern, **self.alpha_pattern, **alpha_pattern},
            target_modules=self.target_modules if selects_all else tuple(ranks),
        )

    def _divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.use_rslora else rank

    def _selects(self, name: str) -> bool:
        """Whether PEFT adapts the layer for a list of targets."""
        return any(name == target or name.endswith(f".{target}") for target in self.target_modules)


def _check_features(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind.upper() != "LORA":
        raise UserError(f"{where}: peft_type {kind!r:.60} is not supported; it should be LORA")
    for variant in VARIANTS:
        if config.get(variant):
            raise UserError(f"{where}: {variant} is not supported; train without it")
    if config.get("bias") not in (None, "none") or _flag(config, "lora_bias", where):
        raise UserError(f"{where}: trained biases are not supported; train with bias none")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_INITIALIZATIONS:
        raise UserError(
            f"{where}: init_lora_weights {start!r:.60} also changes the base weights, which is not supported; "
            f"convert the adapter to one for the original weights with PEFT's path_initial_model_for_weight_conversion"
        )


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key} {value!r:.60} should be true or false")
    return value


def _pattern(config: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or len(pattern) > MOST_PATTERNS:
        raise UserError(f"{where}: {key} should be a json object with at most {MOST_PATTERNS} names")
    for name in pattern:
        if not PLAIN_PATTERN.fullmatch(name):
            raise UserError(f"{where}: {key} {name!r:.100} is a regular expression; only names of layers are supported")
    return pattern


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _of_transformer(config: Any) -> Any:
    """The values for the transformer in the json of a pipeline's LoRAs. The json of other writers has no prefixes."""
    if not isinstance(config, dict):
        return config
    own = {key[len(COMPONENT) :]: value for key, value in config.items() if key.startswith(COMPONENT)}
    return own or config


def _first_match(pattern: Mapping[str, Number], names: Sequence[str], default: Number) -> Number:
    return next((value for key, value in pattern.items() if any(_matches(key, name) for name in names)), default)


def _matches(key: str, name: str) -> bool:
    plain = key.replace("\\", "").rstrip("$")
    return name == plain.lstrip("^") or name.endswith(f".{plain}")


def _shortest(number: float) -> Union[int, float]:
    """The number as PEFT declares it, an integer, if it is one."""
    return int(number) if number == int(number) else number
