"""The losses of VAE training against the reference: LPIPS, discriminator, terms of the loss, and a training step."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference, weight
from made_clips import moving_square
from mindspore import Tensor, nn, ops
from processes import slow
from torch_files import save_zip, tensor

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.datasets.media import write_video
from opensora.metrics import lpips
from opensora.models import WFVAEModel
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.discriminator import NLayerDiscriminator3D
from opensora.models.lpips import LPIPS
from opensora.train.adamw import AdamW
from opensora.train.optimizer import Optimizer
from opensora.train.vae_loss import DiscriminatorLoss, GeneratorLoss, VAELossOptions, hinge_loss, vanilla_loss

TRAINING = "training_cases.json"
TINY_VAE = dict(
    base_channels=8,
    encoder_num_resblocks=1,
    encoder_energy_flow_hidden_size=8,
    decoder_num_resblocks=1,
    decoder_energy_flow_hidden_size=8,
    norm_type="layernorm",
)


def by_rule(model, name: str, prefix: str = ""):
    """The model with the weights of a case; `prefix` precedes the names in the reference."""
    buffers = model.torch_buffers()

    def value(key: str, array: np.ndarray) -> np.ndarray:
        if key in buffers or key.endswith("num_batches_tracked"):
            return array
        drawn = weight(name, prefix + key, array.shape)
        return 1 + np.abs(drawn) if key.endswith("running_var") else drawn

    model.load_torch_state({key: value(key, array) for key, array in model.torch_state().items()})
    return model


@cache
def lpips_of(name: str) -> LPIPS:
    """LPIPS with the weights of a case; no test changes them."""
    return by_rule(LPIPS(), name, "perceptual_loss.")


def inputs(name: str, *keys: str) -> list:
    """Inputs of a case; pixels are clipped to [-1, 1]."""
    descriptions = [case(name, TRAINING)["inputs"][key] for key in keys]
    arrays = [given(name, key, description["shape"]) for key, description in zip(keys, descriptions)]
    return [
        Tensor(np.clip(array, -3, 3) / 3 if "map" in description else array)
        for array, description in zip(arrays, descriptions)
    ]


def numbers(*values) -> np.ndarray:
    return np.array([float(value) for value in values])


def norm(gradients) -> float:
    return float(np.sqrt(sum(np.square(gradient.asnumpy(), dtype=np.float64).sum() for gradient in gradients)))


class Sum(nn.Cell):
    """The sum of a Cell's output, to be differentiated."""

    def __init__(self, cell: nn.Cell):
        super().__init__(auto_prefix=False)
        self.cell = cell

    def construct(self, *arguments) -> Tensor:
        return self.cell(*arguments).sum()


def test_lpips_matches_reference(mode):
    reference = load_case("vae_loss_lpips")
    network = by_rule(LPIPS(), "vae_loss_lpips")
    x, y = inputs("vae_loss_lpips", "input", "target")
    assert relative_difference(network(x, y).asnumpy(), reference["lpips"].reshape(-1)) < 1e-4
    if mode == ms.PYNATIVE_MODE:
        levels = np.stack([level.mean((1, 2, 3)).asnumpy() for level in network.maps(x, y)])
        assert relative_difference(levels, reference["per_layer"].reshape(5, -1)) < 1e-4
    # A finite difference along the gradient equals the gradient's squared norm.
    gradient = ms.grad(Sum(network))(x, y)
    step = 1e-2 / norm([gradient])
    difference = network(x + step * gradient, y).sum() - network(x - step * gradient, y).sum()
    assert float(difference) / (2 * step) == pytest.approx(norm([gradient]) ** 2, rel=2e-2)


def test_lpips_gradient_without_features_is_zero():
    """All features may be 0, as in a black region of an image."""
    network = LPIPS()
    for parameter in network.net.get_parameters():
        parameter.set_data(ops.zeros_like(parameter))
    x = Tensor(np.full((1, 3, 32, 32), -1, np.float32))
    value, gradient = ms.value_and_grad(Sum(network))(x, x)
    assert float(value) == 0 and np.all(gradient.asnumpy() == 0)


def test_lpips_loads_torch_file(tmp_path):
    """A file of the package `lpips` contains some weights twice."""
    network = by_rule(LPIPS(), "vae_loss_lpips")
    state = network.torch_state()
    state.update({f"lins.{i}.model.1.weight": state[f"lin{i}.model.1.weight"] for i in range(5)})
    save_zip(tmp_path / "lpips.pth", {name: tensor(array) for name, array in state.items()})
    x, y = inputs("vae_loss_lpips", "input", "target")
    assert np.array_equal(LPIPS.load(tmp_path / "lpips.pth")(x, y).asnumpy(), network(x, y).asnumpy())
    heads = {name: tensor(array) for name, array in state.items() if name.startswith("lin")}
    save_zip(tmp_path / "vgg.pth", heads)
    with pytest.raises(ValueError, match="vgg.pth: .*26 missing"):
        LPIPS.load(tmp_path / "vgg.pth")


