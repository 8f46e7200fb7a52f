"""The transformers of Open-Sora-Plan v1.0 to v1.2: outputs against the reference, loading, and the staged interface."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, gradient_difference, relative_difference
from golden_models import PLAN_V1_CASES, build, dit_inputs, plan_v1_rows
from mindspore import Tensor, nn
from safetensors.numpy import load_file
from stored_models import LATTE, OPENSORA_V1_2

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import LatteT2V, OpenSoraT2V
from opensora.models.dit import v1_2
from opensora.models.latte import config as latte_config
from opensora.models.latte.config import LatteConfig
from opensora.models.lora import linear_shapes, select_layers
from opensora.parallel.process_group import World
from opensora.parallel.zero import ShardedBlock, make_buckets
from opensora.pipelines.compiled import can_compile, compiled
from opensora.pipelines.guidance import Guidance, GuidedPrediction, NegativeStates
from opensora.pipelines.step_cache import Stages
from opensora.pipelines.text import TextEmbedding
from opensora.train.optimizer import Optimizer

CASES = [*case_names("latte_", PLAN_V1_CASES), *case_names("opensora_v1_2_", PLAN_V1_CASES)]
VIDEOS = ("latte_v1_1_latent_mask", "opensora_v1_2_padded")  # with masks of latents and text
TOLERANCE = {"fp16": 3e-3, "bf16": 3e-2}


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"], indirect=True)
@pytest.mark.parametrize("name", CASES)  # consecutive modes of a case share its model
def test_output_matches_reference(name, mode):
    rows = plan_v1_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", VIDEOS)
def test_16_bits(name, precision):
    inputs = dit_inputs(name, PLAN_V1_CASES)
    expected = build(name, PLAN_V1_CASES)(**inputs).asnumpy()
    model = build(name, PLAN_V1_CASES).cast({"fp16": ms.float16, "bf16": ms.bfloat16}[precision])
    single = {key for key, parameter in model.parameters_and_names() if parameter.dtype == ms.float32}
    assert single == model.float32_parameters()
    assert all("adaln_single" in key or "scale_shift_table" in key for key in single)
    difference = relative_difference(model(**inputs).astype(ms.float32).asnumpy(), expected)
    assert TOLERANCE[precision] / 100 < difference < TOLERANCE[precision]


@pytest.mark.parametrize(
    "model, preset, count",
    [(LatteT2V, latte_config.PRESETS, 1_057_246_880), (OpenSoraT2V, v1_2.PRESETS, 2_771_907_856)],
)
def test_published_sizes(model, preset, count):
    (config,) = preset.values()
    built = model.without_weights(**config)
    assert sum(parameter.size for parameter in built.get_parameters()) == count


@pytest.mark.parametrize(
    "length, use_rope, scale", [(5, None, 1), (17, None, 3), (17, False, 1), (56, False, 3), (129, False, 8)]
)
def test_scale_of_frames_depends_on_the_generation(length, use_rope, scale):
    config = LatteConfig.from_dict({**LATTE, "use_rope": use_rope, "video_length": length})
    assert config.temporal_scale == scale


@pytest.mark.parametrize("model, config", [(LatteT2V, LATTE), (OpenSoraT2V, OPENSORA_V1_2)])
def test_save_and_load(model, config, tmp_path):
    """Position embeddings in a file, and Latte's unused buffer, have no effect."""
    saved = model(**config)
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == model.__name__
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert all((state[name] == value).all() for name, value in saved.torch_state().items())
    loaded = model.from_pretrained(tmp_path)
    assert loaded.config == saved.config
    buffers = {"pos_embed.pos_embed": (1, 16, 96)}
    buffers.update(
        {"temp_pos_embed": (1, 17, 96), "caption_projection.y_embedding": (120, 32)}
        if model is LatteT2V
        else {"pos_embed.temp_pos_embed": (1, 24, 96)}
    )
    numbers = {**state, **{name: np.full(shape, 7, np.float32) for name, shape in buffers.items()}}
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    write_safetensors(path, {name: ArrayTensor(value) for name, value in numbers.items()})
    found = model.from_pretrained(tmp_path).torch_state()
    assert found.keys() == state.keys() and all((found[name] == value).all() for name, value in state.items())
    assert found.keys() - dict(loaded.parameters_and_names()).keys() == set(loaded.torch_buffers())


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (LatteT2V, {"use_rope": True}, "use_rope True is not supported"),
        (LatteT2V, {"video_lenght": 5}, "did you mean video_length"),
        (LatteT2V, {"sample_size": None}, "sample_size None is not the latents' height and width"),
        (LatteT2V, {"compress_kv_factor": 2}, "compress_kv_factor 2 is not supported; all weights of .* v1.0 and v1.1"),
        (LatteT2V, {"norm_type": "layer_norm"}, "norm_type 'layer_norm' is not supported"),
        (OpenSoraT2V, {"sparse1d": True}, "OpenSoraV1_2Config has no key 'sparse1d'"),
        (OpenSoraT2V, {"downsampler": "k333_s222"}, "downsampler 'k333_s222' is not supported; .* v1.2"),
        (OpenSoraT2V, {"sample_size_t": None}, "sample_size_t is missing"),
        (OpenSoraT2V, {"use_additional_conditions": True}, "use_additional_conditions is not supported"),
    ],
)
def test_unsupported_configurations_are_rejected(model, changes, message):
    config = LATTE if model is LatteT2V else OPENSORA_V1_2
    with pytest.raises(ValueError, match=message):
        model.without_weights(**{**config, **changes})


