"""The training objective against stored reference cases."""

from __future__ import annotations

import random

import numpy as np
import pytest
from golden_cases import case, case_names, given, load_case, relative_difference
from mindspore import Tensor, nn

from opensora.train.objective import DenoisingLoss, Diffusion, ObjectiveOptions, make_loss, make_objective

CASES = "training_cases.json"
TOLERANCE = 1e-5


def options_of(description: dict) -> ObjectiveOptions:
    scheduler = description["scheduler"]
    return ObjectiveOptions(
        prediction_type=description["prediction_type"] or "epsilon",
        snr_gamma=description["snr_gamma"],
        noise_offset=description["noise_offset"],
        rescale_betas_zero_snr=description["rescale_betas_zero_snr"],
        cogvideox_scheduler="CogVideoX" in scheduler,
        v1_5_scheduler="scaled_linear" in scheduler and "CogVideoX" not in scheduler,
        rf_scheduler="FlowMatch" in scheduler,
        weighting_scheme=description["weighting_scheme"] or "logit_normal",
    )


class Answer(nn.Cell):
    """A model with a fixed prediction."""

    def __init__(self, prediction: np.ndarray):
        super().__init__()
        self.prediction = Tensor(prediction)

    def construct(self, x, timestep, text, mask, text_mask):
        return self.prediction


class Recorder(Answer):
    """An answer that records its input, in PyNative mode."""

    def construct(self, x, timestep, text, mask, text_mask):
        self.shown = x
        return self.prediction


@pytest.mark.parametrize("name", [name for name in case_names("train_loss_", CASES) if not name.endswith("table")])
def test_loss_matches_reference(name):
    description, expected = case(name, CASES), load_case(name)
    inputs = description["inputs"]
    drawn = {key: given(name, key, value["shape"]) for key, value in inputs.items() if isinstance(value, dict)}
    objective = make_objective(options_of(description))
    steps = np.array(inputs["timesteps"]) if "timesteps" in inputs else 1000 - np.array(inputs["indices"])
    eps = drawn["noise"]
    if "noise_offset_draw" in drawn:
        eps = eps + description["noise_offset"] * drawn["noise_offset_draw"]
    mask = condition = None
    if "attention_mask_keep_thw" in inputs:
        mask = np.zeros((len(steps), *eps.shape[2:]), np.float32)
        for row, (t, h, w) in zip(mask, inputs["attention_mask_keep_thw"]):
            row[:t, :h, :w] = 1
        mask = Tensor(mask)
    if description["inpaint"]:
        condition = Tensor(np.concatenate([drawn["masked_latents"], drawn["mask_channels"]], 1))
    model = Recorder(drawn["model_pred"])
    coefficients = objective.coefficients(steps)
    loss = DenoisingLoss(model)(
        Tensor(drawn["latents"]), Tensor(eps), *map(Tensor, coefficients), None, None, mask, condition
    )
    shown = model.shown.asnumpy()[:, :, : expected["model_input"].shape[2]]
    assert relative_difference(shown, expected["model_input"]) < TOLERANCE
    assert relative_difference(loss.asnumpy().reshape(1), expected["loss"]) < TOLERANCE
    if "target" in expected:
        target = (
            coefficients.target_signal.reshape(-1, 1, 1, 1, 1) * drawn["latents"]
            + coefficients.target_noise.reshape(-1, 1, 1, 1, 1) * eps
        )
        assert relative_difference(target, expected["target"]) < TOLERANCE
    if "timestep_values" in expected:
        assert (coefficients.timestep == expected["timestep_values"]).all()


@pytest.mark.parametrize("name", case_names("latte_train_loss", CASES))
def test_loss_with_learned_variance_matches_reference(name, mode):
    """Sample by sample: t 0 has the likelihood of the data, and masked latents count as zeros."""
    inputs, expected = case(name, CASES)["inputs"], load_case(name)
    x0, noise, output = (given(name, key, inputs[key]["shape"]) for key in ("x_start", "noise", "model_output"))
    mask = np.ones((len(x0), *x0.shape[2:]), np.float32)
    for row, (h, w) in zip(mask, inputs["latent_hw_kept"] or ()):
        row[:, h:], row[:, :, w:] = 0, 0
    objective = make_objective(ObjectiveOptions(), learned_variance=True)
    losses = []
    for i, timestep in enumerate(inputs["t"]):
        one = slice(i, i + 1)
        loss = make_loss(objective, Answer(output[one]))
        coefficients = map(Tensor, objective.coefficients(np.array([timestep])))
        latents = (Tensor(np.float32(0.5) * x0[one]), Tensor(noise[one]))
        kept = None if inputs["latent_hw_kept"] is None else Tensor(mask[one])
        losses.append(float(loss(*latents, *coefficients, Tensor(0.0), None, kept, None)))
    # At t 0 the reference's float32 leaves few digits of small probabilities.
    assert relative_difference(np.array(losses), expected["loss"]) < 1e-4