def test_lpips_loads_mindspore_file(tmp_path):
    """lpips_vgg-426bf45c.ckpt counts the layers of each slice from 0 and has no biases."""
    network = by_rule(LPIPS(), "vae_loss_lpips")
    first = {"slice1": 0, "slice2": 4, "slice3": 9, "slice4": 16, "slice5": 23}
    saved = []
    for name, array in network.torch_state().items():
        if name.endswith(".bias"):
            array[:] = 0
        elif name.startswith("net."):
            _, slice_name, number, kind = name.split(".")
            saved.append({"name": f"net.{slice_name}.{int(number) - first[slice_name]}.{kind}", "data": Tensor(array)})
        elif name.startswith("lin"):
            saved.append({"name": name, "data": Tensor(array)})
    ms.save_checkpoint(saved, str(tmp_path / "lpips_vgg.ckpt"))
    network.load_torch_state(
        {name: array * (not name.endswith(".bias")) for name, array in network.torch_state().items()}
    )
    x, y = inputs("vae_loss_lpips", "input", "target")
    assert np.array_equal(LPIPS.load(tmp_path / "lpips_vgg.ckpt")(x, y).asnumpy(), network(x, y).asnumpy())


def test_missing_lpips_weights_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="lpips_vgg.ckpt: no such file. .*lpips_vgg-426bf45c.ckpt"):
        LPIPS.load(tmp_path / "lpips_vgg.ckpt")
    with pytest.raises(ValueError, match="'squeeze' is not one of vgg, alex"):
        LPIPS(net="squeeze")


@pytest.fixture(scope="module")
def alex_weights(tmp_path_factory) -> Path:
    network = by_rule(LPIPS(net="alex"), "lpips_alex")
    path = tmp_path_factory.mktemp("weights") / "lpips_alex.safetensors"
    write_safetensors(path, {name: ArrayTensor(array) for name, array in network.torch_state().items()})
    return path


def test_lpips_metric_matches_reference(alex_weights):
    """Against numbers computed once in PyTorch from the published description, float32."""
    real, generated = (np.clip(0.5 + 0.2 * given("lpips_alex", name, (3, 3, 70, 90)), 0, 1) for name in "ab")
    network = LPIPS.load(alex_weights, net="alex")
    values = lpips(real, generated, network)
    assert relative_difference(values, np.array([-0.0220023934, -0.0181473941, -0.0191815868])) < 1e-4
    assert np.all(lpips(real, real, network) == 0)
    with pytest.raises(ValueError, match="equal shapes"):
        lpips(real, generated[:, :, :-1], network)


def test_lpips_script_prints_the_mean(alex_weights, tmp_path):
    for folder, color in (("real", (255, 0, 0)), ("gen", (0, 0, 255))):
        with write_video(tmp_path / folder / "square.mp4", fps=10) as write:
            write(moving_square(5, 64, 64, color))
    script = Path(__file__).parents[3] / "opensora" / "eval" / "script" / "cal_lpips.sh"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", script, "real", "gen", "--lpips_path", alex_weights],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "mean of 1" in result.stdout and float(result.stdout.split()[-1]) != 0
    result = subprocess.run(
        ["bash", script, "real", "gen"], cwd=tmp_path, text=True, capture_output=True, env=environment, check=False
    )
    assert result.returncode == 1
    assert "error: pretrained/lpips_alex.pth: no such file" in result.stderr


def test_discriminator_matches_reference(mode):
    name = "vae_loss_disc"
    reference = load_case(name)
    network = by_rule(NLayerDiscriminator3D(), name)
    assert set(network.torch_state()) == set(case(name, TRAINING)["weights"])
    real, fake = inputs(name, "real", "fake")
    network.set_train(False)
    for video, key in ((real, "logits_real"), (fake, "logits_fake")):
        assert relative_difference(network(video).asnumpy(), reference[key]) < 1e-4
    assert network.main[3].num_batches_tracked == 0
    network.set_train(True)
    for video, key in ((real, "train_mode_logits_real"), (fake, "train_mode_logits_fake")):
        assert relative_difference(network(video).asnumpy(), reference[key]) < 1e-4
    state = network.torch_state()
    assert state["main.3.num_batches_tracked"] == 2
    for key in ("running_mean", "running_var"):
        assert relative_difference(state[f"main.3.{key}"], reference[f"train_mode_main3_{key}_after"]) < 1e-4


