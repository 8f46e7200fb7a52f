"""benchmarks/weight_formats.py: which layers it holds in 8 bits, and the tables it prints."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from tiny_models import DIT

from benchmarks.weight_formats import FORMATS, TRANSFORMER_GROUPS, Weights, byte_table, relative_rms, with_outliers
from opensora.checkpoint.quantized import quantize_q8_0
from opensora.models import OpenSoraT2V_v1_3
from opensora.models.pretrained import PretrainedModel


def int8_layers(model: PretrainedModel) -> set[str]:
    return {name for name, parameter in model.parameters_and_names() if parameter.dtype == ms.int8}


def test_layers_that_stay_in_16_bits():
    state = OpenSoraT2V_v1_3(**DIT).torch_state()
    source = Weights(OpenSoraT2V_v1_3, DIT, lambda name, _: state[name])
    every = source.hold("q8_0", ())
    assert every.int8 == sum(state[name].size for name in int8_layers(every.model))
    assert source.hold("fp32").nbytes == sum(value.nbytes for value in state.values())
    assert int8_layers(every.model) - int8_layers(source.hold("q8_0").model) == {"proj_out.weight"}
    kept = {
        title: int8_layers(every.model) - int8_layers(source.hold("q8_0", group).model)
        for title, group in TRANSFORMER_GROUPS.items()
    }
    assert {name.split(".")[1] for name in kept["the first and last block"]} == {"0", str(DIT["num_layers"] - 1)}
    assert kept["caption_projection, proj_out"] == kept["caption_projection"] | kept["proj_out"]
    layers = kept["self-attention"] | kept["cross-attention"] | kept["feed-forward"]
    assert layers | kept["caption_projection"] | kept["proj_out"] == int8_layers(every.model)


def test_outliers_coarsen_their_groups():
    values = np.random.default_rng(0).standard_normal((64, 4096), np.float32)
    scaled = with_outliers("x", values)
    assert np.square(scaled).mean() == pytest.approx(1, rel=0.2)  # few channels have much of the variance
    assert sum(np.abs(scaled).mean(0) > 5 * np.median(np.abs(scaled))) == 4

    def error(weights):
        q, scale = quantize_q8_0(weights)
        return relative_rms(
            (q.reshape(64, -1, 32) * scale[..., None].astype(np.float32)).reshape(weights.shape), weights
        )

    assert error(scaled) > 1.5 * error(values)


def test_bytes_of_the_published_models():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in byte_table().splitlines()[2:]]
    assert [row[0] for row in rows] == list(FORMATS)
    for transformer, text_encoder in [(row[1], row[3]) for row in rows[1:3]]:
        assert (transformer, text_encoder) == ("5.62 GB", "9.26 GB")
    assert rows[3] == ["q8_0", "3.06 GB", "0.59 GB", "4.92 GB"]


def test_program_prints_tables_of_the_demo_model(run):
    finished = run("benchmarks/weight_formats.py", "--table", "score", "demo", "--count", 1, "--steps", 1)
    assert finished.returncode == 0, finished.stderr
    rows = [line.split(" | ") for line in finished.stdout.splitlines() if line.startswith("| ")]
    assert rows[2][0] == "| fp32" and rows[2][2:4] == ["0.00e+00", "100.0 dB"]
    assert rows[4][0] == "| fp16" and rows[4][2:] == rows[2][2:]  # its file has float16
    score, every, kept = [
        next(row for row in rows if row[0] == f"| {title}")
        for title in ("q8_0", "q8_0, every layer", "... but proj_out")
    ]
    assert 0 < float(score[2]) < 0.1 and 30 < float(score[3].split()[0]) < 100
    assert float(kept[2].split()[0]) < 0.75 * float(every[2].split()[0])


def test_a_mistake_is_reported_in_a_line(run):
    finished = run("benchmarks/weight_formats.py", "--count", 0)
    assert finished.returncode == 1 and finished.stderr == "error: --count must be 1 or more, not 0\n"
