"""This project's convolution kernel against oneDNN's convolution primitive, on the layers of WFVAE.

    python benchmarks/convolution_onednn.py [--repeat N] [--threads N] [--library PATH]

Forward, float32, in turn. Each time is the least of the runs, because other processes may use the machine. oneDNN
chooses its layouts (format tag "any"). Its time is that of the primitive alone; "reorders" is the time to convert
input, weights and output from and to contiguous tensors. A 3-D convolution needs a causal past, which oneDNN gets as
two more input frames. Needs g++.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.run import check_repeat, markdown, use_cores  # noqa: E402
from benchmarks.worker import timed  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.ops.cpu.build import build_kernels  # noqa: E402
from opensora.ops.cpu.custom_op import ONEDNN, has_sgemm  # noqa: E402

ALGORITHMS = {"auto": 3, "winograd": 2, "direct": 1}  # dnnl_alg_kind_t
MAX_DIMS = 12  # DNNL_MAX_NDIMS
TOLERANCE = 1e-5  # of the largest output


class Layer(NamedTuple):
    """A convolution of `frames` frames with a `depth` x 3 x 3 kernel and zero padding of 1 in space."""

    depth: int
    frames: int
    inputs: int
    outputs: int
    size: int  # height and width

    def __str__(self) -> str:
        return f"{self.depth}x3x3, {self.inputs} to {self.outputs}, {self.frames}x{self.size}x{self.size}"


# The layers of WFVAE D8 that take most of the time of encoding to or decoding from 3x16x16 latents.
LAYERS = (
    Layer(3, 5, 256, 256, 64),
    Layer(3, 5, 640, 640, 32),
    Layer(3, 5, 512, 512, 32),
    Layer(3, 5, 256, 256, 32),
    Layer(3, 3, 512, 512, 16),
    Layer(3, 5, 128, 128, 64),
    Layer(3, 5, 128, 128, 32),
    Layer(1, 5, 256, 256, 64),
    Layer(1, 5, 128, 128, 64),
    Layer(1, 5, 192, 256, 32),
    Layer(1, 5, 24, 128, 64),
)


class OneDNN:
    """One convolution of oneDNN; `load`, `run` and `store` are its steps, `name` is the implementation it chose."""

    def __init__(self, wrapper: ctypes.CDLL, library: Path, algorithm: int, x, weight, bias, y):
        self.wrapper, self.arrays = wrapper, [np.ascontiguousarray(array) for array in (x, weight, bias)]
        self.y = np.zeros(y, np.float32)
        rank = x.ndim
        padding = [0] * (rank - 4) + [1, 1]
        shapes = [dims(shape) for shape in (x.shape, weight.shape, y, [1] * (rank - 2), padding)]
        wrapper.convolution_create.restype = ctypes.c_void_p
        wrapper.convolution_name.restype = ctypes.c_char_p
        made = wrapper.convolution_create(str(library).encode(), algorithm, rank, *shapes)
        self.made = made and ctypes.c_void_p(made)

    @property
    def name(self) -> str:
        return self.wrapper.convolution_name(self.made).decode()

    def load(self) -> None:
        self.wrapper.convolution_load(self.made, *map(pointer, self.arrays))

    def run(self) -> None:
        self.wrapper.convolution_run(self.made)

    def store(self) -> np.ndarray:
        self.wrapper.convolution_store(self.made, pointer(self.y))
        return self.y

    def reorder(self) -> None:
        self.load()
        self.store()


def dims(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * MAX_DIMS)(*values)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def own_kernel(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray) -> Callable[[], None]:
    """This project's kernel: x (1, T, C, H, W), weight (O, C, k, 3, 3), y (1, T, O, H, W)."""
    settings = np.array([1, 1, 1, 1, weight.shape[2] - 1, 1], np.float32)
    arrays = [x, weight, bias, settings, y]
    shapes = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    count = len(arrays)
    arguments = (
        count,
        (ctypes.c_void_p * count)(*[array.ctypes.data for array in arrays]),
        (ctypes.c_int * count)(*[array.ndim for array in arrays]),
        (ctypes.POINTER(ctypes.c_int64) * count)(*shapes),
        None,
        None,
        None,
    )
    kernel = build_kernels().functions.conv3d

    def run() -> None:
        if kernel(*arguments):
            raise RuntimeError(f"the kernel rejects x {x.shape}, weight {weight.shape}")

    return run


def measure(layer: Layer, wrapper: ctypes.CDLL, library: Path, repeat: int) -> list[str]:
    """A row of the table."""
    depth, frames, inputs, outputs, size = layer
    random = np.random.default_rng(0)
    x = random.standard_normal((1, frames, inputs, size, size), np.float32)
    weight = random.standard_normal((outputs, inputs, depth, 3, 3), np.float32) / np.float32(
        np.sqrt(9 * inputs * depth)
    )
    bias = random.standard_normal(outputs, np.float32)
    y = np.zeros((1, frames, outputs, size, size), np.float32)
    own = own_kernel(x, weight, bias, y)
    own()
    if depth == 1:
        x, weight, expected = x[0], weight[:, :, 0], y[0]
    else:
        x = np.concatenate([x[:, :1]] * (depth - 1) + [x], 1).swapaxes(1, 2)
        expected = y.swapaxes(1, 2)
    steps = {"own": own}
    names = {}
    for algorithm, kind in ALGORITHMS.items():
        primitive = OneDNN(wrapper, library, kind, x, weight, bias, expected.shape)
        if not primitive.made:
            continue
        primitive.load()
        primitive.run()
        difference = np.abs(primitive.store() - expected).max() / np.abs(expected).max()
        if not difference < TOLERANCE:
            raise ValueError(f"{layer}: oneDNN's {algorithm} differs by {difference:.1e} of the largest output")
        steps[algorithm], names[algorithm] = primitive.run, primitive.name
        if algorithm == "auto":
            steps["reorders"] = primitive.reorder
    seconds = {name: [] for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():
            seconds[name].append(timed(step)[0])
    best = {name: min(values) for name, values in seconds.items()}
    cells = [f"{1e3 * best[name]:.1f}" if name in best else "" for name in ("own", *ALGORITHMS, "reorders")]
    return [str(layer), *cells, f"{best['auto'] / best['own']:.2f}", names["auto"]]


def build_wrapper(folder: Path) -> ctypes.CDLL:
    source, target = ROOT / "benchmarks/onednn_convolution.cc", folder / "onednn_convolution.so"
    command = ["g++", "-O2", "-std=c++14", "-fopenmp", "-shared", "-fPIC", source, "-o", target, "-ldl"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=15, help="timed runs of each case")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--library", type=Path, default=ONEDNN, help="oneDNN 2.x; default: the one MindSpore ships")
    args = parser.parse_args()
    check_repeat(args.repeat)
    use_cores(args.threads)
    if not has_sgemm():
        raise ValueError(f"{ONEDNN} cannot be loaded, or is not oneDNN 2.x")
    head = ["layer", "own, ms", *(f"{name}, ms" for name in ALGORITHMS), "reorders, ms", "auto / own", "auto is"]
    with tempfile.TemporaryDirectory() as folder:
        wrapper = build_wrapper(Path(folder))
        wrapper.omp_set_num_threads(args.threads)
        print(markdown([head, *(measure(layer, wrapper, args.library, args.repeat) for layer in LAYERS)]))


if __name__ == "__main__":
    run_main(main)
