"""Text to video: the pipeline with golden cases, and the sample.py command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from golden_cases import relative_difference
from golden_release import check_golden_run, golden_pipeline
from processes import ROOT, slow

from opensora.cli import sample
from opensora.datasets.media import VideoReader, read_image
from opensora.pipelines import OpenSoraPipeline
from opensora.sample.options import parse_options
from opensora.sample.outputs import check_same_run, plan_samples
from opensora.sample.prompt_files import read_prompts

SAMPLE = "opensora/sample/sample.py"


def sample_here(flags: list[str], *more) -> None:
    """As the command does, in this process."""
    sample.main([*flags, *map(str, more)])


def outputs(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# In graph mode each compiles its own graphs, which takes long; an image has the operators of a video.
@pytest.mark.parametrize(
    "name, mode",
    [("release_e2e_t2v", 1), ("release_e2e_t2v", 0), ("release_e2e_t2i", 1), slow("release_e2e_t2i", 0)],
    ids=["video-pynative", "video-graph", "image-pynative", "image-graph"],
    indirect=["mode"],
)
def test_pipeline_matches_golden(name, mode):
    check_golden_run(name, golden_pipeline(OpenSoraPipeline))


def test_pipeline_is_repeatable(release):
    pipeline = OpenSoraPipeline.from_pretrained(release / "transformer", release / "vae", release / "text")
    arguments = dict(num_frames=5, height=32, width=32, num_inference_steps=2, max_sequence_length=64)
    first = pipeline("a", **arguments, seed=1, output_type="video")
    assert (first == pipeline("a", **arguments, seed=1, output_type="video")).all()
    assert (first != pipeline("a", **arguments, seed=2, output_type="video")).any()
    assert (first != pipeline("b", **arguments, seed=1, output_type="video")).any()
    with pytest.raises(ValueError, match=r"num_frames 6 is not 4n\+1 .nearest: 5, 9.; height 40 .*nearest: 32, 64"):
        pipeline("a", num_frames=6, height=40, width=32)
    with pytest.raises(ValueError, match="latents are"):
        pipeline("a", **arguments, latents=np.zeros((1, 8, 1, 4, 4), np.float32))


def test_prompt_file_run_resumes(run, flags, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\n")
    finished = run(SAMPLE, *flags, "--text_prompt", tmp_path / "prompts.txt")
    assert finished.returncode == 0, finished.stderr
    out = tmp_path / "out"
    names = [f"EulerAncestralDiscrete_{part}gs7.5_s2" for part in ("0_", "1_", "")]
    assert outputs(out) == sorted(
        [f"{names[0]}.json", f"{names[0]}.mp4", f"{names[1]}.json", f"{names[1]}.mp4", f"{names[2]}.mp4"]
    )
    with VideoReader(out / f"{names[0]}.mp4") as video:
        assert (len(video), video.height, video.width, round(video.fps)) == (5, 32, 64, 18)
    record = json.loads((out / f"{names[1]}.json").read_text())
    assert record["prompt"] == "a blue square" and record["arguments"]["num_sampling_steps"] == 2

    before = (out / f"{names[1]}.mp4").read_bytes()
    (out / f"{names[0]}.mp4").unlink()
    finished = run(SAMPLE, *flags, "--text_prompt", tmp_path / "prompts.txt")
    assert "1 of 2 results" in finished.stderr and (out / f"{names[0]}.mp4").exists()
    (out / f"{names[1]}.mp4").unlink()
    run(SAMPLE, *flags, "--text_prompt", tmp_path / "prompts.txt")
    assert (out / f"{names[1]}.mp4").read_bytes() == before  # identical to the result of the joint run
    (tmp_path / "prompts.txt").write_text("a red circle\na green square\n")
    finished = run(SAMPLE, *flags, "--text_prompt", tmp_path / "prompts.txt")
    assert finished.returncode == 1 and "was made with prompt 'a blue square'" in finished.stderr
    assert (out / f"{names[1]}.mp4").read_bytes() == before


def test_record_of_a_cached_video(run, flags, tmp_path):
    """It holds the cache and the calls. A resumed run gives the same video; one with another cache is refused."""
    command = [
        SAMPLE,
        *flags,
        "--num_sampling_steps",
        12,
        "--text_prompt",
        "a",
        "b",
        "--save_latents",
        "--cache",
        "easy:2",
    ]
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    results = sorted((tmp_path / "out").glob("*.npy"))
    records = [json.loads(path.with_suffix(".json").read_text()) for path in results]
    calls = [record["model_calls"] for record in records]
    assert len(results) == 2 and all(2 < count < 12 for count in calls)
    assert f"calls of the transformer for a video: {sum(calls) / 2:g}, without a cache 12" in finished.stderr
    assert records[0]["arguments"]["cache"] == "easy:2" and records[0]["device"]["compiled"] is True
    before = results[1].read_bytes()
    results[1].unlink()
    assert run(*command).returncode == 0
    assert results[1].read_bytes() == before
    finished = run(*command[:-1], "easy:3")
    assert finished.returncode == 1 and "was made with cache 'easy:2', not 'easy:3'" in finished.stderr
    finished = run(*command[:-1], "esy:3")
    assert finished.returncode == 1 and "'esy' is not a method of step caching (did you mean easy?)" in finished.stderr


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("{}", "no object with arguments"),
        ("[]", "no object with arguments"),
        ('{"arguments": []}', "no object with arguments"),
        ('{"arguments": {}, "prompt": "a"}', "model_path is missing"),
    ],
)
def test_result_without_valid_record_is_rejected(text, reason, flags, tmp_path):
    options, _ = parse_options([*flags, "--text_prompt", "a"])
    (sample,) = plan_samples(options, [("a", ())])
    sample.path.parent.mkdir(exist_ok=True)
    sample.metadata_path.write_text(text)
    check_same_run(sample, options)  # no result exists yet
    sample.path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=f"{sample.metadata_path.name} is not a valid record of .*{reason}.*--overwrite"
    ):
        check_same_run(sample, options)
    record = {"arguments": options.as_metadata(), "prompt": "a"}
    sample.metadata_path.write_text(json.dumps(record))
    check_same_run(sample, options)
    del record["prompt"]
    sample.metadata_path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="prompt is missing"):
        check_same_run(sample, options)


@pytest.mark.parametrize("precision, most", [("fp16", 0.02), ("bf16", 0.1)])
def test_latents_in_16_bits_are_close_to_float32(precision, most, flags, tmp_path):
    latents = {}
    for name in ("fp32", precision):
        folder = tmp_path / name
        sample_here(flags, "--text_prompt", "a", "--save_latents", "--precision", name, "--save_img_path", folder)
        (path,), (record,) = folder.glob("*.npy"), folder.glob("*.json")
        latents[name] = np.load(path)
        device = json.loads(record.read_text())["device"]
        assert device["precision"] == device["vae_precision"] == name
    assert latents[precision].dtype == np.float32
    assert 0 < relative_difference(latents[precision], latents["fp32"]) < most


def test_images_of_one_prompt_form_a_grid(flags, tmp_path):
    images_of_a_prompt = "--text_prompt a --num_frames 1 --num_samples_per_prompt 3 --video_extension png"
    sample_here(flags, *images_of_a_prompt.split(), "--guidance_scale", 1)
    images = [read_image(tmp_path / f"out/EulerAncestralDiscrete_0_gs1_s2_i{k}.png") for k in range(3)]
    assert images[0].shape == (32, 64, 3) and (images[0] != images[1]).any()
    grid = read_image(tmp_path / "out/EulerAncestralDiscrete_0_gs1_s2.png")
    assert grid.shape == (67, 131, 3) and (grid[1:33, 1:65] == images[0]).all()


def test_saved_latents_are_decoded_later(flags, tmp_path):
    base = [*flags, "--text_prompt", "a"]
    for more in ("--save_latents", "--decode_latents"):
        sample_here(base, more)
    stem = "EulerAncestralDiscrete_0_gs7.5_s2"
    assert outputs(tmp_path / "out") == [f"{stem}.json", f"{stem}.mp4", f"{stem}.npy"]
    two_runs = (tmp_path / "out" / f"{stem}.mp4").read_bytes()
    sample_here(base, "--overwrite", "--save_memory")
    assert (tmp_path / "out" / f"{stem}.mp4").read_bytes() == two_runs
    assert not (tmp_path / "out" / f"{stem}.npy").exists()


def test_save_memory_resumes_between_its_stages(flags, tmp_path, capsys):
    base = [*flags, "--text_prompt", "a"]
    sample_here(base, "--save_latents")
    assert "denoising" in capsys.readouterr().err
    latents = tmp_path / "out/EulerAncestralDiscrete_0_gs7.5_s2.npy"
    np.save(latents, np.zeros_like(np.load(latents)))  # zeros reveal whether the saved latents are decoded
    sample_here(base, "--save_memory")
    assert "denoising" not in capsys.readouterr().err and not latents.exists()
    with VideoReader(latents.with_suffix(".mp4")) as video:
        from_zeros = video.read(range(5))
    sample_here(base, "--overwrite")
    with VideoReader(latents.with_suffix(".mp4")) as video:
        assert (video.read(range(5)) != from_zeros).any()


def test_killed_run_leaves_only_complete_files(flags, tmp_path):
    def finished() -> list:
        return sorted((tmp_path / "out").glob("[!.]*.mp4"))

    command = [sys.executable, SAMPLE, *flags, "--text_prompt", *"abcdefgh", "--num_sampling_steps", "50"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not finished():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    videos = finished()
    assert 1 <= len(videos) < 8
    for video in videos:
        with VideoReader(video) as reader:
            assert len(reader) == 5


def test_command_line_overrides_config_file(flags, tmp_path):
    values = {"num_sampling_steps": 7, "guidance_scale": 3, "rescale_betas_zero_snr": False, "text_prompt": ["x", "y"]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    strings = [flag for flag in flags if flag != "--rescale_betas_zero_snr"]
    options, _ = parse_options([*strings, "--config", str(tmp_path / "run.yaml")])
    assert options.num_sampling_steps == 2 and options.guidance_scale == 3.0  # the command line wins
    assert list(options.text_prompt) == ["x", "y"] and not options.rescale_betas_zero_snr
    for text, message in (
        ("num_sampling_step: 3", "num_sampling_steps"),
        ("fps: many", "fps"),
        ("sample_method: X", "not one of"),
        ("- a", "flag: value"),
        ("overwrite: 3", "true or false"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            parse_options([*strings, "--text_prompt", "x", "--config", str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(
    "more, message",
    [
        (["--num_frames", "6"], "nearest: 5, 9"),
        (["--height", "100"], "nearest: 96, 128"),
        (["--ae", "WFVAEModel_D16_4x8x8"], "works on latents of 8 channels"),
        (["--sparse_n", "2"], "contradicts"),
        (["--video_extension", "png"], "for images"),
        (["--fps", "0"], "--fps must be 1"),
        (["--prompt_template", "a photo of"], "no {}, the placeholder for the prompt"),
        (["--model_path", "nowhere"], "nowhere"),
        (["--save_latents", "--decode_latents"], "use one of them"),
    ],
)
def test_invalid_arguments_are_reported_before_loading(flags, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        parse_options([*flags, "--text_prompt", "x", *more])


def test_unknown_sampler_lists_the_known_ones(run, flags):
    finished = run(SAMPLE, *flags, "--text_prompt", "x", "--sample_method", "Euler")
    assert finished.returncode != 0 and "EulerAncestralDiscrete" in finished.stderr


def test_prompts_are_read_from_files_or_arguments(tmp_path):
    (tmp_path / "a.csv").write_text('path,cap\n1.mp4,one\n2.mp4,"two, three"\n')
    assert read_prompts([str(tmp_path / "a.csv")]) == ["one", "two, three"]
    assert read_prompts(["one", "two"]) == ["one", "two"]
    for name, text, message in (("b.csv", "x,y\n1,2\n", "none of prompt"), ("c.txt", "\n", "no prompts")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_prompts([str(tmp_path / name)])


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.TXT", "one\n\n two\n"),
        ("a.CSV", "x, Prompt\n1,one\n2,\n3,two\n"),
        ("a.md", "one\ntwo"),
        ("dir.with/prompts", "one\ntwo"),
        ("a.json", '["one", "", "two"]'),
        ("a.JSON", '[{"path": "x", "cap": "one"}, {"prompt": "two"}]'),
        ("a.jsonl", '"one"\n{"text": "two"}\n'),
        ("b.jsonl", "one\ntwo\n"),
        ("bom.txt", "\ufeffone\ntwo"),
    ],
)
def test_prompt_file_formats(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts([str(tmp_path / name)]) == ["one", "two"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("gbk.txt", "\u7ea2\u8272\u7684\u5706".encode("gbk"), "gbk.txt: not UTF-8 text; convert it"),
        ("latin1.csv", b"prompt\ncaf\xe9\n", "latin1.csv: not UTF-8"),
        ("utf16.txt", "a".encode("utf-16"), "UTF-16"),
        ("a.json", b'["a", 1]', "entry 1: should be a string"),
        ("b.json", b'["a", ', "b.json: after 1 objects"),
        ("c.json", b'["half \\ud83d"]', "c.json: prompt 1: has half of a surrogate pair"),
        ("a.docx", b"PK", "prompt files end with .txt"),
        ("empty.json", b"[]", "holds no prompts"),
    ],
)
def test_unreadable_prompt_files_are_rejected(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts([str(tmp_path / name)])


@pytest.mark.parametrize("prompt", ["no.txt", "no.TXT", "my prompts.csv", "no.json", "no.yaml", "nowhere/prompts"])
def test_file_names_are_not_prompts(prompt):
    with pytest.raises(FileNotFoundError, match="no such file of prompts"):
        read_prompts([prompt])
    with pytest.raises(ValueError, match="takes prompts or one file"):
        read_prompts(["a cat", prompt])


def test_prompts_may_resemble_file_names():
    prompts = ["black/white stripes", "a report.pdf on a desk", "v1.5", "cat", "\u767d/\u9ed1", "", "a" * 5000]
    for prompt in prompts:
        assert read_prompts([prompt]) == [prompt]
    assert read_prompts(prompts) == prompts
    with pytest.raises(ValueError, match="prompt 2: has half of a surrogate pair"):
        read_prompts(["a", "b\udcff"])


def test_truncated_prompt_is_reported(flags, capsys):
    texts = ["--text_prompt", "a b c d e f g h i j", "--prompt_template", "{}", "--negative_prompt", ""]
    sample_here(flags, "--num_frames", 1, "--max_sequence_length", 8, *texts)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is truncated" in line]
    assert "'a b c d e f g h i j'... has " in line and "truncated to 8;" in line and "--max_sequence_length" in line


def test_template_and_negative_prompt_are_used(release, flags, tmp_path, monkeypatch):
    """Prompt template and negative prompt default to the published ones; both can be replaced."""

    def texts_of(**options) -> list[str]:
        pipeline = OpenSoraPipeline.from_pretrained(
            release / "transformer", release / "vae", release / "text", **options
        )
        texts = []
        tokenizer = pipeline.tokenizer
        monkeypatch.setattr(pipeline, "tokenizer", lambda some, length: texts.extend(some) or tokenizer(some, length))
        pipeline.embed_prompt("a boat", 7.5)
        pipeline.embed_prompt("{} %s", 1.0)
        return texts

    negative, positive, alone = texts_of()
    assert "worst quality" in negative and positive.split() == "high quality, high aesthetic, a boat".split()
    assert alone.split() == "high quality, high aesthetic, {} %s".split()
    assert texts_of(prompt_template="photo: {}", negative_prompt="") == ["", "photo: a boat", "photo: {} %s"]

    sample_here(flags, "--num_frames", 1, "--text_prompt", "x", "--prompt_template", "{}", "--negative_prompt", "y")
    (metadata,) = (tmp_path / "out").glob("*.json")
    recorded = json.dumps(json.loads(metadata.read_text()))
    assert '"prompt_template": "{}"' in recorded and '"negative_prompt": "y"' in recorded


@pytest.mark.parametrize(
    "flag, folder, message",
    [
        ("--model_path", "vae", "holds a WFVAEModel; --model_path with --model_type t2v needs an OpenSoraT2V_v1_3"),
        ("--model_path", "text", "holds an? .*5.*; --model_path with --model_type t2v needs an OpenSoraT2V_v1_3"),
        ("--ae_path", "transformer", "holds an OpenSoraT2V_v1_3; --ae_path needs a WFVAEModel"),
        (
            "--ae_path",
            "causal",
            "holds a CausalVAEModel .the autoencoder of Open-Sora-Plan v1.0 to v1.2.; --ae_path needs",
        ),
        ("--text_encoder_name_1", "vae", "holds a WFVAEModel; --text_encoder_name_1 needs an MT5EncoderModel"),
        ("--ae_path", "empty", "empty: no weights in this folder"),
        ("--ms_checkpoint", "gone.ckpt", "gone.ckpt: no such file"),
    ],
)
def test_folders_of_other_models_are_rejected(release, flags, tmp_path, flag, folder, message):
    """By the command before a model is loaded, and by the pipeline."""
    (tmp_path / "causal").mkdir()
    (tmp_path / "causal/config.json").write_text(json.dumps({"hidden_size_mult": [1, 2, 4, 4], "z_channels": 4}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text((release / "vae/config.json").read_text())
    path = release / folder if (release / folder).exists() else tmp_path / folder
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_options([*flags, flag, str(path), "--text_prompt", "a"])
    folders = {
        "--model_path": release / "transformer",
        "--ae_path": release / "vae",
        "--text_encoder_name_1": release / "text",
    }
    if flag in folders:
        with pytest.raises((ValueError, FileNotFoundError), match=message.split("; ")[0]):
            OpenSoraPipeline.from_pretrained(*{**folders, flag: path}.values())
