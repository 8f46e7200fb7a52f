"""A bounded interpreter of the pickles that torch.save writes. It imports nothing and runs nothing.

A pickle is a program for a stack machine; the standard unpickler lets it import and call any Python function. This one
knows the opcodes of protocols 2 to 5 and builds only dicts, lists, tuples, texts, bytes, numbers, and what its caller
makes of the few functions it names. Everything else a file may hold (argparse.Namespace, an optimizer, random states)
becomes a `Foreign` without content, so it does not stop the weights beside it from being read.

Time and memory are linear in the pickle's length, whatever it says: no value is ever compared, hashed (but for short
keys), copied or printed as a whole, so tuples that contain each other many times over cost nothing.
"""
from __future__ import annotations

from pickle import (APPEND, APPENDS, BINBYTES, BINBYTES8, BINFLOAT, BINGET, BININT, BININT1, BININT2, BINPERSID, BINPUT,
                    BINSTRING, BINUNICODE, BINUNICODE8, BUILD, BYTEARRAY8, DUP, EMPTY_DICT, EMPTY_LIST, EMPTY_SET,
                    EMPTY_TUPLE, FRAME, FROZENSET, GLOBAL, LONG1, LONG_BINGET, LONG_BINPUT, MARK, MEMOIZE, NEWFALSE,
                    NEWOBJ, NEWOBJ_EX, NEWTRUE, NONE, POP, POP_MARK, PROTO, REDUCE, SETITEM, SETITEMS, SHORT_BINBYTES,
                    SHORT_BINSTRING, SHORT_BINUNICODE, STACK_GLOBAL, STOP, TUPLE, TUPLE1, TUPLE2, TUPLE3, ADDITEMS)
from struct import unpack_from
from typing import Any, Callable, Mapping

LONGEST_NAME = 1000  # characters of a module's or class's name
LARGEST_KEY = 1 << 63
MOST_ARGUMENTS = 16  # of a function that rebuilds a tensor

# What runs commands, loads code or opens files. No state dict needs one of them, so a file with one is not trusted.
HARMFUL_MODULES = frozenset((
    "os", "posix", "nt", "subprocess", "_posixsubprocess", "sys", "shutil", "pty", "socket", "_socket", "ctypes",
    "_ctypes", "runpy", "importlib", "imp", "code", "codeop", "pdb", "bdb", "cProfile", "profile", "timeit", "trace",
    "webbrowser", "pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "requests", "urllib",
    "http", "ftplib", "smtplib", "asyncio", "multiprocessing", "threading", "_thread", "signal", "tempfile", "pip",
    "pydoc", "commands", "platform"))
HARMFUL_BUILTINS = frozenset(("eval", "exec", "execfile", "compile", "open", "file", "__import__", "breakpoint",
                              "input", "globals", "delattr", "setattr", "apply", "exit", "quit"))
HARMFUL_NAMES = frozenset(("torch.load", "torch.storage._load_from_bytes", "numpy.load", "io.open", "_io.open",
                           "_io.FileIO", "operator.attrgetter", "operator.methodcaller"))
HARMFUL_PACKAGES = ("torch.hub.", "torch.jit.", "torch.utils.cpp_extension.", "numpy.testing.", "numpy.f2py.",
                    "numpy.distutils.")

INTEGERS = {BININT1: (1, "<B"), BININT2: (2, "<H"), BININT: (4, "<i")}
TEXTS = {BINUNICODE: (4, "<I"), SHORT_BINUNICODE: (1, "<B"), BINUNICODE8: (8, "<Q"),
         SHORT_BINSTRING: (1, "<B"), BINSTRING: (4, "<I")}  # the last two: texts of Python 2
BYTES = {SHORT_BINBYTES: (1, "<B"), BINBYTES: (4, "<I"), BINBYTES8: (8, "<Q"), BYTEARRAY8: (8, "<Q")}
CONSTANTS = {NONE: None, NEWTRUE: True, NEWFALSE: False, EMPTY_TUPLE: ()}
TUPLES = {TUPLE1: 1, TUPLE2: 2, TUPLE3: 3}


