"""opensora evaluate and benchmark-prompts with small networks and real video files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from golden_cases import case
from golden_eval import EVAL_CASES, VBENCH_CLIP, build_network, with_golden_weights, write_clip
from video_files import moving_image

from opensora.cli.benchmark_prompts import benchmark_prompts
from opensora.cli.evaluate import main
from opensora.datasets.media import write_video
from opensora.eval.curves import draw_curves
from opensora.eval.results import Results
from opensora.eval.run import FolderResult
from opensora.models.vision.aesthetic import AestheticHead


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """CLIP with a tokenizer of bytes, and the aesthetic head."""
    folder = tmp_path_factory.mktemp("networks")
    write_clip(folder / "clip")
    head = case(VBENCH_CLIP, EVAL_CASES)["head"]
    with_golden_weights(AestheticHead(), VBENCH_CLIP, head).save_pretrained(folder / "head")
    return folder


@pytest.fixture
def videos(tmp_path) -> Path:
    """`gen` with three videos, of which one is damaged, and `real` with the same names."""
    frames = moving_image(12)
    for folder, changed in (("real", frames), ("gen", np.clip(frames.astype(int) + 9, 0, 255).astype(np.uint8))):
        for name in ("a.mp4", "b.mp4"):
            with write_video(tmp_path / folder / name, fps=10) as write:
                write(changed[:: 1 if name == "a.mp4" else -1])
    (tmp_path / "gen/c.mp4").write_bytes(b"no video")
    (tmp_path / "prompts.json").write_text(json.dumps({"a.mp4": "a square", "b": "a circle", "d": "nothing"}))
    return tmp_path


def flags(videos: Path, networks: Path, *more) -> list[str]:
    return [
        *f"--generated_video_dir {videos}/gen --real_video_dir {videos}/real --prompts {videos}/prompts.json".split(),
        *f"--clip_path {networks}/clip --clip_large_path {networks}/clip --aesthetic_path {networks}/head".split(),
        *map(str, more),
    ]


def test_all_that_is_possible_is_measured_in_one_run_and_resumed(videos, networks, capsys):
    output = videos / "out"
    main(flags(videos, networks, "--output_dir", output))
    screen = capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    (folder,) = report["folders"]
    assert (
        set(folder["values"])
        == set(report["protocols"])
        == {
            *("psnr", "ssim", "clipsim", "clip_score", "temporal_flickering", "motion_amount"),
            *("background_consistency", "aesthetic_quality"),
        }
    )
    assert folder["left_out"]["fvd"] == "needs --i3d_path" and "lpips" in folder["left_out"]
    assert list(folder["videos"]) == ["a.mp4", "b.mp4"] and "c.mp4" in folder["skipped"] and "c.mp4" in screen
    assert all(seconds > 0 for seconds in folder["seconds"].values())
    assert 20 < folder["values"]["psnr"] < 40
    assert "| psnr |" in (output / "report.md").read_text() and "<td>psnr</td>" in (output / "report.html").read_text()

    records = next((output / "videos").glob("*.jsonl"))
    lines = records.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["values"]["psnr"] = 1000.0
    records.write_text("\n".join([lines[0], json.dumps(changed), lines[2][:30]]))  # killed while it wrote the second
    main(flags(videos, networks, "--output_dir", output))
    again = json.loads((output / "report.json").read_text())["folders"][0]
    assert again["values"]["psnr"] > 500 and list(again["videos"]) == ["a.mp4", "b.mp4"]
    main(flags(videos, networks, "--output_dir", output, "--num_frames", 6))
    assert json.loads((output / "report.json").read_text())["folders"][0]["values"]["psnr"] < 40


def test_prompts_come_from_the_records_of_sampling_too(videos, networks, capsys):
    for name, prompt in (("a", "a square"), ("b", "a circle")):
        (videos / f"gen/{name}.json").write_text(
            json.dumps({"prompt": prompt, "noise_seed": [1], "arguments": {"x": 1}})
        )
    common = ["--generated_video_dir", str(videos / "gen"), "--clip_path", str(networks / "clip")]
    main([*common, "--metrics", "clipsim", "--output_dir", str(videos / "one")])
    main(
        [
            *common,
            "--metrics",
            "clipsim",
            "--prompts",
            str(videos / "prompts.json"),
            "--output_dir",
            str(videos / "two"),
        ]
    )
    one, two = (json.loads((videos / name / "report.json").read_text())["folders"][0] for name in ("one", "two"))
    assert one["values"] == two["values"]
    assert one["sampling"] == {"seeds": [[1], [1]], "arguments": {"x": 1}}


@pytest.mark.parametrize(
    "more, error",
    [
        (["--metrics", "fvd"], "fvd needs --i3d_path"),
        (["--metrics", "subject_consistency"], "subject_consistency needs --dino_path"),
        (["--prompts", "{}/lines.txt"], "lines.txt: has 1 prompts for 3 videos"),
    ],
)
def test_what_is_missing_is_named_before_any_video_is_read(more, error, videos, networks):
    (videos / "lines.txt").write_text("one\n")
    with pytest.raises(ValueError, match=error):
        main(flags(videos, networks, *(word.format(videos) for word in more)))


def test_damaged_results_are_named(tmp_path):
    results = Results(tmp_path / "r.jsonl", {"a": 1})
    results.add("x.mp4", {"values": {}})
    assert Results(tmp_path / "r.jsonl", {"a": 1}).records == {"x.mp4": {"values": {}}}
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(ValueError, match="r.jsonl: damaged .*; delete it"):
        Results(tmp_path / "r.jsonl", {"a": 1})


def test_curves_are_drawn_for_one_folder_and_for_several(tmp_path):
    one = FolderResult("a", {"psnr": 30.0, "fvd": 5.0}, {"x": {"psnr": 29.0}, "y": {"psnr": 31.0}})
    draw_curves([one], tmp_path / "one.png")
    draw_curves([one, FolderResult("b", {"psnr": 32.0})], tmp_path / "two.png")
    assert (tmp_path / "one.png").stat().st_size > 1000 and (tmp_path / "two.png").stat().st_size > 1000


def test_prompt_lists(tmp_path):
    (tmp_path / "full.json").write_text(
        json.dumps([{"prompt_en": "a cat"}, {"prompt_en": "a  dog"}, {"prompt_en": "a cat"}])
    )
    assert benchmark_prompts(str(tmp_path / "full.json")) == ["a cat", "a dog"]
    (tmp_path / "p.txt").write_text("one\n\ntwo/three\n")
    with pytest.raises(ValueError, match="the prompt 'two/three' cannot name a file"):
        benchmark_prompts(str(tmp_path / "p.txt"))


def test_network_of_the_wrong_kind_is_refused(videos, networks):
    with pytest.raises(ValueError, match="weights do not fit I3D"):
        main(flags(videos, networks, "--i3d_path", networks / "head", "--metrics", "fvd"))
    assert build_network(AestheticHead, "eval_aesthetic").config.width == 768