def test_default_scales_follow_from_the_training_size():
    config = {**OPENSORA_V1_2, "sample_size": [60, 80]}
    for frames, scale in ((1, 1), (8, 0.5), (17, 2)):
        assert OpenSoraT2V.without_weights(**{**config, "sample_size_t": frames}).scales == (scale, 2, 2)
    assert OpenSoraT2V.without_weights(**config, interpolation_scale_h=1.5).scales == (2 / 16, 1.5, 2)


def test_latte_refuses_other_lengths(mode):
    model, text = LatteT2V(**LATTE), Tensor(np.zeros((1, 3, 32), np.float32))
    three = Tensor(np.zeros((1, 4, 3, 4, 4), np.float32))
    with pytest.raises(ValueError, match="3 latent frames, but the model has positions for video_length 2, or for 1"):
        model(three, Tensor([1]), text)
    with pytest.raises(ValueError, match="enable_temporal_attentions False is for images"):
        model(three, Tensor([1]), text, enable_temporal_attentions=False)


def test_image_needs_no_switch():
    name = "latte_v1_1_image"
    inputs = dit_inputs(name, PLAN_V1_CASES)
    model = build(name, PLAN_V1_CASES)
    expected = model(**inputs).asnumpy()
    assert not inputs.pop("enable_temporal_attentions")
    assert (model(**inputs).asnumpy() == expected).all()


def guided(name: str, model) -> tuple[GuidedPrediction, Tensor, np.ndarray]:
    """A prediction with guidance for two prompts of different lengths, and what it should be."""
    channels, dim = case(name, PLAN_V1_CASES)["inputs"]["hidden_states"]["shape"], model.config.caption_channels
    random = np.random.RandomState(4)
    states, mask = random.standard_normal((2, 9, dim)).astype(np.float32), np.ones((2, 9), np.int32)
    mask[0, 5:] = 0
    x = Tensor(random.standard_normal((1, *channels[1:])).astype(np.float32))
    text = TextEmbedding(states, mask)
    prediction = GuidedPrediction(
        model, model, text, np.array([640.0], np.float32), Guidance(4.0), None, NegativeStates()
    )
    rows = [
        model(x, Tensor([640.0]), Tensor(states[i : i + 1, None]), None, Tensor(mask[i : i + 1, None])).asnumpy()
        for i in range(2)
    ]
    return prediction, x, rows[0] + 4 * (rows[1] - rows[0])


@pytest.mark.parametrize("name", VIDEOS)
def test_guided_sampling_computes_both_texts_in_one_call(name):
    prediction, x, expected = guided(name, build(name, PLAN_V1_CASES))
    # Without the predicted variance, which samplers do not use.
    assert relative_difference(prediction(x, 0).asnumpy(), expected[:, : x.shape[1]]) < 1e-5