def test_discriminator_initialization_is_the_published_one():
    network = NLayerDiscriminator3D()
    state = network.torch_state()
    assert np.std(state["main.8.weight"]) == pytest.approx(0.02, rel=0.02)
    assert np.mean(state["main.9.weight"]) == pytest.approx(1, abs=0.01) and np.all(state["main.9.bias"] == 0)
    assert "main.9.running_var" not in [parameter.name for parameter in network.trainable_params()]


def test_hinge_and_vanilla_loss_match_reference():
    reference = load_case("vae_loss_hinge")
    real, fake = inputs("vae_loss_hinge", "logits_real", "logits_fake")
    for loss, key in ((hinge_loss, "hinge"), (vanilla_loss, "vanilla")):
        assert relative_difference(numbers(loss(real, fake)), reference[key]) < 1e-4
    assert np.isfinite(float(vanilla_loss(1000 * real, 1000 * fake)))


@pytest.mark.parametrize(
    "variant, options",
    [
        ("l1", {}),
        ("l1_noperc", {"perceptual_weight": 0.0}),
        ("l1_logvar", {"logvar_init": 0.3}),
        ("l2", {"loss_type": "l2"}),
    ],
)
def test_loss_terms_match_reference(variant, options):
    name = "vae_loss_components"
    reference = load_case(name)
    lpips = lpips_of(name)
    loss = GeneratorLoss(
        WFVAEModel(**TINY_VAE), VAELossOptions(**{"perceptual_weight": 1.0, "wavelet_loss": True, **options}), lpips
    )
    video, reconstruction, moments = inputs(name, "inputs", "recon", "posterior")
    encoder_levels, decoder_levels = inputs(name, "enc_l1", "enc_l2"), inputs(name, "dec_l1", "dec_l2")
    total, (nll, kl, wavelet, d_weight, g) = loss.compare(
        video, reconstruction, Tensor(0.0), DiagonalGaussian(moments), encoder_levels, decoder_levels, adversarial=False
    )
    values = numbers(total, nll, kl, wavelet)
    assert np.abs(values / reference[variant] - 1).max() < 1e-4
    assert (float(d_weight), float(g)) == (0, 0)


@pytest.mark.parametrize("kind", [slow("eval"), "train"])
def test_training_step_matches_reference(kind):
    """`kind` is the mode of the discriminator's batch normalization."""
    name = "vae_loss_step"
    reference, settings = load_case(name), case(name, TRAINING)["loss"]
    vae = by_rule(WFVAEModel(**case(name, TRAINING)["config"]), name)
    lpips = lpips_of(name)

    def discriminator() -> NLayerDiscriminator3D:
        return by_rule(NLayerDiscriminator3D(), name, "discriminator.").set_train(kind == "train")

    video, noise = inputs(name, "x", "eps")
    known = {key: settings[key] for key in VAELossOptions.__dataclass_fields__ if key in settings}
    options = VAELossOptions(**{"perceptual_weight": 1.0, **known}, wavelet_loss=True)

    loss = GeneratorLoss(vae, options, lpips, discriminator())
    names = [parameter_name for parameter_name, _ in vae.parameters_and_names()]
    step = ms.value_and_grad(loss, None, vae.trainable_params(), has_aux=True)
    (total, metrics), gradients = step(video, noise, True)
    gradients = dict(zip(names, gradients))
    assert np.abs(numbers(total, *metrics) / reference[f"gen_{kind}"] - 1).max() < 1e-3
    norms = [
        norm([gradients["decoder.conv_out.weight"]]),
        norm([gradients["encoder.conv_out.conv.weight"]]),
        norm(gradients.values()),
    ]
    assert np.abs(norms / reference[f"grad_norm_{kind}"] - 1).max() < 1e-3
    if kind == "eval":
        last_layer = gradients["decoder.conv_out.weight"].asnumpy()
        assert relative_difference(last_layer, reference["last_layer_grad"]) < 1e-4

    reconstruction = vae.decode(vae.encode(video).sample(noise))
    assert relative_difference(reconstruction.asnumpy()[..., :4, :4], reference["recon_corner"]) < 1e-4
    network = discriminator()
    step = ms.value_and_grad(DiscriminatorLoss(network, options), None, network.trainable_params(), has_aux=True)
    (total, metrics), gradients = step(video, reconstruction)
    assert np.abs(numbers(total, *metrics) / reference[f"disc_{kind}"] - 1).max() < 1e-3
    assert norm(gradients) == pytest.approx(reference[f"disc_grad_norm_{kind}"].item(), rel=1e-3)


