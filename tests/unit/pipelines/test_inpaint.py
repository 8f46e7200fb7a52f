"""Image to video and the other tasks of the inpaint model: against the reference, and as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference, weight
from golden_models import dit_rows
from mindspore import Tensor
from processes import msrun
from tiny_models import DIT, make_release

from opensora.datasets.masks import MaskType
from opensora.datasets.media import VideoReader, read_image, save_image, write_video
from opensora.datasets.transforms import resize_crop
from opensora.models import OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3
from opensora.pipelines import OpenSoraInpaintPipeline
from opensora.pipelines.conditions import read_condition
from opensora.sample.options import parse_options, read_inputs

SAMPLE = "opensora/sample/sample.py"


def random_image(path, height, width, seed=0):
    save_image(path, np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """As `make_release`, with an inpaint transformer whose condition counts."""
    folder = make_release(tmp_path_factory.mktemp("release"))
    model = OpenSoraInpaint_v1_3(**DIT)
    model.load_torch_state({name: weight("release", name, value.shape) for name, value in model.torch_state().items()})
    model.save_pretrained(folder / "inpaint")
    return folder


@pytest.fixture(scope="module")
def pipeline(release):
    return OpenSoraInpaintPipeline.from_pretrained(release / "inpaint", release / "vae", release / "text")


@pytest.fixture
def files(tmp_path):
    """Two images and a video."""
    images = [random_image(tmp_path / f"{i}.png", 70, 100 - 2 * i, i) for i in range(2)]
    with write_video(tmp_path / "clip.mp4", 18) as write:
        write(np.random.RandomState(2).randint(0, 256, (9, 64, 96, 3), np.uint8))
    return [*images, tmp_path / "clip.mp4"]


@pytest.fixture
def flags(release, tmp_path):
    """The flags of a small run; results go to tmp_path/out."""
    return [
        "--model_type",
        "i2v",
        "--model_path",
        release / "inpaint",
        "--ae_path",
        release / "vae",
        "--text_encoder_name_1",
        release / "text",
        "--save_img_path",
        tmp_path / "out",
        "--num_frames",
        9,
        "--height",
        32,
        "--width",
        64,
        "--num_sampling_steps",
        2,
        "--max_sequence_length",
        64,
        "--rescale_betas_zero_snr",
        "--device",
        "CPU",
    ]


def write_inputs(folder, *pairs) -> list:
    """The two files of a run, and their flags."""
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt, _ in pairs))
    (folder / "conditions.txt").write_text("".join(f"{', '.join(map(str, paths))}\n" for _, paths in pairs))
    return ["--text_prompt", folder / "prompts.txt", "--conditional_pixel_values_path", folder / "conditions.txt"]


def test_golden_model(mode):
    rows = dit_rows("inpaint_tiny")
    assert max(rows.values()) < 1e-4, rows


def test_golden(release_tiny, mode):
    folder = release_tiny / "LanguageBind/Open-Sora-Plan-v1.3.0"
    pipeline = OpenSoraInpaintPipeline.from_pretrained(
        folder / "any93x640x640_i2v", folder / "vae", release_tiny / "google/mt5-xxl"
    )
    for name in ("release_e2e_i2v", "release_e2e_transition"):
        run, reference = case(name, "release_e2e.json"), load_case(name)
        shape = reference["latents"].shape
        latents = pipeline(
            run["prompt"],
            run["num_frames"],
            run["height"],
            run["width"],
            run["steps"],
            run["guidance_scale"],
            max_sequence_length=run["max_sequence_length"],
            latents=given(name, "init", shape),
            step_noise=lambda k: given(name, f"noise{k}", shape),
            output_type="latent",
            crop_for_hw=True,
            sample_condition=False,
            conditional_pixel_values_path=[release_tiny / file for file in run["condition"]],
        )
        assert relative_difference(latents, reference["latents"]) < 1e-3
        frames = pipeline.output(Tensor(latents), "frames")
        assert (np.abs(frames.astype(int) - reference["frames"]) <= 1).mean() >= 0.999


def test_start_from_text_to_video(release, capsys):
    t2v = OpenSoraT2V_v1_3.from_pretrained(release / "transformer")
    model = OpenSoraInpaint_v1_3.init_from(release / "transformer")
    assert "text-to-video weights; the conditioning layers are new" in capsys.readouterr().err
    x, text = given("start", "x", (1, 20, 2, 8, 8)), Tensor(given("start", "text", (1, 1, 6, 32)))
    plain = t2v(Tensor(x[:, :8]), Tensor([500]), text).asnumpy()
    assert (model(Tensor(x), Tensor([500]), text).asnumpy() == plain).all()
    state = model.torch_state()
    assert (state["pos_embed_masked_hidden_states.0.proj.weight"] == state["pos_embed.proj.weight"]).all()

    def loss(x):
        return (model(x, Tensor([500]), text) ** 2).mean()

    projections = [
        parameter
        for name, parameter in model.parameters_and_names()
        if name.endswith(".1.weight") and name.startswith("pos_embed_")
    ]
    gradients = ms.grad(loss, None, ms.ParameterTuple(projections))(Tensor(x))
    assert len(gradients) == 2 and all(np.abs(gradient.asnumpy()).max() > 0 for gradient in gradients)


def test_start_from_own_weights(release, tmp_path, capsys):
    model = OpenSoraInpaint_v1_3.init_from(release / "inpaint")
    assert not capsys.readouterr().err
    expected = OpenSoraInpaint_v1_3.from_pretrained(release / "inpaint").torch_state()
    assert all((value == expected[name]).all() for name, value in model.torch_state().items())
    with pytest.raises(ValueError, match="wrong shapes"):
        OpenSoraInpaint_v1_3.init_from(release / "transformer", config={**DIT, "caption_channels": 40})


def test_what_files_mean(files, tmp_path):
    def known(paths, **more):
        return read_condition(paths, 9, size=(32, 64), **more).indices

    three = [*files[:2], files[0]]
    assert known(files[:1]) == (0,) and known(files[:2]) == (0, 8) and known(three) == (0, 4, 8)
    assert known(three, mask_type="continuation") == (0, 1, 2) and known(three, mask_type="t2iv") == ()
    assert known(three, indices=[0, 5, -1]) == (0, 5, 8)
    assert known(files[2:]) in ((0, 1, 2, 3), (0, 1, 2, 3, 4))
    assert known(files[2:], mask_type="transition") == (0, 8) and known(files[2:], mask_type="clear") == (*range(9),)
    draws = {known(files[2:], mask_type="random_temporal", seed=seed) for seed in (1, 1, 2)}
    assert len(draws) == 2 and all(len(draw) in (4, 5) for draw in draws)
    for more, message in (
        ({"mask_type": "i2v"}, "takes 1 images"),
        ({"mask_type": "transition"}, "takes 2 images"),
        ({"mask_type": "clear"}, "takes 9 images"),
        ({"indices": [0, 4]}, "2 indices for 3 images"),
        ({"indices": [0, 4, 9]}, "from 0 to 8"),
        ({"indices": [0, 8, -1]}, "each should be another"),
        ({"mask_type": "i3v"}, "t2iv, i2v"),
    ):
        with pytest.raises(ValueError, match=message):
            known(three, **more)
    with pytest.raises(ValueError, match="one video or any number of images"):
        known([files[0], files[2]])
    with pytest.raises(ValueError, match="neither an image"):
        known([tmp_path / "a.txt"])
    with pytest.raises(FileNotFoundError, match="a.png"):
        known([tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"clip.mp4: 1[45] frames needed, 9 can be read"):
        read_condition(files[2:], 29, size=(32, 64))


def test_sizes(files, tmp_path):
    assert read_condition(files[:2], 9).size == (64, 96)  # the smallest height and width, cut to multiples of 32
    assert read_condition([random_image(tmp_path / "large.jpg", 800, 1200)], 9).size == (384, 576)  # 236544 pixels
    assert read_condition(files[:1], 9, size=(96, 64)).size == (96, 64)
    with pytest.raises(ValueError, match="10x10: too small"):
        read_condition([random_image(tmp_path / "small.png", 10, 10)], 9)
    with pytest.raises(ValueError, match="max_hxw 1000 should lie between 102400 and 236544"):
        read_condition(files[:1], 9, max_hxw=1000)


@pytest.mark.parametrize("mask_type", MaskType.__members__)
def test_mask_types_on_a_real_video(mask_type, pipeline, media):
    path = media / "flipping_a_pancake.mkv"
    arguments = dict(
        num_frames=9,
        height=32,
        width=64,
        num_inference_steps=2,
        max_sequence_length=64,
        crop_for_hw=True,
        conditional_pixel_values_path=path,
        mask_type=mask_type,
    )
    made = pipeline("a pancake", **arguments)
    kept = pipeline("a pancake", **arguments, keep_condition=True)
    known = list(read_condition([path], 9, mask_type, (32, 64)).indices)
    unknown = [index for index in range(9) if index not in known]
    with VideoReader(path) as reader:
        frames = reader.read(range(9)).transpose(0, 3, 1, 2)
    expected = np.stack([resize_crop(frame, 32, 64) for frame in frames]).transpose(0, 2, 3, 1)
    assert made.shape == kept.shape == (1, 9, 32, 64, 3)
    assert (kept[0, known] == expected[known]).all() and (kept[0, unknown] == made[0, unknown]).all()


def test_the_condition_counts(pipeline, files):
    arguments = dict(num_frames=5, num_inference_steps=2, max_sequence_length=64, output_type="latent")
    first = pipeline("a", **arguments, conditional_pixel_values_path=files[0])
    assert first.shape == (1, 8, 2, 8, 12)
    assert (first == pipeline("a", **arguments, conditional_pixel_values_path=[files[0]])).all()
    others = [
        dict(mask_type="t2iv"),
        dict(conditional_pixel_values_indices=[-1]),
        dict(noise_strength=0.5),
        dict(sample_condition=False),
        dict(seed=1),
    ]
    for other in others:
        assert (first != pipeline("a", **arguments, conditional_pixel_values_path=files[0], **other)).any()
    with pytest.raises(ValueError, match="noise_strength 2 "):
        pipeline("a", **arguments, conditional_pixel_values_path=files[0], noise_strength=2)
    with pytest.raises(ValueError, match="'latent' is not one of frames, video"):
        pipeline("a", **arguments, conditional_pixel_values_path=files[0], keep_condition=True)


def test_two_files_and_resume(run, flags, files, tmp_path):
    inputs = write_inputs(tmp_path, ("a", files[:1]), ("b", files[:2]), ("c", files[2:]))
    finished = run(SAMPLE, *flags, *inputs)
    assert finished.returncode == 0, finished.stderr
    stems = [f"{tmp_path}/out/EulerAncestralDiscrete_{i}_gs7.5_s2" for i in range(3)]
    for stem in stems:
        with VideoReader(f"{stem}.mp4") as video:
            assert (len(video), video.height, video.width) == (9, 64, 96)
    assert json.loads(Path(f"{stems[1]}.json").read_text())["condition"] == [str(path) for path in files[:2]]
    second = Path(f"{stems[1]}.mp4")
    before = second.read_bytes()
    second.unlink()
    finished = run(SAMPLE, *flags, *inputs, "--save_memory")
    assert "2 of 3 results" in finished.stderr
    assert second.read_bytes() == before  # in stages and alone, it is what it was
    finished = run(SAMPLE, *flags, *write_inputs(tmp_path, ("a", files[:1]), ("b", files[1::-1]), ("c", files[2:])))
    assert finished.returncode == 1 and "was made with condition" in finished.stderr


def test_images_are_kept_as_they_are(run, flags, files, tmp_path):
    finished = run(
        SAMPLE,
        *flags,
        "--num_frames",
        1,
        "--video_extension",
        "png",
        "--text_prompt",
        "a",
        "b",
        *write_inputs(tmp_path, ("a", files[:1]), ("b", files[1:2]))[2:],
        "--crop_for_hw",
        "--keep_condition",
    )
    assert finished.returncode == 0, finished.stderr
    for i in range(2):
        image = read_image(tmp_path / f"out/EulerAncestralDiscrete_{i}_gs7.5_s2.png")
        assert (image == resize_crop(read_image(files[i]).transpose(2, 0, 1), 32, 64).transpose(1, 2, 0)).all()
    assert read_image(tmp_path / "out/EulerAncestralDiscrete_gs7.5_s2.png").shape == (67, 66, 3)  # the grid


def test_bad_files_are_told_before_loading(run, flags, files, tmp_path):
    inputs = write_inputs(tmp_path, ("a", files[:1]), ("b", [tmp_path / "gone.png"]))
    finished = run(SAMPLE, *flags, *inputs)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1 and "gone.png: no such file" in finished.stderr
    assert not list(tmp_path.glob("out/*"))


def test_inputs_that_do_not_pair(flags, files, tmp_path):
    inputs = [*map(str, flags), *map(str, write_inputs(tmp_path, ("a", files[:1]), ("b", files[:2])))]
    assert read_inputs(parse_options(inputs)[0]) == [("a", (str(files[0]),)), ("b", tuple(map(str, files[:2])))]
    (tmp_path / "prompts.txt").write_text("a\nb\n\nc\n")
    with pytest.raises(ValueError, match="prompts.txt has 3 prompts, .*conditions.txt has 2 lines"):
        read_inputs(parse_options(inputs)[0])
    options, _ = parse_options([*map(str, flags), "--text_prompt", "a", "--conditional_pixel_values_path", "x.png"])
    assert read_inputs(options) == [("a", ("x.png",))]


def test_line_i_belongs_to_line_i(tmp_path):
    def inputs(prompts: str, conditions: str, name: str = "conditions") -> list:
        (tmp_path / "prompts.txt").write_text(prompts)
        (tmp_path / name).write_text(conditions)
        return read_inputs(
            SimpleNamespace(
                is_inpaint=True,
                text_prompt=[str(tmp_path / "prompts.txt")],
                conditional_pixel_values_path=str(tmp_path / name),
            )
        )

    pairs = [("a", ("1.png",)), ("c", ("2.png", "3.png"))]
    assert inputs("a\n\nc\n\n\n", "1.png\n \n2.png, 3.png\n") == pairs  # the second file has no suffix
    assert inputs("a\nc", "1.png\n2.png,3.png", "c.TXT") == pairs
    for prompts, conditions, message in (
        ("a\n\nc\n", "1.png\n2.png\n\n", "line 3 of .*prompts.txt has no condition"),
        ("a\n\nc\n", "1.png\n2.png\n3.png", "line 2 of .*conditions has no prompt"),
        ("a", "1.png\n2.png\n3.png", "line 2, 3 of .*conditions has no prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs(prompts, conditions)
    for name in ("nowhere", "nowhere.txt", "no/where"):
        with pytest.raises(FileNotFoundError, match="no such file of conditions"):
            read_inputs(SimpleNamespace(is_inpaint=True, text_prompt=["a"], conditional_pixel_values_path=name))


@pytest.mark.parametrize(
    "more, message",
    [
        (["--model_type", "t2v", "--conditional_pixel_values_path", "x.png"], "is for --model_type inpaint or i2v"),
        ([], "needs --conditional_pixel_values_path"),
        (["--model_type", "t2v"], "holds an OpenSoraInpaint_v1_3"),
        (["--conditional_pixel_values_path", "x.png", "--noise_strength", "1.5"], "noise_strength 1.5"),
        (["--conditional_pixel_values_path", "x.png", "--caption_refiner", "x"], "--caption_refiner is for"),
        (["--conditional_pixel_values_path", "x.png", "--sp", "--sp_size", "2"], "use one of them"),
    ],
)
def test_wrong_arguments(flags, more, message):
    with pytest.raises(ValueError, match=message):
        parse_options([*map(str, flags), "--text_prompt", "a", *more])


def test_processes_that_share_a_video_make_the_same(run, flags, files, tmp_path):
    command = [SAMPLE, *flags, *write_inputs(tmp_path, ("a", files[:1]), ("b", files[2:])), "--save_latents"]
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    finished, logs = msrun(
        2, tmp_path / "logs", *command, "--save_img_path", tmp_path / "many", "--use_parallel", "True", "--sp"
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + logs[0][-3000:]
    for i in range(2):
        name = f"EulerAncestralDiscrete_{i}_gs7.5_s2.npy"
        assert relative_difference(np.load(tmp_path / "many" / name), np.load(tmp_path / "out" / name)) < 1e-4
