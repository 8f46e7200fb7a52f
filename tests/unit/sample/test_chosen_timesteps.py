"""--timesteps of sample.py, and the search for them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.text import TextEmbedding
from opensora.sample.options import parse_options
from opensora.sample.outputs import check_same_run, plan_samples
from opensora.sample.search_job import Trajectories
from opensora.sample.timestep_search import SHORTEST_MOVE, Choice, first_choices, first_move, improve
from opensora.sample.timesteps_file import TimestepsFile, read_timesteps, write_timesteps
from opensora.schedulers import get_scheduler

SAMPLE, SEARCH = "opensora/sample/sample.py", "tools/search_steps.py"


@pytest.fixture
def search_flags(release) -> list[str]:
    return (
        f"--model_path {release}/transformer --ae_path {release}/vae --text_encoder_name_1 {release}/text "
        "--num_frames 1 --height 32 --width 32 --max_sequence_length 64 --rescale_betas_zero_snr --device CPU "
        "--guidance_scale 1 --text_prompt a"
    ).split()


@pytest.mark.parametrize(
    "name, text",
    [("a.json", "[999, 500.5, 3]"), ("a.txt", "999, 500.5\n3\n"), ("b.txt", '\ufeff{"timesteps": [999, 500.5, 3]}')],
)
def test_file_formats(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_timesteps(tmp_path / name) == TimestepsFile((999, 500.5, 3))


@pytest.mark.parametrize(
    "text, message",
    [
        ("999 b", "timestep 2 'b': should be a number"),
        ("[999, true]", "timestep 2 True: should be a number"),
        ("[999, NaN]", "not a json file"),
        ("[999, [1]]", r"timestep 2 \[1\]: should be a number"),
        ("{}", "has no list of timesteps"),
        ('{"timesteps": 5}', "has no list of timesteps"),
        ("[" * 100000, "not a json file"),
        ("", "timesteps should be a list of 1 to 1000 numbers"),
        ("500 999", "timesteps should decrease from step to step: 999 follows 500"),
        ("1000 1", "timestep 1000: EulerAncestralDiscrete takes a number from 0 to 999"),
    ],
)
def test_unusable_files_are_rejected_before_loading(flags, tmp_path, text, message):
    (tmp_path / "steps").write_text(text)
    with pytest.raises(ValueError, match=f"steps: .*{message}"):
        parse_options([*flags, "--text_prompt", "a", "--timesteps", str(tmp_path / "steps")])


def test_file_is_for_its_own_settings_only(flags, tmp_path):
    path = tmp_path / "steps.json"
    settings = {
        "sample_method": "DDIM",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "v1_5_scheduler": False,
    }
    write_timesteps(path, TimestepsFile((999, 400), settings))
    run = [*flags, "--text_prompt", "a", "--timesteps", str(path)]
    options, _ = parse_options([*run, "--sample_method", "DDIM"])
    assert options.chosen_timesteps == (999, 400) and options.num_sampling_steps == 2
    with pytest.raises(ValueError, match="for sample_method DDIM, not EulerAncestralDiscrete; search for those"):
        parse_options(run)
    with pytest.raises(ValueError, match="for v1_5_scheduler False, not True"):
        parse_options([*run, "--sample_method", "DDIM", "--v1_5_scheduler"])
    write_timesteps(path, TimestepsFile((999, 400)))
    with pytest.raises(ValueError, match="PNDM takes a number of steps, but no timesteps"):
        parse_options([*run, "--sample_method", "PNDM"])


def test_record_holds_the_timesteps(flags, tmp_path):
    """A run resumes with the same timesteps, from any file, and with no others."""
    paths = [tmp_path / name for name in ("a.txt", "same.json", "other.txt")]
    for path, text in zip(paths, ("999 500", "[999, 500.0]", "999 501")):
        path.write_text(text)
    base = [*flags, "--text_prompt", "a"]
    chosen, same, other = (parse_options([*base, "--timesteps", str(path)])[0] for path in paths)
    (sample,) = plan_samples(chosen, [("a", ())])
    assert sample.path.name == "EulerAncestralDiscrete_0_gs7.5_s2.mp4"
    sample.path.parent.mkdir()
    sample.path.write_bytes(b"")
    sample.metadata_path.write_text(json.dumps({"arguments": chosen.as_metadata(), "prompt": "a"}))
    check_same_run(sample, same)
    with pytest.raises(ValueError, match=r"was made with timesteps \[999.0, 500.0\], not \[999.0, 501.0\]"):
        check_same_run(sample, other)
    without, _ = parse_options(base)
    with pytest.raises(ValueError, match=r"was made with timesteps \[999.0, 500.0\], not None"):
        check_same_run(sample, without)
    older = without.as_metadata()
    del older["timesteps"]
    sample.metadata_path.write_text(json.dumps({"arguments": older, "prompt": "a"}))
    check_same_run(sample, without)
    with pytest.raises(ValueError, match=r"was made with timesteps None, not \[999.0, 500.0\]"):
        check_same_run(sample, chosen)


def test_pipeline_takes_timesteps(release):
    pipeline = OpenSoraPipeline.from_pretrained(release / "transformer", release / "vae", release / "text")
    arguments = dict(num_frames=1, height=32, width=32, max_sequence_length=64, output_type="latent")
    own = pipeline("a", **arguments, num_inference_steps=4)
    timesteps = [float(t) for t in pipeline.scheduler.timesteps]
    assert np.array_equal(pipeline("a", **arguments, timesteps=timesteps), own)
    assert (pipeline("a", **arguments, timesteps=[999, 300, 200, 100]) != own).any()


def test_first_choices():
    own = get_scheduler("EulerDiscrete", rescale_betas_zero_snr=True)
    own.set_timesteps(4)
    choices = first_choices(own.timesteps, 0)
    assert choices["own"] == choices["uniform"] == (999, 749, 499, 249)
    assert choices["quadratic"] == (999, 562, 249, 62)  # 1000 (k / 4)² - 1
    many = first_choices(np.linspace(1000, 1, 200), 1)
    for timesteps in many.values():
        assert min(timesteps) >= 1 and len(timesteps) == 200 and (np.diff(timesteps) < 0).all()


def test_search_finds_the_minimum_and_continues_where_it_stopped():
    def error_of(timesteps, limit):
        tried.append(timesteps)
        assert timesteps[0] == 999 and (np.diff(timesteps) < 0).all() and timesteps[-1] >= 0
        return sum((t - target) ** 2 for t, target in zip(timesteps, (999, 900, 333, 0)))

    tried: list = []
    start = (999, 749, 499, 249)
    choices = list(improve(Choice(start, error_of(start, np.inf), first_move(start)), error_of, 0))
    np.testing.assert_allclose(choices[-1].timesteps, (999, 900, 333, 0), atol=2 * SHORTEST_MOVE)
    assert choices[-1].move == 0
    assert [choice.error for choice in choices] == sorted((choice.error for choice in choices), reverse=True)
    assert list(improve(choices[3], error_of, 0)) == choices[4:]
    assert len(tried) < 200


class Model:
    """A stand-in for a transformer that counts its calls."""

    calls = 0

    def text_states(self, text):
        return ((text[:, 0], text[:, 0]),)

    def adaln_single(self, timesteps):
        return timesteps, timesteps

    def __call__(self, x, *inputs):
        self.calls += 1
        timestep, _ = inputs[5]
        return x.tanh() * (timestep / 500).cos().reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("name, order", [("EulerDiscrete", 1), ("DPMSolverMultistep", 1), ("HeunDiscrete", 2)])
def test_calls_for_the_same_timesteps_are_computed_once(name, order):
    rng = np.random.default_rng(0)
    noises = [rng.standard_normal((1, 4, 1, 2, 2), dtype=np.float32) for _ in range(2)]
    texts = [TextEmbedding(np.zeros((1, 3, 4), np.float32), np.ones((1, 3), np.int32))] * 2

    def trajectories() -> Trajectories:
        model = Model()
        return Trajectories(model, get_scheduler(name), 1.0, DenoiseSettings(), texts, noises, [None, None], 8)

    reused = trajectories()
    start, other = (999, 700, 400, 100), (999, 700, 400, 150)
    first = reused.error(start)
    calls = reused.transformer.calls
    assert reused.error(start) == first and reused.transformer.calls == calls
    error = reused.error(other, np.inf)
    assert reused.transformer.calls == calls + 2 * order
    assert error == trajectories().error(other) and error != first
    assert reused.error(start, 1e-9) == np.inf  # sure after the first sample
    assert reused.transformer.calls == calls + 3 * order


def test_search_writes_a_file_for_sampling(run, flags, search_flags, release, tmp_path):
    path = tmp_path / "steps.json"
    search = [SEARCH, *search_flags, "--steps", 2, "--long_steps", 3, "--output", path]
    finished = run(*search)
    assert finished.returncode == 0, finished.stderr
    found = read_timesteps(path)
    assert found.searched["error"] <= min(found.searched["spacings"].values()) and found.searched["next_move"] == 0
    assert found.searched["sampler"] == "EulerDiscrete" and found.searched["prompts"] == ["a"]
    assert f"error {found.searched['error']:.4f}" in finished.stdout

    record = json.loads(path.read_text())
    record["searched"]["next_move"] = 7  # the last move, 999 / 4 halved five times
    path.write_text(json.dumps(record))  # as a search that was interrupted before its end
    finished = run(*search)
    assert finished.returncode == 0 and read_timesteps(path) == found, finished.stderr

    finished = run(*search, "--seed", 5)
    assert finished.returncode == 1 and "is of another search, with seed 1234, not 5" in finished.stderr
    finished = run(SEARCH, *search_flags, "--steps", 3, "--sample_method", "PNDM")
    assert finished.returncode == 1 and "error: PNDM takes a number of steps" in finished.stderr

    finished = run(SAMPLE, *flags, "--text_prompt", "a", "--save_latents", "--timesteps", path, "--num_frames", 1)
    assert finished.returncode == 0, finished.stderr
    record = tmp_path / "out/EulerAncestralDiscrete_0_gs7.5_s2.json"
    assert json.loads(record.read_text())["arguments"]["timesteps"] == list(found.timesteps)


@pytest.mark.parametrize(
    "more, message",
    [(["--steps", "1"], "--steps 1: a single step"), (["--steps", "100"], "--long_steps 100 should be")],
)
def test_search_without_a_choice_is_rejected(run, search_flags, more, message):
    finished = run(SEARCH, *search_flags, *more)
    assert finished.returncode == 1 and message in finished.stderr