@pytest.mark.parametrize("name", VIDEOS)
def test_stages_of_step_caching_make_up_the_model(name):
    """Also with a mask of the latents, and with two texts for each sample."""
    model, inputs = build(name, PLAN_V1_CASES), dit_inputs(name, PLAN_V1_CASES)
    text, text_mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    for rows in (1, 2):
        arguments = (
            inputs["hidden_states"],
            inputs["timestep"],
            Tensor(np.tile(text.asnumpy(), (rows,) + (1,) * (text.ndim - 1))),
            inputs["attention_mask"],
            Tensor(np.tile(text_mask.asnumpy(), (rows,) + (1,) * (text_mask.ndim - 1))),
        )
        expected = model(*arguments).asnumpy()
        assert relative_difference(expected, np.tile(model(**inputs).asnumpy(), (rows, 1, 1, 1, 1))) < 1e-5
        first, others, head = Stages.of(model)
        _, x = first(*arguments)
        found = head(others(x, *arguments), *arguments)
        assert relative_difference(found.asnumpy(), expected) < 1e-6


@pytest.mark.parametrize("name", VIDEOS)
def test_compiled_transformer(name):
    model, inputs = build(name, PLAN_V1_CASES), dit_inputs(name, PLAN_V1_CASES)
    names = "hidden_states", "timestep", "encoder_hidden_states", "attention_mask", "encoder_attention_mask"
    arguments = [inputs[key] for key in names]
    assert can_compile(model)
    assert relative_difference(compiled(model)(*arguments).asnumpy(), model(*arguments).asnumpy()) < 1e-6


class Loss(nn.Cell):
    """The mean square of a prediction for videos and images."""

    def __init__(self, model: nn.Cell, images: int):
        super().__init__(auto_prefix=False)
        self.model, self.images = model, images

    def construct(self, latents, timestep, text, mask):
        output = self.model(latents, timestep, text, None, mask, None, None, None, self.images)
        return output.square().mean()


def joint(name: str):
    inputs = dit_inputs(name, PLAN_V1_CASES)
    names = "hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"
    return inputs["use_image_num"], [inputs[key] for key in names]


@pytest.mark.parametrize("name", ["latte_v1_1_joint", "opensora_v1_2_joint"])
def test_gradients_of_sharded_and_recomputed_blocks(name):
    """Both run the blocks, which videos and images share, twice in a forward pass."""
    (images, inputs), model = joint(name), build(name, PLAN_V1_CASES)
    parameters = dict(model.parameters_and_names())
    loss, whole = Loss(model, images), list(parameters.values())
    expected = [gradient.asnumpy() for gradient in ms.grad(loss, None, whole)(*inputs)]
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in expected)

    blocks = model.ordered_blocks()
    ids = {id(parameter): key for key, parameter in parameters.items()}
    buckets = [make_buckets({ids[id(p)]: p for p in block.get_parameters()}, 0, World()) for block in blocks]
    model.replace_blocks([ShardedBlock(block, own) for block, own in zip(blocks, buckets)])
    outside = [key for key in parameters if "transformer_blocks" not in key]
    found = dict(zip(outside, ms.grad(loss, None, [parameters[key] for key in outside])(*inputs)))
    for own in buckets:
        for bucket in own:
            found.update(bucket.unshard(bucket.take_gradient()))
    assert found.keys() == parameters.keys()
    assert gradient_difference([np.asarray(found[key]) for key in parameters], expected) < 1e-4

    recomputed = build(name, PLAN_V1_CASES)
    optimizer = Optimizer(recomputed, max_grad_norm=None, gradient_checkpointing=True)
    optimizer.backward(Loss(recomputed, images), *inputs)
    norm = np.sqrt(sum(np.square(gradient, dtype=np.float64).sum() for gradient in expected))
    assert optimizer.step(1e-3).norm == pytest.approx(norm, rel=1e-4)


def test_lora_adapts_attention():
    chosen = select_layers(list(linear_shapes(LatteT2V.without_weights(**LATTE))), LatteT2V.lora_targets)
    assert len(chosen) == (8 + 4) * LATTE["num_layers"] and all(".attn" in name for name in chosen)
