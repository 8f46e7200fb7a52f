"""`opensora serve` with workers that need no models, and without the check of the weights, which takes seconds:

python tests/helpers/studio_process.py --port 7860 --data FOLDER
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from opensora.cli.serve import main
from opensora.config.command_line import run_main
from opensora.serve import server
from opensora.serve.catalog import unchecked_catalog

STANDIN = Path(__file__).with_name("standin_worker.py")


def serve() -> None:
    server.Studio = partial(server.Studio, program=[str(STANDIN)])
    server.read_catalog = unchecked_catalog
    main(sys.argv[1:])


if __name__ == "__main__":
    run_main(serve)
