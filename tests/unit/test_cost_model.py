"""The cost model against operations of the real model."""

from __future__ import annotations

import json
from dataclasses import replace

import mindspore as ms
import pytest
from mindspore import Tensor, nn, ops
from processes import ROOT
from tiny_models import DIT, VAE
from tiny_models import TEXT as TEXT_ENCODER

from opensora.config import commands
from opensora.config.families import PLAN_V1_2
from opensora.cost_model import Run, float32_count, flops, load_config, memory, parameter_count, three_digits, traffic
from opensora.cost_model.cards import CARDS, LINK_SHARE, check_card, step_seconds
from opensora.cost_model.compute import adapter_count
from opensora.cost_model.memory_plan import ModelFiles
from opensora.cost_model.memory_table import Unread
from opensora.cost_model.stages import _cached_elements, model_bytes, peak, stages
from opensora.device import PRECISIONS
from opensora.models import MT5EncoderModel, OpenSoraT2V, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.common import layers
from opensora.models.common.video_blocks import CausalConv3d
from opensora.models.dit import blocks, embeddings, v1_2
from opensora.models.dit.config import PRESETS, OpenSoraConfig
from opensora.models.lora import initial_adapters, linear_shapes, select_layers
from opensora.parallel.sequence import NoSequenceParallel, UlyssesSequenceParallel

PRESET = "OpenSoraT2V_v1_3-2B/122"
CONFIG = OpenSoraConfig.from_dict(DIT)
TEXT = 7
SIZE = {"num_frames": 9, "height": 96, "width": 160}  # 3 x 6 x 10 tokens: 4 divides them, skiparse pads to 192
ODD = {"num_frames": 5, "height": 96, "width": 96}  # 2 x 6 x 6 tokens: 5 does not divide them