def test_training_lowers_the_loss_of_alternating_networks():
    """Generator steps do not change the discriminator."""
    ms.set_seed(0)
    vae = WFVAEModel(**TINY_VAE)
    discriminator = NLayerDiscriminator3D(ndf=8, n_layers=2).set_train()
    options = VAELossOptions(perceptual_weight=0.0, wavelet_loss=True, disc_start=4)
    generator_loss = GeneratorLoss(vae, options, discriminator=discriminator)
    discriminator_loss = DiscriminatorLoss(discriminator, options)
    optimizers = [nn.Adam(cell.trainable_params(), 1e-3) for cell in (vae, discriminator)]
    steps = [
        ms.value_and_grad(loss, None, optimizer.parameters, has_aux=True)
        for loss, optimizer in zip((generator_loss, discriminator_loss), optimizers)
    ]
    video = Tensor(moving_square(5, 32, 32, (255, 0, 0)).transpose(3, 0, 1, 2)[None].astype(np.float32) / 127.5 - 1)
    generator_values, turns = [], []
    for number in range(8):
        before = discriminator.main[0].weight.asnumpy().copy()
        turns.append(options.trains_discriminator(number))
        if turns[-1]:
            reconstruction = vae.decode(vae.encode(video).sample())
            _, gradients = steps[1](video, reconstruction)
            optimizers[1](gradients)
        else:
            (_, metrics), gradients = steps[0](video, None, number >= options.disc_start)
            optimizers[0](gradients)
            generator_values.append(float(metrics[0]))
        assert (discriminator.main[0].weight.asnumpy() != before).any() == turns[-1]
    assert turns == [False] * 5 + [True, False, True]
    assert generator_values[-1] < generator_values[0]


@pytest.mark.slow
def test_alternating_optimizers_use_the_newest_discriminator_and_free_memory():
    """The adversarial loss uses the discriminator's updated weights; no step keeps its graph in memory."""
    ms.set_seed(5)
    vae, discriminator = WFVAEModel(**TINY_VAE).set_train(), NLayerDiscriminator3D(ndf=8, n_layers=2).set_train()
    options = VAELossOptions(perceptual_weight=0.0, disc_start=0)
    losses = GeneratorLoss(vae, options, discriminator=discriminator), DiscriminatorLoss(discriminator, options)
    optimizers = Optimizer(vae, AdamW()), Optimizer(discriminator, AdamW())
    video, noise = Tensor(given("turns", "video", (1, 3, 5, 32, 32))), Tensor(given("turns", "noise", (1, 8, 2, 4, 4)))
    found, expected, memory = [], [], []
    for _ in range(20):
        reconstruction = vae.decode(vae.encode(video).sample(noise))
        expected.append(float(-discriminator(reconstruction).mean()))
        _, metrics = optimizers[0].backward(losses[0], video, noise, True)
        found.append(float(metrics[-1]))
        optimizers[0].step(0.0)
        optimizers[1].backward(losses[1], video, ops.stop_gradient(reconstruction))
        optimizers[1].step(1e-3)
        memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert expected[-1] > expected[0] + 0.1
    assert memory[19] - memory[9] < 30  # a kept graph is about 15 MB


def test_gradients_without_discriminator_equal_plain_loss():
    ms.set_seed(4)
    vae = WFVAEModel(**TINY_VAE).set_train()
    video, noise = Tensor(given("plain", "video", (2, 3, 5, 16, 16))), Tensor(given("plain", "noise", (2, 8, 2, 2, 2)))
    loss = GeneratorLoss(vae, VAELossOptions(perceptual_weight=0, kl_weight=0))
    parameters = vae.trainable_params()

    def plain(video: Tensor) -> Tensor:
        return ops.abs(video - vae.decode(vae.encode(video).sample(noise))).sum() / (2 * 5)

    (value, metrics), gradients = ms.value_and_grad(loss, None, parameters, has_aux=True)(video, noise, False)
    expected_value, expected = ms.value_and_grad(plain, None, parameters)(video)
    assert abs(float(value) / float(expected_value) - 1) < 1e-5 and float(metrics[0]) == float(value)
    assert norm(expected) > 1
    for parameter, gradient, wanted in zip(parameters, gradients, expected):
        assert np.abs(gradient.asnumpy() - wanted.asnumpy()).max() <= 1e-4 * norm(expected), parameter.name


def test_invalid_settings_are_rejected():
    with pytest.raises(ValueError, match="disc_loss 'wgan' is not one of hinge, vanilla"):
        VAELossOptions(disc_loss="wgan")
    with pytest.raises(ValueError, match="perceptual_weight 1.0 needs the weights of LPIPS"):
        GeneratorLoss(WFVAEModel(**TINY_VAE), VAELossOptions(perceptual_weight=1.0))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(ValueError, match="--mode 1"):
            GeneratorLoss(WFVAEModel(**TINY_VAE), VAELossOptions(perceptual_weight=0))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
