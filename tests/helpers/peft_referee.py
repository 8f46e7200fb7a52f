"""PEFT and diffusers load a LoRA of this project and make LoRAs for it; see tests/unit/checkpoint/test_lora_peft.py.

    python peft_referee.py FOLDER

Runs where torch, peft and diffusers are installed, without this project. FOLDER holds weights.npz (W by layer),
inputs.npz (x by layer) and ours/pytorch_lora_weights.safetensors. Written are

    peft.npz, diffusers.npz         the outputs of the layers with that LoRA
    trained, rslora                 folders of LoRAs that PEFT trained; trained.npz, rslora.npz: their changes of W
    saved, adapter                  the first of them as pipelines and as models of diffusers save it
    report.json                     versions, and the keys of our file that did not fit
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from safetensors import safe_open
from safetensors.torch import load_file

FOLDER = Path(sys.argv[1])
WEIGHTS, INPUTS = dict(np.load(FOLDER / "weights.npz")), dict(np.load(FOLDER / "inputs.npz"))
OURS = FOLDER / "ours/pytorch_lora_weights.safetensors"
TARGETS = ["to_q", "to_out.0", "net.0.proj", "ff.net.2", "proj_out"]


class Transformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """A tree of linear layers with the names of the transformer; each has its own input."""

    @register_to_config
    def __init__(self):
        super().__init__()
        for name, weight in WEIGHTS.items():
            *parents, last = name.split(".")
            module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = torch.from_numpy(weight.copy())
            module.add_module(last, linear)

    def outputs(self) -> dict[str, torch.Tensor]:
        return {name: self.get_submodule(name)(torch.from_numpy(x)) for name, x in INPUTS.items()}

    def forward(self):
        return sum(output.square().sum() for output in self.outputs().values())


class Pipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    def __init__(self, transformer):
        super().__init__()
        self.register_modules(transformer=transformer)


def save_arrays(name: str, tensors: dict[str, torch.Tensor]) -> None:
    np.savez(FOLDER / name, **{key: value.detach().numpy() for key, value in tensors.items()})


def load_with_peft() -> dict[str, list[str]]:
    """Loads the file in the steps of diffusers; returns the keys that are missing or unexpected."""
    state = {name.removeprefix("transformer."): value for name, value in load_file(OURS).items()}
    with safe_open(OURS, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    config = peft.LoraConfig(**{key.removeprefix("transformer."): value for key, value in config.items()})
    model = Transformer()
    peft.inject_adapter_in_model(config, model)
    result = peft.set_peft_model_state_dict(model, state)
    save_arrays("peft.npz", model.outputs())
    missing = [key for key in result.missing_keys if "lora_" in key]
    return {"unexpected": list(result.unexpected_keys), "missing": missing}


def load_with_diffusers() -> None:
    pipeline = Pipeline(Transformer())
    pipeline.load_lora_weights(OURS.parent, weight_name=OURS.name)
    save_arrays("diffusers.npz", pipeline.transformer.outputs())


def train(name: str, **settings) -> None:
    """Trains an adapter with PEFT for a few steps and saves its folder and its changes of the weights."""
    patterns = {"rank_pattern": {"net.0.proj": 7}, "alpha_pattern": {r"1\.ff\.net\.2": 5, "^proj_out": 2}}
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, **patterns, **settings)
    model = peft.get_peft_model(Transformer(), config)
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    model.save_pretrained(FOLDER / name)
    layers = {layer: model.base_model.model.get_submodule(layer) for layer in WEIGHTS}
    save_arrays(f"{name}.npz", {layer: module.get_delta_weight("default") for layer, module in layers.items()})


def save_with_diffusers() -> None:
    """Saves the trained adapter as pipelines and as models of diffusers do."""
    adapted = peft.PeftModel.from_pretrained(Transformer(), FOLDER / "trained")
    metadata, state = adapted.peft_config["default"].to_dict(), peft.get_peft_model_state_dict(adapted)
    state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
    Pipeline.save_lora_weights(FOLDER / "saved", state, transformer_lora_adapter_metadata=metadata)
    model = Transformer()
    model.load_lora_adapter(FOLDER / "saved", weight_name=OURS.name, adapter_name="default")
    model.save_lora_adapter(FOLDER / "adapter")


if __name__ == "__main__":
    torch.manual_seed(0)
    report = {"versions": {module.__name__: module.__version__ for module in (torch, peft, sys.modules["diffusers"])}}
    report.update(load_with_peft())
    load_with_diffusers()
    train("trained")
    train("rslora", use_rslora=True)
    save_with_diffusers()
    (FOLDER / "report.json").write_text(json.dumps(report))