class Exchange(nn.Cell):
    """An all-to-all of the first member, with the right shapes; counts the bytes that it would send."""

    def __init__(self, size: int, split_axis: int, join_axis: int, sent: list):
        super().__init__()
        self.size, self.split_axis, self.join_axis, self.sent = size, split_axis, join_axis, sent

    def construct(self, x: Tensor) -> Tensor:
        self.sent.append(x.size * x.itemsize * (self.size - 1) // self.size)
        return ops.cat(
            [x.narrow(self.split_axis, 0, x.shape[self.split_axis] // self.size)] * self.size, self.join_axis
        )


class Gather(Exchange):
    def construct(self, x: Tensor) -> Tensor:
        self.sent.append(x.size * x.itemsize * (self.size - 1))
        return ops.cat([x] * self.size, self.join_axis)


class FirstMember(UlyssesSequenceParallel):
    """The first of `size` members, without the others: real splitting and padding, no communication."""

    def __init__(self, size: int):
        NoSequenceParallel.__init__(self)
        self.size, self.index = size, 0
        self.sent = {"all_to_all_heads": [], "all_to_all_tokens": [], "gather": []}
        self.tokens_to_heads = Exchange(size, 2, 1, self.sent["all_to_all_heads"])
        self.heads_to_tokens = Exchange(size, 1, 2, self.sent["all_to_all_tokens"])
        self.gather_tokens = Gather(size, 1, 1, self.sent["gather"])


def counted_forward(run: Run, monkeypatch) -> tuple[dict[str, int], dict[str, list[int]]]:
    """FLOPs and bytes sent of a real forward pass, counted in the operators."""
    counts = dict.fromkeys(("linear", "text", "self", "cross"), 0)
    kind = "linear"
    multiply, multiply_stacked = layers.linear, layers.stacked_linear
    attend, attend_stacked = blocks.attention, blocks.self_attention

    def count_product(x, weight, bias=None, frozen=False):
        counts[kind] += 2 * x.size * weight.shape[0]
        return multiply(x, weight, bias)

    def count_products(x, *parameters):
        counts[kind] += sum(2 * x.size * weight.shape[0] for weight in parameters[::2])
        return multiply_stacked(x, *parameters)

    def count_attention(q, k, v, bias=None):
        counts["cross"] += 2 * 2 * q.size * k.shape[1]
        return attend(q, k, v, bias)

    def count_self_attention(qkv, bias=None):
        counts["self"] += 2 * 2 * qkv.size // 3 * qkv.shape[1]
        return attend_stacked(qkv, bias)

    monkeypatch.setattr(layers, "linear", count_product)
    monkeypatch.setattr(layers, "stacked_linear", count_products)
    monkeypatch.setattr(embeddings, "linear", count_product)  # of patches
    monkeypatch.setattr(blocks, "attention", count_attention)
    monkeypatch.setattr(blocks, "self_attention", count_self_attention)
    model = OpenSoraT2V_v1_3(**run.config.to_dict()).set_train(False)
    member = FirstMember(run.sp_size)
    model.parallelize(member)
    latents = ops.ones((run.batch_size, *run.latents), ms.float32)
    text = ops.ones((run.batch, 1, run.max_sequence_length, run.config.caption_channels), ms.float32)
    kind = "text"
    states = model.text_states(text)
    kind = "linear"
    output = model(latents, ops.ones((run.batch_size,), ms.float32), None, None, None, states)
    assert output.shape == (run.batch, run.config.out_channels, *run.latents[1:])
    return counts, member.sent


@pytest.mark.parametrize(
    "config, size, sp_size, guidance_scale",
    [
        (DIT, SIZE, 1, 1.0),
        (DIT, SIZE, 4, 7.5),
        (DIT, ODD, 2, 1.0),
        (
            {
                **DIT,
                "num_attention_heads": 5,
                "cross_attention_dim": 120,
                "sparse1d": False,
                "in_channels": 4,
                "attention_bias": False,
            },
            ODD,
            5,
            1.0,
        ),
    ],
)
def test_flops_and_traffic_equal_those_of_the_model(config, size, sp_size, guidance_scale, monkeypatch):
    run = Run(
        OpenSoraConfig.from_dict(config),
        **size,
        sp_size=sp_size,
        world_size=sp_size,
        precision="fp32",
        max_sequence_length=TEXT,
        guidance_scale=guidance_scale,
    )
    counts, sent = counted_forward(run, monkeypatch)
    planned = flops(run)
    assert planned["linear maps"] == counts["linear"]
    assert planned["self-attention, dense"] + planned["self-attention, skiparse"] == counts["self"]
    assert planned["cross-attention"] == counts["cross"]
    assert planned["once per prompt: linear maps of the text"] == counts["text"]
    moved = traffic(run)
    assert moved["all-to-all of q, k, v"] == sum(sent["all_to_all_heads"]) and len(sent["all_to_all_heads"]) == 4
    assert moved["all-to-all of attention's output"] == sum(sent["all_to_all_tokens"])
    assert moved["all-gather of the prediction"] == sum(sent["gather"])


@pytest.mark.parametrize("changes", [{}, {"attention_bias": False, "num_layers": 3}, {"out_channels": 4}])
def test_parameter_count_equals_that_of_the_model(changes):
    config = {**DIT, **changes}
    model = OpenSoraT2V_v1_3.without_weights(**config)
    assert parameter_count(OpenSoraConfig.from_dict(config)) == sum(p.size for p in model.get_parameters())


def test_preset_equals_the_published_model():
    model = OpenSoraT2V_v1_3.without_weights(**PRESETS[PRESET])  # shapes alone
    assert parameter_count(load_config(PRESET)) == sum(p.size for p in model.get_parameters())
    run = Run(load_config(PRESET))
    assert run.latents == (8, 24, 44, 80) and run.tokens == 24 * 22 * 40
    assert Run(load_config(PRESET), sp_size=8, world_size=8).own_tokens == 24 * 22 * 40 // 8


def test_model_of_v1_2_is_counted(run, tmp_path):
    """It has dense attention alone, and other autoencoders."""
    model = OpenSoraT2V.without_weights(**v1_2.PRESETS[PLAN_V1_2])
    config = load_config(PLAN_V1_2)
    assert parameter_count(config) == sum(p.size for p in model.get_parameters())
    model.save_config(tmp_path)
    assert load_config(str(tmp_path)) == config
    cost = flops(Run(config, num_frames=29, height=480, width=640))
    assert cost["self-attention, skiparse"] == 0 and Run(config, num_frames=29, height=480, width=640).latents[0] == 4
    assert cost["self-attention, dense"] == 32 * 4 * (8 * 30 * 40) ** 2 * 2304
    finished = run("opensora/cost_model/__main__.py", "--model", PLAN_V1_2, "--memory", "20GB")
    assert finished.stderr.endswith(
        f"--memory plans the models of v1.3, and --model {PLAN_V1_2} is of v1.2; leave it out\n"
    )
    with pytest.raises(ValueError, match="latte_v1_0.json: holds a LatteT2V .*; --model needs an OpenSoraT2V_v1_3"):
        load_config(str(ROOT / "scripts/train_configs/latte_v1_0.json"))


@pytest.mark.parametrize("dtype", [ms.float16, ms.float32])
def test_weights_equal_those_of_the_model(dtype):
    model = OpenSoraT2V_v1_3.without_weights(**DIT).cast(dtype)
    run = Run(CONFIG, precision={ms.float16: "fp16", ms.float32: "fp32"}[dtype])
    assert memory(run)["weights"] == sum(p.nbytes for p in model.get_parameters())


@pytest.mark.parametrize(
    "stage, bytes_16, bytes_32",
    [(0, 16, 16), (1, 4 + 12 / 64, 8 + 8 / 64), (2, 2 + 14 / 64, 4 + 12 / 64), (3, 14 / 64, 16 / 64)],
)
def test_zero_memory_equals_that_of_the_paper(stage, bytes_16, bytes_32):
    """Rajbhandari et al. 2020, figure 1: 120, 31.4, 16.6 and 1.9 GB for 7.5 billion parameters on 64 processes.

    With stage 3, 16-bit weights are gathered from the master weights, so that the paper's 2 bytes for them are saved.
    """
    cost = memory(Run(CONFIG, world_size=64, zero_stage=stage, training=True))
    states = sum(cost[name] for name in ("weights", "gradients", "float32 master weights", "optimizer states"))
    single = float32_count(CONFIG)  # parameters that the paper does not have
    of_paper = (states - bytes_32 * single) / (parameter_count(CONFIG) - single)
    assert of_paper == pytest.approx(bytes_16)
    saved = 2 / 64 if stage == 3 else 0
    assert 7.5 * (of_paper + saved) == pytest.approx({0: 120, 1: 31.4, 2: 16.6, 3: 1.9}[stage], abs=0.05)


def test_training_traffic_depends_on_the_stage():
    def gradients(stage, world_size):
        run = Run(CONFIG, world_size=world_size, zero_stage=stage, training=True, precision="fp32")
        return traffic(run)["sum"] / (4 * parameter_count(CONFIG))

    assert [gradients(stage, 4) for stage in range(4)] == pytest.approx([1.5, 1.5, 1.5, 2.25])
    assert gradients(2, 1) == 0


@pytest.mark.parametrize("weights", [None, "fp32", "bf16", "q8_0"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_counts_equal_those_of_the_model(precision, weights):
    """The parameters of the default adapters, and the bytes of the frozen weights as they are held."""
    run = Run(CONFIG, training=True, lora_rank=3, frozen_weights=weights, precision=precision)
    model = OpenSoraT2V_v1_3.without_weights(**DIT)
    shapes = linear_shapes(model)
    trained = initial_adapters({name: shapes[name] for name in select_layers(shapes, model.lora_targets)}, 3, 3, 0)
    assert adapter_count(run) == sum(lora.a.size + lora.b.size for lora in trained.values())
    stored = {"fp32": "F32", "bf16": "BF16"}[precision]
    tensors = {name: Unread(parameter.shape, stored) for name, parameter in model.parameters_and_names()}
    held = ModelFiles(model, tensors, PRECISIONS[precision], weights or precision).hold("transformer", False, 0, False)
    counted = memory(run)
    assert counted["weights"] == held.total
    assert counted["optimizer states"] == 8 * adapter_count(run)
    assert counted["float32 master weights"] == (0 if precision == "fp32" else 4 * adapter_count(run))


def test_lora_needs_less_than_training_all_weights():
    whole, lora = (Run(load_config(PRESET), training=True, lora_rank=rank) for rank in (None, 64))
    states = ("gradients", "float32 master weights", "optimizer states")
    assert sum(memory(lora)[name] for name in states) < 0.05 * sum(memory(whole)[name] for name in states)
    assert 0.6 < flops(lora)["sum"] / flops(whole)["sum"] < 0.9
    shared = [traffic(replace(run, world_size=2)) for run in (whole, lora)]
    assert shared[1]["all-reduce of gradients"] < 0.05 * shared[0]["all-reduce of gradients"]


def test_gradient_checkpointing_trades_flops_for_memory():
    plain = Run(CONFIG, sp_size=2, world_size=2, training=True)
    saving = replace(plain, gradient_checkpointing=True)
    assert memory(saving)["activations (estimate)"] < memory(plain)["activations (estimate)"]
    assert flops(saving)["cross-attention"] * 3 == flops(plain)["cross-attention"] * 4
    assert traffic(saving)["all-to-all of q, k, v"] * 2 == traffic(plain)["all-to-all of q, k, v"] * 3
    forward = Run(CONFIG, sp_size=2, world_size=2)
    once = flops(forward)["once per prompt: linear maps of the text"]
    assert flops(plain)["sum"] == 3 * (flops(forward)["sum"] + once)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sp_size": 5, "world_size": 5}, "24 attention heads.*1, 2, 3, 4, 6, 8, 12, 24"),
        ({"sp_size": 3, "world_size": 8}, "8 processes.*1, 2, 4, 8"),
        ({"num_frames": 92}, "num_frames 92.*89, 93"),
        ({"height": 360}, "height 360.*352, 384"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"precision": "int8"}, "int8' is not one of bf16, fp16, fp32"),
        ({"zero_stage": 4, "training": True}, "zero_stage 4 is not one of 0, 1, 2, 3"),
        ({"zero_stage": 2}, "zero_stage is for training"),
        ({"guidance_scale": 7.5, "training": True}, "guidance_scale 7.5 is for sampling"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        Run(load_config(PRESET), **settings)


@pytest.mark.parametrize("model, config", [(MT5EncoderModel, TEXT_ENCODER), (WFVAEModel, VAE)])
def test_bytes_of_other_models_equal_those_of_the_cast_model(model, config):
    counted = model_bytes(model.without_weights(**config), 2)
    assert counted == sum(p.nbytes for p in model.without_weights(**config).cast(ms.float16).get_parameters())


def test_cached_frames_equal_those_of_the_decoder(monkeypatch):
    cached = []
    convolve = CausalConv3d.construct

    def record(self, x, cache=None, last=True):
        y, new_cache = convolve(self, x, cache, last)
        cached.append(new_cache.size)
        return y, new_cache

    monkeypatch.setattr(CausalConv3d, "construct", record)
    model = WFVAEModel(**VAE).set_train(False)
    model.decoder(ops.ones((1, 8, 3, 4, 6), ms.float32), None, False)
    assert _cached_elements(model, 4, 6) == sum(cached) > 0


def test_time_follows_from_the_figures_of_the_card():
    card = CARDS["910b"]
    runs = [Run(load_config(PRESET), sp_size=p, world_size=p) for p in (1, 2, 8)]
    times = [step_seconds(run, card, 0.5) for run in runs]
    for run, seconds in zip(runs, times):
        assert seconds["computation"] == flops(run)["sum"] / (0.5 * 313e12)
    assert times[0]["communication"] == 0
    assert times[1]["communication"] == pytest.approx(
        traffic(runs[1])["sum"] / (LINK_SHARE * 28e9)
    )  # one of seven links
    assert times[2]["communication"] == pytest.approx(traffic(runs[2])["sum"] / (LINK_SHARE * 196e9))
    two_servers = Run(load_config(PRESET), sp_size=24, world_size=24)
    assert step_seconds(two_servers, card, 0.5)["communication"] is None
    training = Run(load_config(PRESET), sp_size=2, world_size=8, training=True)
    exchanged = sum(sent for name, sent in traffic(training).items() if name.endswith(("q, k, v", "output", "tion")))
    reduced = traffic(training)["all-reduce of gradients"]
    assert step_seconds(training, card, 1)["communication"] == pytest.approx(
        (exchanged / 28e9 + reduced / 196e9) / LINK_SHARE
    )


def test_memory_of_a_sampling_run():
    run = Run(load_config(PRESET), guidance_scale=7.5, precision="fp16")
    of_stages = stages(run, CARDS["910b"])
    assert of_stages["transformer"]["sum"] == memory(run)["sum"]
    assert of_stages["text encoder"]["weights"] == pytest.approx(11.31e9, rel=1e-3)
    weights = sum(stage["weights"] for stage in of_stages.values())
    assert peak(of_stages, save_memory=True) == of_stages["text encoder"]["sum"] > weights / 2
    assert weights < peak(of_stages, save_memory=False) < sum(stage["sum"] for stage in of_stages.values())
    scores = stages(run, CARDS["910a"])["transformer"]["sum"] - of_stages["transformer"]["sum"]
    assert scores == (1 << 25) * 2 * (2 + 4)


def test_cards_are_those_of_the_flag():
    assert tuple(CARDS) == commands.CARDS
    with pytest.raises(ValueError, match="--card 910a has figures for --precision fp16, not bf16"):
        check_card("910a", Run(CONFIG))
    for settings in ({"efficiency": 0.0}, {"efficiency": 1.5}, {"num_sampling_steps": 0}):
        with pytest.raises(ValueError, match="--efficiency|--num_sampling_steps"):
            commands.CostFlags(PRESET, **settings)


def test_command_accepts_a_folder(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DIT))
    finished = run("-m", "opensora.cost_model", "--model", tmp_path, "--sp_size", 1, 4, "--num_frames", 5)
    assert finished.returncode == 0, finished.stderr
    assert f"{parameter_count(CONFIG):,} parameters" in finished.stdout
    assert "| tokens | 1,760 | 440 |" in finished.stdout

    (tmp_path / "config.json").write_text(json.dumps({"latent_dim": 8}))
    for model, message in ((tmp_path, "latent_dim"), ("2B/122", PRESET)):
        finished = run("-m", "opensora.cost_model", "--model", model)
        assert finished.returncode == 1 and message in finished.stderr
        assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1


def test_documented_tables_are_the_commands_output(run):
    text = (ROOT / "docs/parallelism.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("python -m opensora.parallel.plan")]
    assert len(commands) == 3
    for command in commands:
        assert run(*command).stdout in text


def test_command_counts_for_a_card(run):
    flags = ("-m", "opensora.cost_model", "--model", PRESET, "--sp_size", 8, 24, "--card", "910b", "--efficiency", 0.5)
    finished = run(*flags, "--num_sampling_steps", 30)
    assert finished.returncode == 0, finished.stderr
    one = Run(load_config(PRESET), sp_size=8, world_size=8)
    seconds = 30 * sum(step_seconds(one, CARDS["910b"], 0.5).values())
    assert "910b: 313 TFLOP/s in 16 bits, 64 GB; counted at 50% of this peak" in finished.stdout
    assert f"| minutes of 30 steps | {three_digits(seconds / 60)} | not counted |" in finished.stdout
    assert finished.stdout.count(", fits |") == 4