def test_learned_variance_has_one_objective():
    with pytest.raises(ValueError, match="leave out --prediction_type, --snr_gamma"):
        make_objective(ObjectiveOptions(snr_gamma=5.0), learned_variance=True)


@pytest.mark.parametrize("schedule", ["linear", "linear_zsnr", "v1_5", "v1_5_zsnr", "cogvideox_zsnr"])
def test_loss_weights_match_reference_at_every_noise_level(schedule):
    description, expected = case("train_loss_weights_table", CASES), load_case("train_loss_weights_table")
    steps = np.array(description["timesteps"])
    for prediction_type, short in (("epsilon", "eps_no_t999"), ("v_prediction", "v")):
        diffusion = Diffusion(
            ObjectiveOptions(
                prediction_type,
                description["snr_gamma"],
                rescale_betas_zero_snr=schedule.endswith("zsnr"),
                v1_5_scheduler=schedule.startswith("v1_5"),
                cogvideox_scheduler=schedule.startswith("cogvideox"),
            )
        )
        assert relative_difference(diffusion.alphas_cumprod[steps], expected[f"{schedule}_alphas_cumprod"]) < TOLERANCE
        weight = diffusion.coefficients(steps).weight
        reference = expected[f"{schedule}_weight_{short}"]
        known = np.isfinite(reference)
        assert relative_difference(weight[: len(reference)][known], reference[known]) < TOLERANCE
        assert (weight[: len(reference)][~known] == 1).all()  # the limit where the reference divides 0 by 0
        assert (~known).any() == (prediction_type == "epsilon" and schedule.endswith("zsnr"))


def test_timesteps_of_a_step_are_stratified():
    description = case("train_timesteps", CASES)
    for name, expected in description["timesteps"].items():
        ranks, rank = (int(word.lstrip("nrak")) for word in name.split("_"))
        source = random.Random(description["python_random_seed"])
        # The reference draws every step's timesteps twice and keeps the second draw.
        uniform = np.array([source.random() for _ in range(2 * len(expected))])[-len(expected) :]
        actual = Diffusion(ObjectiveOptions()).timesteps(uniform, np.full(len(expected), rank), ranks)
        assert actual.tolist() == expected
    everywhere = Diffusion(ObjectiveOptions()).timesteps(np.array([0.0, 0.5, 1.0]), np.zeros(3), 1)
    assert everywhere.tolist() == [0, 500, 999]


@pytest.mark.parametrize("scheme", ["logit_normal", "mode", "sigma_sqrt", "cosmap"])
def test_rectified_flow_timesteps_follow_the_density_of_the_scheme(scheme):
    flow = make_objective(ObjectiveOptions(rf_scheduler=True, weighting_scheme=scheme))
    steps = flow.timesteps(np.random.RandomState(0).random_sample(20000), np.zeros(20000), 1)
    assert steps.min() >= 1 and steps.max() <= 1000
    middle = ((steps > 250) & (steps <= 750)).mean()
    # logit_normal: P(|x| < log 3) of a normal x; mode (Esser et al. 2024, eq. 20): its map solved for 1/4 and 3/4
    assert abs(middle - {"logit_normal": 0.728, "mode": 0.733}.get(scheme, 0.5)) < 0.02


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(prediction_type="noise"), "prediction_type .noise."),
        (dict(snr_gamma=0), "snr_gamma 0"),
        (dict(rf_scheduler=True, v1_5_scheduler=True), "choose one"),
        (dict(weighting_scheme="flat"), "weighting_scheme .flat."),
        (dict(prediction_type="sample", snr_gamma=5), "snr_gamma weights"),
    ],
)
def test_contradictory_options_are_rejected(options, words):
    with pytest.raises(ValueError, match=words):
        ObjectiveOptions(**options)
