"""A process that answers one request: it reads JSON from stdin and writes a line of JSON per answer to stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Callable, TextIO

from opensora.errors import UserError
from opensora.process.control import die_with_parent


def converse(module: str, arguments: Sequence[str], request: Any, count: int, name: str) -> Iterator[Any]:
    """Runs `python -m module`, which calls `answer_stdin`, and yields its answers. It has ended after the last one.

    Args:
        request: what the process answers; JSON can hold it.
        count: number of answers.
        name: of the process, for errors.

    Raises:
        UserError: the process reported an error.
        ChildProcessError: it ended too early.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(request, file)
        file.seek(0)
        # The process must import the same opensora, even if it is found through the current folder.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        environment.pop("MS_ROLE", None)  # it is no member of msrun's process group
        process = subprocess.Popen(command, env=environment, stdin=file, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None  # it is a pipe
    answered = 0
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise UserError(message["error"])
            answered += 1
            yield message["answer"]
        code = process.wait()
        if answered < count:
            raise ChildProcessError(
                f"the process of the {name} exited with code {code} after {answered} of {count} texts"
                + (" (killed: out of memory?)" if code == -signal.SIGKILL else "")
            )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def answer_stdin(answer: Callable[[Any], Iterator[Any]]) -> None:
    """Answers the request on stdin. An error of the user, of a file or a disk is the last answer.

    The process dies with its parent.
    """
    die_with_parent(os.getppid())
    request = json.load(sys.stdin)
    with _claim_stdout() as answers:
        try:
            for found in answer(request):
                print(json.dumps({"answer": found}), file=answers, flush=True)
        except (ValueError, OSError) as error:
            print(json.dumps({"error": str(error)}), file=answers, flush=True)
        except KeyboardInterrupt:
            pass  # Ctrl-C also reaches the parent, which reports it


def _claim_stdout() -> TextIO:
    """Returns this process's stdout, for answers only, and redirects the output of libraries to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers
