"""The benchmark programs run, and what they count is what the models do."""

from __future__ import annotations

import json
from types import SimpleNamespace

import mindspore as ms
import pytest
from mindspore import Tensor
from PIL import Image
from tiny_models import DIT, TEXT, VAE

from benchmarks.cases import CASES, Case, normal
from benchmarks.convolution_onednn import Layer, build_wrapper, measure
from benchmarks.plot import COLORS, Panel, log_log, scale, ticks
from benchmarks.run import check_alike, roofline, summary
from benchmarks.work import WORK, Work, attention, convolution, linear, transformer
from opensora.cost_model import Run, flops
from opensora.models import WFVAEModel
from opensora.models.common.layers import Conv2d, Conv3d
from opensora.models.common.video_blocks import AttnBlock3DFix
from opensora.models.dit.config import OpenSoraConfig
from opensora.ops.cpu.build import library
from opensora.ops.cpu.custom_op import ONEDNN, has_sgemm


def test_hand_counts():
    assert linear(rows=10, inputs=3, outputs=5) == Work(2 * 10 * 3 * 5, 4 * (10 * 3 + 3 * 5 + 10 * 5))
    # Every query meets every key twice, once for its score and once for the sum of the values; 2 heads of 4 numbers.
    assert attention(batch=2, queries=6, keys=7, width=8) == Work(2 * (2 * 2 * 6 * 7 * 8), 4 * 2 * 8 * (6 + 7 + 7 + 6))
    # 4 positions of 6 channels, each from 3 channels of 2x2 positions, without overlap.
    assert convolution(4, (6, 3, 2, 2), stride=2) == Work(2 * 4 * 6 * 3 * 4, 4 * (16 * 3 + 6 * 3 * 4 + 4 * 6))
    assert (Work(1, 2) + Work(10, 20)) * 3 == Work(33, 66)


def test_text_encoder_by_hand():
    rows, width, inner, hidden = 2 * 5, TEXT["d_model"], TEXT["num_heads"] * TEXT["d_kv"], TEXT["d_ff"]
    layer = 2 * rows * (4 * width * inner + 3 * width * hidden) + 2 * 2 * rows * 5 * inner
    assert WORK["mt5"](Case("", TEXT, (2, 5))).flops == TEXT["num_layers"] * layer


@pytest.mark.parametrize("latents", [(1, 8, 3, 12, 20), (2, 8, 2, 12, 12)])
def test_transformer_agrees_with_the_plan(latents):
    """The plan's counts are themselves compared with a run of the model."""
    batch, _, frames, height, width = latents
    case = Case("", DIT, latents, text=7)
    run = Run(
        OpenSoraConfig.from_dict(DIT), 4 * frames - 3, 8 * height, 8 * width, batch_size=batch, max_sequence_length=7
    )
    planned = flops(run)
    text, step = transformer(case, batch)
    assert step.flops == planned["sum"]
    assert text.flops == planned["once per prompt: linear maps of the text"]
    assert WORK["dit_step"](case) == text + step
    assert WORK["train_step"](case).flops == 3 * (text.flops + step.flops)
    text, step = transformer(case, 2 * batch)
    assert WORK["sampling"](case) == text + step * 10


@pytest.mark.parametrize("name, shape", [("vae_encode", (1, 3, 9, 32, 48)), ("vae_decode", (1, 8, 3, 4, 6))])
def test_autoencoder_agrees_with_a_run(name, shape):
    counted = []

    def count_convolution(cell, inputs, output):
        stride = inputs[0].shape[-1] // output.shape[-1]
        b, t, _, h, w = output.shape
        counted.append(convolution(b * t * h * w, cell.weight.shape, stride))

    def count_attention(cell, inputs, output):
        b, t, c, h, w = output.shape
        counted.append(attention(b * t, h * w, h * w, c))

    config = {**VAE, "connect_res_layer_num": 2}
    model = WFVAEModel(**config).set_train(False)
    for _, cell in model.cells_and_names():
        if isinstance(cell, (Conv2d, Conv3d)):
            cell.register_forward_hook(count_convolution)
        if isinstance(cell, AttnBlock3DFix):
            cell.register_forward_hook(count_attention)
    (model.encode if name == "vae_encode" else model.decode)(Tensor(normal(shape)))
    assert len(counted) > 20
    assert WORK[name](Case("", config, shape)) == sum(counted, Work())


def test_roof_is_what_binds():
    machine = {"gemm_flops_per_second": 100.0, "copy_bytes_per_second": 10.0}
    products = roofline({"flops": 400, "bytes": 8, "mindspore": {"median": 8.0}}, machine)
    assert (products["gemm_share"], products["copy_share"], products["roof_share"]) == (0.5, 0.1, 0.5)
    copies = roofline({"flops": 8, "bytes": 60, "mindspore": {"median": 8.0}}, machine)
    assert (copies["gemm_share"], copies["copy_share"], copies["roof_share"]) == (0.01, 0.75, 0.75)


