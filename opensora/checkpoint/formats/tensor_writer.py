"""Writes a header and tensors to a file, one tensor at a time, atomically."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from opensora.checkpoint.element_types import is_finite_chunk
from opensora.checkpoint.lazy_tensor import LazyTensor, summarize
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_tensors(
    path: Path, header: bytes, tensors: Mapping[str, LazyTensor], alignment: int, progress: bool, check_finite: bool
) -> None:
    """Writes a file of a header and the bytes of tensors, in their order.

    Args:
        path: the file.
        header: its first bytes.
        tensors: by name.
        alignment: zeros follow each tensor up to a multiple of this number of bytes.
        progress: show a progress bar.
        check_finite: report tensors with NaN or infinity on stderr.

    Raises:
        OSError: the disk is full (checked before writing, if the file system allows it) or not writable.
    """
    total = len(header) + sum(padded(tensor.nbytes, alignment) for tensor in tensors.values())
    not_finite = []
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            _reserve(file, total)
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
                file.write(header)
                bar.update(len(header))
                for name, tensor in tensors.items():
                    finite = True
                    for chunk in tensor.iter_bytes():
                        file.write(chunk)
                        bar.update(len(chunk))
                        finite = finite and (not check_finite or is_finite_chunk(chunk, tensor.dtype))
                    file.write(bytes(padded(tensor.nbytes, alignment) - tensor.nbytes))
                    if not finite:
                        not_finite.append(name)
            file.flush()
            os.fsync(file.fileno())
        if not_finite:
            logger.warning(f"{path}: {summarize('tensors hold NaN or infinity', not_finite)}")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(
                f"{path}: cannot hold {total / 1e9:.3g} GB ({error.strerror}); free space or choose another disk"
            ) from error
        raise


def padded(size: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-size // alignment) * alignment


def _reserve(file: BinaryIO, size: int) -> None:
    """Allocates disk space if the system and the file system can; otherwise a full disk shows while writing."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not on this system
        pass
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
