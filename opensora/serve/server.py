"""`opensora serve`: checks everything that can be wrong, then serves until a signal."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Callable, Optional

import uvicorn

from opensora.config.device import DeviceOptions
from opensora.config.memory import MemoryOptions
from opensora.errors import UserError
from opensora.process.control import USER_SIGNALS
from opensora.serve.app import make_app
from opensora.serve.catalog import read_catalog
from opensora.serve.options import ServeOptions, arguments_of
from opensora.serve.store import Store
from opensora.serve.studio import Studio
from opensora.serve.workers import check_devices, wait_for_old_workers
from opensora.utils.folder_lock import exclusive_folder
from opensora.utils.logs import logger

GRACE_SECONDS = 3  # for open connections when the service ends
BACKLOG = 256


def serve(options: ServeOptions, args: argparse.Namespace, on_start: Optional[Callable[[str], None]] = None) -> None:
    """Serves until SIGINT, SIGTERM or SIGHUP.

    Args:
        args: the parsed flags, with those of `DeviceOptions` and `MemoryOptions`.
        on_start: called with the address of the page.

    Raises:
        UserError, OSError: unusable weights, a folder or port in use.
    """
    check_devices(options.worker_num, options.ranks_per_worker)
    memory = {field.name: getattr(args, field.name) for field in fields(MemoryOptions)}
    with exclusive_folder(options.data) as data, _listening(options) as listener:
        data = data.resolve()
        wait_for_old_workers(data)
        catalog = read_catalog(options, memory)
        device, memory_flags = (arguments_of(cls, args) for cls in (DeviceOptions, MemoryOptions))
        studio = Studio(options, catalog, Store(data / "queue.sqlite"), data, device, memory_flags)
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        asyncio.run(_run(studio, listener, address, on_start))


async def _run(
    studio: Studio, listener: socket.socket, address: str, on_start: Optional[Callable[[str], None]]
) -> None:
    config = uvicorn.Config(
        make_app(studio),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
        ws="none",
    )
    server = _Server(config)

    def stop() -> None:
        logger.info("stopping")
        studio.broker.close()  # open streams would keep the server waiting
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in USER_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    if server.started:
        print(f"studio: {address}", flush=True)
        if on_start is not None:
            on_start(address)
    await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals are handled in `_run`."""
        yield


@contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """A socket that listens on the address of the options.

    Raises:
        UserError: the port is in use, or the address is not one of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host {options.host}: {error.strerror or error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise UserError(
                f"--host {options.host} --port {options.port}: {os.strerror(error.errno or 0).lower()}; "
                "choose another --port"
            ) from error
        yield listener