def worker(parameters: int, result: list) -> SimpleNamespace:
    return SimpleNamespace(facts={"version": "1", "parameters": parameters}, first={"seconds": 9.0, "result": result})


def test_summary():
    runs = [{"seconds": seconds, "peak_bytes": peak} for seconds, peak in ((3.0, 1), (1.0, 2), (2.0, 4))]
    values = summary(worker(1, []), runs)
    assert (values["median"], values["min"], values["max"], values["peak_bytes"]) == (2.0, 1.0, 3.0, 4)


def test_other_models_are_not_compared():
    check_alike("x", worker(5, [1.0, 100.0]), worker(5, [1.05, 100.0]))
    with pytest.raises(ValueError, match="x: 5 parameters, in PyTorch 6"):
        check_alike("x", worker(5, [1.0]), worker(6, [1.0]))
    for wrong in (1.2, float("nan")):
        with pytest.raises(ValueError, match="x: results differ"):
            check_alike("x", worker(5, [wrong, 100.0]), worker(5, [1.0, 100.0]))


def test_program_writes_what_it_measured(run, tmp_path):
    finished = run(
        "benchmarks/run.py", "--case", "sampling", "--repeat", 1, "--threads", 1, "--json", tmp_path / "figures.json"
    )
    assert finished.returncode == 0, finished.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["machine"]["cores"] == 1
    assert figures["machine"]["gemm_flops_per_second"] > figures["machine"]["copy_bytes_per_second"] > 0
    assert figures["settings"] == {"device": "CPU", "mode": 1, "repeat": 1}
    case = figures["cases"]["sampling"]
    ours = case["mindspore"]
    assert ours["version"] == ms.__version__
    assert 0 < ours["min"] == ours["median"] == ours["max"] == ours["seconds"][0]
    assert ours["peak_bytes"] > 4 * case["parameters"] > 0
    assert case["flops"] == WORK["sampling"](CASES["sampling"]).flops
    assert case["roofline"]["flops_per_second"] == pytest.approx(case["flops"] / ours["median"])
    assert f"| {CASES['sampling'].title} | {ours['median']:.3g} |" in finished.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--repeat", 0), "--repeat 0: at least one run"),
        (("--threads", 0), "--threads 0: this machine has"),
        (("--torch", "/bin/false"), "--torch /bin/false: this Python has no torch"),
        (("--json", "/nowhere/figures.json"), "--json /nowhere/figures.json: there is no folder /nowhere"),
    ],
)
def test_mistakes_are_told_in_a_line(run, arguments, message):
    finished = run("benchmarks/run.py", *arguments)
    assert finished.returncode == 1 and finished.stderr.startswith(f"error: {message}")
    assert finished.stderr.count("\n") == 1


def test_scaling_draws_a_picture(run, tmp_path):
    output = tmp_path / "scaling.png"
    finished = run("benchmarks/scaling.py", "--tokens", 16, "--repeat", 1, "--threads", 1, "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert "| 16 |" in finished.stdout
    with Image.open(output) as image:
        colors = {color for _, color in image.getcolors(image.width * image.height)}
    assert {tuple(bytes.fromhex(color[1:])) for color in COLORS[:2]} <= colors

    finished = run("benchmarks/scaling.py", "--tokens", 16, 20)
    assert finished.returncode == 1 and finished.stderr.startswith("error: --tokens 20 is not a multiple of 16")


def test_axes_are_logarithmic():
    assert ticks(0.06, 2.1) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert ticks(1, 1) == [1, 2]
    place = scale(1, 100, 0, 50)
    assert [place(value) for value in (1, 10, 100)] == [0, 25, 50]
    image = log_log([Panel("a", "x", [1, 10], {"curve": [(1, 1), (10, 10)]})] * 2)
    assert image.width == 2 * log_log([Panel("a", "x", [1], {"curve": [(1, 1)]})]).width


@pytest.mark.skipif(library() is None, reason="no kernels here: no g++, or switched off")
@pytest.mark.parametrize("layer", [Layer(1, 2, 16, 24, 20), Layer(3, 2, 16, 24, 20)], ids=str)
def test_convolution_against_onednn(layer, tmp_path):
    """`measure` also compares the results: Winograd's against those of an independent implementation."""
    assert has_sgemm()
    name, own, auto, *_, ratio, implementation = measure(layer, build_wrapper(tmp_path), ONEDNN, repeat=1)
    assert name == str(layer) and float(ratio) > 0 and implementation