class Foreign:
    """A class or function, `module.name`, or an object made by it whose content is not read."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Harmful(ValueError):
    """A pickle names something that could do harm if a careless reader called it; the argument is the name."""


class EndOfData(ValueError):
    """The data ends before the pickle does."""


def read_pickle(data: bytes, position: int, functions: Mapping[str, Callable],
                persistent: Callable[[Any], Any]) -> tuple[Any, int]:
    """The content of the pickle that begins at `position`, and the position after it.

    Args:
        functions: by `module.name`, what stands for a function the pickle calls; calls of others give a `Foreign`.
        persistent: called with each persistent id.

    Raises:
        EndOfData, Harmful: as they say.
        ValueError, TypeError, LookupError, struct.error: a damaged pickle, or one that torch.save did not write.
    """
    stack: list = []
    marks: list = []
    memo: dict = {}
    push, pop = stack.append, stack.pop

    def sized(layout: tuple) -> bytes:
        """The bytes at `position`, behind their own count."""
        nonlocal position
        width, code = layout
        start = position + width
        position = start + unpack_from(code, data, position)[0]
        if position > len(data):
            raise EndOfData("the pickle is truncated")
        return data[start:position]

    def since_mark() -> list:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    def line() -> str:
        nonlocal position
        start, stop = position, data.find(b"\n", position, position + LONGEST_NAME)
        if stop < 0:
            raise (EndOfData if len(data) - position < LONGEST_NAME else ValueError)("a name without an end")
        position = stop + 1
        return data[start:stop].decode()

    while True:
        op = data[position:position + 1]
        position += 1
        # The opcodes a state dict has most of come first.
        if op == BINPUT:
            memo[data[position]] = stack[-1]
            position += 1
        elif op == LONG_BINPUT:
            memo[unpack_from("<I", data, position)[0]] = stack[-1]
            position += 4
        elif op == BINGET:
            push(memo[data[position]])
            position += 1
        elif op in TEXTS:
            push(sized(TEXTS[op]).decode())
        elif op in INTEGERS:
            width, code = INTEGERS[op]
            push(unpack_from(code, data, position)[0])
            position += width
        elif op in CONSTANTS:
            push(CONSTANTS[op])
        elif op == MARK:
            marks.append(len(stack))
        elif op == TUPLE:
            push(tuple(since_mark()))
        elif op in TUPLES:
            count = TUPLES[op]
            if len(stack) < count:
                raise IndexError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif op == REDUCE:
            arguments = pop()
            push(call(functions, pop(), arguments))
        elif op == BINPERSID:
            push(persistent(pop()))
        elif op == LONG_BINGET:
            push(memo[unpack_from("<I", data, position)[0]])
            position += 4
        elif op == MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif op == GLOBAL:
            push(_foreign(line(), line()))
        elif op == STACK_GLOBAL:
            attribute, module = pop(), pop()
            if type(module) is not str or type(attribute) is not str or len(module) + len(attribute) > LONGEST_NAME:
                raise TypeError("a name that is no text")
            push(_foreign(module, attribute))
        elif op == EMPTY_DICT:
            push({})
        elif op == EMPTY_LIST:
            push([])
        elif op == SETITEMS:
            items = since_mark()
            _set_items(stack[-1], items)
        elif op == SETITEM:
            value, key = pop(), pop()
            _set_items(stack[-1], (key, value))
        elif op == APPENDS:
            items = since_mark()
            _extend(stack[-1], items)
        elif op == APPEND:
            item = pop()
            _extend(stack[-1], (item,))
        elif op == BUILD:  # the state of an object: not read
            pop()
        elif op == BINFLOAT:
            push(unpack_from(">d", data, position)[0])
            position += 8
        elif op == LONG1:  # at most 255 bytes; LONG4 would allow numbers of gigabytes
            push(int.from_bytes(sized((1, "<B")), "little", signed=True))
        elif op in BYTES:
            push(sized(BYTES[op]))
        elif op == EMPTY_SET:
            push(Foreign("builtins.set"))
        elif op == ADDITEMS:
            since_mark()
        elif op == FROZENSET:
            since_mark()
            push(Foreign("builtins.frozenset"))
        elif op == NEWOBJ:
            arguments = pop()
            push(call(functions, pop(), arguments))
        elif op == NEWOBJ_EX:
            del stack[-2:]
            push(call({}, pop(), ()))
        elif op == DUP:
            push(stack[-1])
        elif op == POP:
            pop()
        elif op == POP_MARK:
            since_mark()
        elif op == PROTO:
            if not 2 <= data[position] <= 5:
                raise ValueError(f"a pickle of protocol {data[position]}")
            position += 1
        elif op == FRAME:  # its size matters to readers of streams only
            position += 8
        elif op == STOP:
            return pop(), position
        elif not op:
            raise EndOfData("the pickle is truncated")
        else:
            raise ValueError(f"opcode {op!r}, which torch.save does not write")


def _foreign(module: str, attribute: str) -> Foreign:
    text = f"{module}.{attribute}"
    package, root = module.split(".")[0], attribute.split(".")[0]
    if (package in HARMFUL_MODULES or package in ("builtins", "__builtin__") and root in HARMFUL_BUILTINS
            or text in HARMFUL_NAMES or text.startswith(HARMFUL_PACKAGES)):
        raise Harmful(text)
    return Foreign(text)


def call(functions: Mapping[str, Callable], function: Any, arguments: Any) -> Any:
    """What a call of a pickle gives: that of `functions`, or a `Foreign`. Raises TypeError for what is no call."""
    if type(function) is not Foreign or type(arguments) is not tuple:
        raise TypeError("a call of what is no function")
    known = functions.get(function.name)
    if known is None:
        return Foreign(function.name)
    if len(arguments) > MOST_ARGUMENTS:
        raise TypeError(f"{len(arguments)} arguments of {function.name}")
    return known(*arguments)


def _set_items(target: Any, items: Any) -> None:
    """Keys and values in turn. Only texts and integers are kept as keys: hashing others can take for ever."""
    if type(target) is Foreign:
        return
    if type(target) is not dict or len(items) % 2:
        raise TypeError("items of what is no dict")
    for key, value in zip(items[::2], items[1::2]):
        if type(key) is str or type(key) is int and -LARGEST_KEY <= key < LARGEST_KEY:
            target[key] = value


def _extend(target: Any, items: Any) -> None:
    if type(target) is Foreign:
        return
    if type(target) is not list:
        raise TypeError("items of what is no list")
    target.extend(items)
