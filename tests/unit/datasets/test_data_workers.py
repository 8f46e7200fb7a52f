"""Data workers whose decoders crash, hang or raise: the sample is reported and replaced, and the run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from loader_checks import Crashing, Faulty, WhereItRuns
from processes import ROOT

from opensora.datasets import broken
from opensora.datasets.collate import stack
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.worker import Worker

STEPS = 6  # two epochs of six samples, two in a batch


def read(folder: Path, fault: str, num_workers: int, steps: int = STEPS) -> list[dict]:
    loader = Loader(Faulty(folder, fault), BatchSampler([np.arange(6)], 2, seed=1), num_workers=num_workers)
    batches = iter(loader)
    try:
        return [next(batches) for _ in range(steps)]
    finally:
        batches.close()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_same_data(ours: list, theirs: list) -> None:
    for one, other in zip(ours, theirs):
        assert np.array_equal(one["index"], other["index"]) and np.array_equal(one["draw"], other["draw"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list:
    """The data of a run that knows from the start that sample 3 is broken."""
    folder = tmp_path_factory.mktemp("known")
    (folder / "broken.tsv").write_text("sample-3\tknown\n")
    batches = read(folder, "", num_workers=0)
    assert 3 not in np.concatenate([batch["index"] for batch in batches])
    assert sum(batch["replaced"] for batch in batches) == 2
    return batches


@pytest.mark.parametrize("fault", ["SIGSEGV", "SIGBUS", "SIGABRT", "exit code 7", "killed"])
def test_sample_that_kills_the_worker_is_replaced(fault, expected, tmp_path, capfd):
    batches = read(tmp_path, fault, num_workers=2)
    assert_same_data(batches, expected)
    (line,) = (tmp_path / "broken.tsv").read_text().splitlines()
    assert line.startswith("sample-3\tthe data worker ") and fault in line
    assert "sample-3: the data worker " in capfd.readouterr().err
    assert_same_data(read(tmp_path, fault, num_workers=1), expected)  # the next run knows


def test_sample_that_hangs_is_replaced(expected, tmp_path, monkeypatch):
    """While it holds the GIL, no thread could end it."""
    monkeypatch.setattr(broken, "READ_TIMEOUT", 0.5)
    batches = read(tmp_path, "longer than", num_workers=1)
    assert_same_data(batches, expected)
    assert (tmp_path / "broken.tsv").read_text() == "sample-3\treading takes longer than 0.5 s\n"


@pytest.mark.parametrize(
    "fault, num_workers",
    [
        ("error: unpack", 0),
        ("TypeError", 0),
        ("RecursionError", 0),
        ("MemoryError", 0),
        ("SystemExit", 0),
        ("NoException", 0),
        ("NoException", 1),
    ],
)
def test_sample_that_raises_is_replaced(fault, num_workers, expected, tmp_path):
    assert_same_data(read(tmp_path, fault, num_workers), expected)
    (line,) = (tmp_path / "broken.tsv").read_text().splitlines()
    assert line.startswith("sample-3\t") and fault in line


def test_worker_killed_once_loses_no_sample(tmp_path):
    """If memory runs out, the kernel may kill a worker that is not at fault."""
    batches = read(tmp_path, "killed once", num_workers=1)
    assert (tmp_path / "killed").exists() and not (tmp_path / "broken.tsv").exists()
    assert sorted(np.concatenate([batch["index"] for batch in batches[:3]])) == [0, 1, 2, 3, 4, 5]
    assert len({int(process) for batch in batches for process in batch["process"]}) == 2


def test_workers_killed_repeatedly_raise(tmp_path):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"could be read|died 20 times .* out of memory\?.*fewer workers"):
        read(tmp_path, "always killed", num_workers=1)
    assert time.monotonic() - start < 60
    assert not (tmp_path / "broken.tsv").exists(), "the samples are not at fault"


def test_killed_idle_worker_is_restarted():
    running = iter(Loader(WhereItRuns(), BatchSampler([np.arange(4)], 1), num_workers=2, prefetch=1))
    first = [int(next(running)["process"][0]) for _ in range(2)]
    time.sleep(0.2)  # both have prefetched and wait
    os.kill(first[0], signal.SIGKILL)
    later = {int(next(running)["process"][0]) for _ in range(6)}
    assert first[1] in later and len(later - set(first)) == 1
    running.close()
    assert not any(map(alive, later))


def test_crash_without_replacement_names_the_sample():
    batches = iter(Loader(Crashing(), BatchSampler([np.arange(4)], 4), num_workers=1))
    with pytest.raises(ValueError, match="sample 2: the data worker crashed: SIGSEGV"):
        next(batches)


def test_workers_ignore_signals_of_job_schedulers():
    """From its start on, before it has sent a message."""
    worker = Worker(0, WhereItRuns(), stack, {})
    process, sampler = worker.process.pid, BatchSampler([np.arange(4)], 1)
    for request in islice(sampler.upcoming(), 3):
        worker.submit(request)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(process, number)
        assert worker.result()["process"] == [process]
    worker.stop()


def test_stuck_worker_ends_with_its_parent():
    """The parent is killed while the worker hangs in a decoder that holds the GIL."""
    program = (
        "import numpy as np; from loader_checks import Stuck\n"
        "from opensora.datasets.loader import Loader; from opensora.datasets.sampler import BatchSampler\n"
        "next(iter(Loader(Stuck(), BatchSampler([np.arange(4)], 1), num_workers=1)))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/helpers'}"},
    )
    worker = int(parent.stdout.readline())
    assert alive(worker)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(worker)


def test_finite_sampler_ends_the_loader():
    class Short(BatchSampler):
        def upcoming(self):
            for _, batch in zip(range(3), super().upcoming()):
                yield batch

    for num_workers in (0, 2):
        assert len(list(Loader(WhereItRuns(), Short([np.arange(4)], 1), num_workers=num_workers))) == 3


def test_datasets_do_not_import_mindspore(run):
    files = (path.relative_to(ROOT) for path in (ROOT / "opensora/datasets").rglob("[a-z]*.py"))
    modules = [".".join(path.with_suffix("").parts) for path in files]
    finished = run(
        "-c",
        f"import sys, {', '.join(modules)}, opensora.models.text_encoder.tokenizer\n"
        "sys.exit('mindspore' in sys.modules)",
    )
    assert len(modules) > 10 and finished.returncode == 0, finished.stderr


def test_workers_do_not_import_mindspore():
    loader = Loader(WhereItRuns(), BatchSampler([np.arange(4)], 1), num_workers=1)
    batch = next(iter(loader))
    assert batch["process"][0] != os.getpid() and not batch["mindspore"][0]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=["Ctrl-C", "SIGKILL", "SIGTERM"])
def test_workers_end_with_the_program(end):
    """The signal is sent to the process group, as from a terminal, or to the program only."""
    program = subprocess.Popen(
        [sys.executable, ROOT / "tests/helpers/loader_program.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(program.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    if end == signal.SIGINT:
        os.killpg(program.pid, end)
    else:
        program.send_signal(end)
    _, errors = program.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    if end == signal.SIGINT:
        assert errors == "stopped\n" and program.returncode == 130


# The list of broken samples.


def test_names_with_special_characters_are_listed(tmp_path):
    """Names with control characters, line breaks and invalid UTF-8 are found again, one line each."""
    names = ["a\tb\nc.mp4", "\udcff.mp4", "\ud800.mp4", "\u4e2d\u3000\u2028.mp4"]
    for name in names:
        broken.Quarantine(tmp_path / "list.tsv").add(name, "why\x00 \udc80\nso")
    lines = (tmp_path / "list.tsv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4 and lines[0] == "a\\tb\\nc.mp4\twhy\\x00 \\udc80 so"
    again = broken.Quarantine(tmp_path / "list.tsv")
    assert all(name in again for name in names) and "other" not in again


def test_damaged_or_unwritable_list_is_tolerated(tmp_path, capsys):
    (tmp_path / "list.tsv").write_bytes(b"\xef\xbb\xbfa.mp4\twhy\r\n\xff\xfe\x00\nb.mp4\n\n")
    quarantine = broken.Quarantine(tmp_path / "list.tsv")
    assert "a.mp4" in quarantine and "b.mp4" in quarantine and "" not in quarantine
    (tmp_path / "file").touch()
    broken.Quarantine(tmp_path / "file/list.tsv").add("c.mp4", "why")
    assert "c.mp4 is broken (why) and could not be listed" in capsys.readouterr().err
