"""The options of inference configs, and the names of the outputs."""

from __future__ import annotations

import re

import pytest

from opensora.sample.inference_options import InferenceOptions, file_name, plan_requests, without_effect

FIELDS = dict(num_frames=4, image_size=(32, 32), fps=24, save_dir="samples")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loop": 2}, "condition_frame_length None: with loop 2 it should be from 1 to 3"),
        ({"loop": 2, "condition_frame_length": 4}, "from 1 to 3"),
        ({"num_sample": 0}, "num_sample 0"),
        ({"frame_interval": 30}, "less than 1 frame a second"),
        ({"image_size": (32,)}, "height and width"),
        ({"image_size": 512}, "image_size 512: should be height and width"),
        ({"image_size": (32.5, 64)}, "integers of at least 8"),
        ({"loop": 2, "condition_frame_length": "2"}, "condition_frame_length '2'"),
        ({"sample_name": "s" * 51}, "at most 50 bytes"),
        ({"batch_size": 1.5}, "batch_size 1.5: should be an integer"),
    ],
)
def test_invalid_options_are_rejected(changes, words):
    with pytest.raises(ValueError, match=words):
        InferenceOptions(**{**FIELDS, **changes})


PROMPTS = [
    "a/b",
    "a_b",
    "a\\b",
    "a\nb",
    "a_b-" + "0" * 16,
    "a",
    "a",
    "a ",
    " a",
    "A",
    "",
    "",
    " ",
    ".",
    "..",
    ".a",
    "_a",
    "_10",
    "a-0",
    "ж" * 200,
    "ж" * 201,
    "ж" * 75,
    "x" * 5000,
    'a{"mask_strategy": ""}',
    'a{"mask_strategy": "None"}',
    file_name("a/b"),
]


def test_names_of_prompts_are_unique():
    """Names do not depend on the selected subset of prompts, and fit into a file name with a temporary suffix."""
    for num_sample in (1, 2):
        options = InferenceOptions(**FIELDS, prompt_as_path=True, num_sample=num_sample, sample_name="s" * 50)

        def names(first: int, last: int) -> list:
            config = {"prompt": PROMPTS[first:last], "earlier_prompts": PROMPTS[:first], "first_index": first}
            return [
                options.path(request, number).name
                for request in plan_requests(config, options, long=True)
                for number in range(num_sample)
            ]

        whole = names(0, len(PROMPTS))
        assert len(set(whole)) == num_sample * len(PROMPTS)
        assert max(len(name.encode()) for name in whole) < 255 - len(".01234567.part")
        assert sum((names(i, i + 1) for i in range(len(PROMPTS))), []) == whole
    single, double = (InferenceOptions(**FIELDS, prompt_as_path=True, num_sample=count) for count in (1, 2))
    (x_0, x) = plan_requests({"prompt": ["x-0", "x"]}, single, long=False)
    assert single.path(x_0, 0) != double.path(x, 0)
    assert not any(file_name(prompt).startswith(".") for prompt in PROMPTS)


def test_output_paths():
    assert re.fullmatch("a_b_c-[0-9a-f]{16}", file_name("a/b\nc")) and len(file_name("ж" * 200).encode()) < 170
    requests = plan_requests({"prompt": ["Sunrise.", "x"], "first_index": 3}, InferenceOptions(**FIELDS), long=False)
    paths = [str(InferenceOptions(**FIELDS).path(request, 0)) for request in requests]
    assert paths == ["samples/sample_3.mp4", "samples/sample_4.mp4"]
    options = InferenceOptions(**FIELDS, prompt_as_path=True, num_sample=2, sample_name="demo_")
    assert str(options.path(requests[0], 1)) == "samples/demo_Sunrise.-1.mp4"
    (empty,) = plan_requests({"prompt": [""]}, options, long=False)
    assert str(InferenceOptions(**FIELDS, prompt_as_path=True).path(empty, 0)) == "samples/_0.mp4"


def test_settings_without_effect_are_reported():
    options = InferenceOptions(**FIELDS, loop=2, condition_frame_length=1)
    requests = plan_requests({"prompt": ["|0|a|1|b|2|c"], "mask_strategy": ["1;3"]}, options, long=True)
    assert list(without_effect(options, requests)) == [
        "prompt 0 has a text from clip 2 on, but loop is 2, counted from 0",
        "prompt 0 has a mask strategy for clip 3, but loop is 2, counted from 0",
    ]
    assert list(without_effect(InferenceOptions(**FIELDS, condition_frame_length=1), [])) == [
        "condition_frame_length 1 has no effect: loop is 1"
    ]
    with pytest.raises(ValueError, match="has neither reference_path nor mask_strategy"):
        plan_requests({"prompt": ['a {"refrence_path": "a.png"}']}, options, long=True)
