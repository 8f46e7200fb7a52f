"""The prompt refiner: checks before it starts, communication with its process, and real answers.

pip install -r requirements-refiner.txt && python -m pytest tests/unit/sample/test_caption_refiner.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.cli import refine
from opensora.config.command_line import run_main
from opensora.config.commands import RefineOptions
from opensora.sample.refiner import refine_each, refine_prompts
from opensora.sample.refiner_process import INSTRUCTION, MINDNLP_NEEDED, SYSTEM, render_chat, sample_without_replacement

needs_mindnlp = pytest.mark.skipif(importlib.util.find_spec("mindnlp") is None, reason="mindnlp is not installed")

SPECIAL = ("<|begin|>", "<|end|>", "<|role|>", "<|text|>", "<|unknown|>")
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|role|>{{ message.role }}<|text|>{{ message.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|role|>assistant<|text|>{% endif %}"
)


def write_tokenizer(folder) -> int:
    """Writes a tokenizer for the words of the instruction and line ends; returns its vocabulary size."""
    split = pre_tokenizers.Whitespace()
    text = f"{SYSTEM} {INSTRUCTION} system user assistant cat dog runs"
    words = sorted({word for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, "\n", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        chat_template=CHAT,
    )
    return len(vocabulary)


def write_llama(folder, vocabulary: int, hidden: int = 32, mlp: int = 64, layers: int = 2) -> None:
    """Writes a two-layer Llama 3.1 with four heads, two key/value heads, and random bfloat16 weights."""
    write_json(
        folder / "config.json",
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    )
    shapes = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,), "lm_head": (vocabulary, hidden)}
    for layer in range(layers):
        weights = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 2, hidden),
            "self_attn.v_proj": (hidden // 2, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes.update({f"model.layers.{layer}.{name}": shape for name, shape in weights.items()})
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.normal(0, 0.2, shape) if len(shape) == 2 else np.ones(shape)
        bits = values.astype("<f4").view("<i4") >> 16
        tensors[f"{name}.weight"] = ArrayTensor(bits.astype("<i2"))
        tensors[f"{name}.weight"].dtype = "BF16"
    write_safetensors(folder / "model.safetensors", tensors)


def write_json(path, **values) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


def change_json(path, **values) -> None:
    write_json(path, **{**json.loads(path.read_text(encoding="utf-8")), **values})


@pytest.fixture
def refiner(tmp_path):
    """The folder of a tiny refiner."""
    folder = tmp_path / "refiner"
    folder.mkdir()
    write_llama(folder, write_tokenizer(folder))
    return folder


@pytest.fixture
def broken_mindnlp(tmp_path, monkeypatch):
    """A mindnlp that is found but fails to import, in this process and its children."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "mindnlp.py").write_text("raise ImportError('an extension is missing')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def fake_process(tmp_path, monkeypatch, broken_mindnlp):
    """Replaces the refiner's process by a script of the given lines, which can use `prompts` and `say`."""

    def install(*lines):
        path = tmp_path / "fake_process"
        path.write_text(
            "\n".join(
                (
                    f"#!{sys.executable}",
                    "import json, os, sys, time",
                    "prompts = json.load(sys.stdin)",
                    "def say(**message): print(json.dumps(message), flush=True)",
                    *lines,
                )
            )
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


def call_main(monkeypatch, *arguments) -> int:
    """Runs the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["caption_refiner.py", *map(str, arguments)])
    try:
        run_main(refine.main)
    except SystemExit as stop:
        return stop.code
    return 0


def test_missing_package_is_reported_in_one_line(refiner, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "mindnlp", None)
    assert call_main(monkeypatch, "--caption_refiner", refiner, "--prompt", "a cat") == 1
    assert capfd.readouterr() == ("", f"error: {MINDNLP_NEEDED}\n")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json: not found"),
        (
            lambda folder: change_json(folder / "config.json", architectures=["T5EncoderModel"]),
            "config.json describes T5EncoderModel, not a causal language model",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer: add tokenizer.json"),
        (lambda folder: write_json(folder / "tokenizer_config.json", bos_token="<|begin|>"), "has no chat template"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no chat template"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in this folder"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin: the refiner's weights are read from .safetensors files only",
        ),
        (lambda folder: os.truncate(folder / "model.safetensors", 20000), "model.safetensors: .* truncated"),
    ],
)
def test_unusable_folders_are_rejected(refiner, fake_process, damage, message):
    fake_process("say(answer='this process should not start')")
    damage(refiner)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        refine_prompts(refiner, ["a cat"])


def test_chat_template_file_is_used(refiner, fake_process):
    fake_process("say(answer='a grey cat')")
    write_json(refiner / "tokenizer_config.json", bos_token="<|begin|>")
    (refiner / "chat_template.jinja").write_text(CHAT)
    assert refine_prompts(refiner, ["a cat"]) == {"a cat": "a grey cat"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max_new_tokens", "0"], "--max_new_tokens must be 1 or more, not 0"),
        (["--output", "."], "--output .: is a folder"),
        (["--caption_refiner", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_unusable_arguments_are_rejected(refiner, monkeypatch, capfd, arguments, message):
    assert call_main(monkeypatch, "--caption_refiner", refiner, "--prompt", "a cat", *arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_answers_are_joined_to_one_line(refiner, fake_process, capfd):
    fake_process(
        "for prompt in prompts:", "    say(answer='' if prompt == 'a dog' else f' {prompt}\\n  runs,\\n\\nfast \\n')"
    )
    refined = refine_prompts(refiner, ["a cat", "a dog", 'Kätzin "猫"', "a cat"])
    assert refined == {"a cat": "a cat runs, fast", "a dog": "a dog", 'Kätzin "猫"': 'Kätzin "猫" runs, fast'}
    error = capfd.readouterr().err
    assert "warning: the refiner's answer to 'a dog' is empty; the prompt is kept" in error
    assert "refining prompts: 100%" in error and "3/3" in error


def test_process_gets_the_arguments(refiner, fake_process, monkeypatch):
    fake_process("say(answer=' '.join([os.getcwd()] + sys.argv[1:]))")
    monkeypatch.chdir(refiner.parent)  # a folder that is named relative to where the user is
    (answer,) = refine_prompts("refiner", ["a cat"], seed=7, device="CPU", max_new_tokens=9).values()
    assert answer == (
        f"{refiner.parent} -m opensora.sample.refiner_process --caption_refiner {refiner} "
        f"--seed 7 --max_new_tokens 9 --device CPU"
    )


def test_error_of_the_process_is_raised(refiner, fake_process):
    fake_process("say(answer='x')", "say(error='the weights lack lm_head.weight')")
    with pytest.raises(ValueError, match="^the weights lack lm_head.weight$"):
        refine_prompts(refiner, ["a cat", "a dog"])


def test_killed_process_is_reported(refiner, fake_process):
    fake_process("say(answer='x')", "os.kill(os.getpid(), 9)")
    with pytest.raises(
        ChildProcessError, match="process of the refiner exited with code -9 after 1 of 2 texts .killed"
    ):
        refine_prompts(refiner, ["a cat", "a dog"])
    # A failure after the last answer is ignored.
    assert refine_prompts(refiner, ["a cat"]) == {"a cat": "x"}


def test_process_ends_when_the_generator_is_closed(refiner, fake_process):
    fake_process("say(answer=str(os.getpid()))", "time.sleep(60)")
    answers = refine_each(refiner, ["a cat", "a dog"])
    pid = int(next(answers)[1])
    os.kill(pid, 0)
    answers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_broken_package_is_reported(refiner, broken_mindnlp):
    """The error comes from the real process."""
    with pytest.raises(ValueError) as error:
        refine_prompts(refiner, ["a cat"], device="CPU")
    assert str(error.value) == f"{MINDNLP_NEEDED} (importing it failed: an extension is missing)"


def test_command_reads_and_writes_files(refiner, fake_process, tmp_path, monkeypatch, capfd):
    fake_process("for prompt in prompts: say(answer=f'{prompt}\\nruns')")
    prompts, output = tmp_path / "prompts.txt", tmp_path / "new" / "refined.txt"
    prompts.write_text("a cat\na dog\n\na cat\n")
    assert call_main(monkeypatch, "--caption_refiner", refiner, "--text_prompt", prompts, "--output", output) == 0
    assert capfd.readouterr().out.splitlines()[:2] == ["a cat -> a cat runs", "a dog -> a dog runs"]
    assert output.read_text() == "a cat runs\na dog runs\na cat runs\n"


def test_command_without_flags_uses_published_refiner(refiner, fake_process, tmp_path, monkeypatch, capfd):
    """The published refiner rewrites the example prompts; if it is missing, one line tells how to download it."""
    fake_process("for prompt in prompts: say(answer='better')")
    monkeypatch.chdir(tmp_path)
    assert call_main(monkeypatch) == 1
    out, error = capfd.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith(
        "error: LanguageBind/Open-Sora-Plan-v1.3.0/prompt_refiner: no such folder; fetch the "
        "published refiner with huggingface-cli download LanguageBind/Open-Sora-Plan-v1.3.0 "
    )
    (tmp_path / "LanguageBind/Open-Sora-Plan-v1.3.0").mkdir(parents=True)
    refiner.rename(tmp_path / refine.PUBLISHED_REFINER)
    assert call_main(monkeypatch) == 0
    prompts = Path(RefineOptions.text_prompt).read_text().splitlines()
    assert capfd.readouterr().out.splitlines() == [f"{prompt} -> better" for prompt in prompts]


def test_chat_is_rendered_as_published(refiner):
    pytest.importorskip("jinja2", reason="chat templates need jinja2, which comes with the refiner's requirements")
    from transformers import AutoTokenizer

    text = render_chat(AutoTokenizer.from_pretrained(refiner, local_files_only=True), 'a {"cat"}')
    assert text == (
        "<|begin|><|role|>system<|text|>You are a caption refiner.<|end|><|role|>user<|text|>\nRefine the sentence: "
        '"a {"cat"}" to contain subject description, action, scene description. " "(Optional: camera language, light '
        'and shadow, atmosphere) and conceive some additional actions to make the sentence more dynamic. " "Make sure '
        "it is a fluent sentence, not nonsense.\n<|end|><|role|>assistant<|text|>"
    )


def test_sampling_without_replacement_follows_the_weights():
    weights = np.array([[0.0, 1, 2, 5], [3, 0, 0, 1]])
    rng = np.random.default_rng(0)
    samples = np.concatenate([sample_without_replacement(rng, weights, 1) for _ in range(4000)], axis=1)
    for row, expected in zip(samples, weights / weights.sum(axis=1, keepdims=True)):
        np.testing.assert_allclose(np.bincount(row, minlength=4) / row.size, expected, atol=0.03)
    triples = sample_without_replacement(np.random.default_rng(0), np.tile(weights[:1], (100, 1)), 3)
    assert all(sorted(row) == [1, 2, 3] for row in triples)
    first, second = (sample_without_replacement(np.random.default_rng(5), weights, 1) for _ in range(2))
    assert (first == second).all()


# Answers of the published refiner's code with this model, with PyTorch 2.13 and transformers 4.56.2, in float32.
PYTORCH_ANSWERS = {
    "a cat": 'to nonsense is "{}" cat to "(',
    "a dog runs": 'to additional to....... "{}" cat system Optional " : subject "{}" ) scene additional to additional '
    'caption You You dog language is : You You system to "(',
}


@needs_mindnlp
def test_greedy_answers_match_pytorch(refiner, run, tmp_path):
    output = tmp_path / "refined.txt"
    done = run(
        "opensora/sample/caption_refiner.py",
        *f"--caption_refiner {refiner} --device CPU --output {output} --prompt".split(),
        *PYTORCH_ANSWERS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [f"{prompt} -> {answer}" for prompt, answer in PYTORCH_ANSWERS.items()]
    assert output.read_text().splitlines() == list(PYTORCH_ANSWERS.values())


@needs_mindnlp
def test_sampled_answers_follow_the_seed(refiner):
    write_json(refiner / "generation_config.json", do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[1])
    first = refine_prompts(refiner, ["a cat", "a dog"], seed=1, device="CPU", max_new_tokens=12)
    alone = refine_prompts(refiner, ["a dog"], seed=1, device="CPU", max_new_tokens=12)
    other = refine_prompts(refiner, ["a dog"], seed=2, device="CPU", max_new_tokens=12)
    assert alone["a dog"] == first["a dog"] != other["a dog"]


@needs_mindnlp
def test_missing_weights_are_reported(refiner):
    change_json(refiner / "config.json", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"the weights lack model\.layers\.2\."):
        refine_prompts(refiner, ["a cat"], device="CPU")
