"""opensora benchmark-prompts from a list of prompts to its report."""

from __future__ import annotations

import json

import pytest

from opensora.cli.benchmark_prompts import main


def test_videos_have_names_of_vbench_and_the_report_has_their_seeds(flags, tmp_path, capsys):
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt_en": "a cat"}, {"prompt_en": "a dog"}]))
    argv = [*flags, "--text_prompt", str(tmp_path / "prompts.json"), "--num_samples_per_prompt", "2"]
    main(argv)
    videos = tmp_path / "out/videos"
    names = ["a cat-0.mp4", "a cat-1.mp4", "a dog-0.mp4", "a dog-1.mp4"]
    assert sorted(path.name for path in videos.iterdir()) == names
    (folder,) = json.loads((tmp_path / "out/report/report.json").read_text())["folders"]
    assert folder["sampling"]["seeds"] == [[1234, 0, 0], [1234, 0, 1], [1234, 1, 0], [1234, 1, 1]]
    assert folder["sampling"]["arguments"]["num_sampling_steps"] == 2
    assert set(folder["values"]) == {"temporal_flickering", "motion_amount"}
    assert "only VBench itself measures: motion_smoothness" in capsys.readouterr().out

    before = (videos / names[0]).stat().st_mtime_ns
    (tmp_path / "out/samples" / "EulerAncestralDiscrete_1_gs7.5_s2_i1.mp4").unlink()
    main(argv)  # makes what is missing
    assert (videos / names[0]).stat().st_mtime_ns == before and len(list(videos.iterdir())) == 4


def test_images_are_refused(flags, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="benchmark-prompts makes videos from text"):
        main([*flags, "--text_prompt", str(tmp_path / "prompts.txt"), "--force_images"])
