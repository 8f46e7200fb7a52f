"""A bounded interpreter of the pickles that torch.save writes. It imports and executes nothing.

A pickle is a program for a stack machine; the standard unpickler lets it import and call any Python function. This one
supports the opcodes of protocols 2 to 5 and builds only dicts, lists, tuples, strings, bytes, numbers, and the results
of a few functions that the caller provides. Objects of TorchScript classes, which only group attributes, become a
`ScriptObject`. All other objects (argparse.Namespace, an optimizer, random states) become a `Foreign` without content,
so that the weights in the same file can still be read.

Time and memory are linear in the length of any pickle: values are never compared, hashed (except short keys), copied
or printed as a whole, so deeply nested repeated tuples cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Callable

from opensora.errors import UserError

LONGEST_NAME = 1000  # characters of a module's or class's name
LARGEST_KEY = 1 << 63
MOST_ARGUMENTS = 16  # of a function that builds a tensor

# Modules and functions that run commands, load code or open files. No state dict needs them: such files are rejected.
HARMFUL_MODULES = frozenset(
    (
        "os",
        "posix",
        "nt",
        "subprocess",
        "_posixsubprocess",
        "sys",
        "shutil",
        "pty",
        "socket",
        "_socket",
        "ctypes",
        "_ctypes",
        "runpy",
        "importlib",
        "imp",
        "code",
        "codeop",
        "pdb",
        "bdb",
        "cProfile",
        "profile",
        "timeit",
        "webbrowser",
        "pickle",
        "_pickle",
        "marshal",
        "shelve",
        "requests",
        "urllib",
        "http",
        "ftplib",
        "smtplib",
        "pip",
        "pydoc",
        "commands",
    )
)
HARMFUL_BUILTINS = frozenset(
    (
        "eval",
        "exec",
        "execfile",
        "compile",
        "open",
        "file",
        "__import__",
        "breakpoint",
        "input",
        "globals",
        "delattr",
        "setattr",
        "apply",
        "exit",
        "quit",
    )
)
HARMFUL_NAMES = frozenset(
    (
        "torch.load",
        "torch.storage._load_from_bytes",
        "numpy.load",
        "io.open",
        "_io.open",
        "_io.FileIO",
        "operator.attrgetter",
        "operator.methodcaller",
    )
)
# Of the module "torch.jit._pickle": they return their first argument, whose type TorchScript has to record.
SCRIPT_TYPES = frozenset(
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
)
SCRIPT_CLASSES = "__torch__."  # prefix of the names of a TorchScript program's own classes
HARMFUL_PACKAGES = (
    "torch.hub.",
    "torch.jit.",
    "torch.utils.cpp_extension.",
    "numpy.testing.",
    "numpy.f2py.",
    "numpy.distutils.",
)

# Opcodes; pickletools of the standard library describes them.
MARK, STOP, POP, POP_MARK, DUP, PROTO, FRAME = b"(.012\x80\x95"
NONE, NEWTRUE, NEWFALSE, BININT, BININT1, BININT2, LONG1, BINFLOAT = b"N\x88\x89JKM\x8aG"
BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, BINSTRING, SHORT_BINSTRING = b"X\x8c\x8dTU"
BINBYTES, SHORT_BINBYTES, BINBYTES8, BYTEARRAY8 = b"BC\x8e\x96"
EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3, EMPTY_LIST, APPEND, APPENDS = b")t\x85\x86\x87]ae"
EMPTY_DICT, SETITEM, SETITEMS, EMPTY_SET, ADDITEMS, FROZENSET = b"}su\x8f\x90\x91"
BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET = b"qr\x94hj"
GLOBAL, STACK_GLOBAL, REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, BINPERSID = b"c\x93Rb\x81\x92Q"

UINT8, UINT16, UINT32, UINT64 = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")
INT32, FLOAT64 = Struct("<i"), Struct(">d")
# The type of the byte count before strings (SHORT_BINSTRING and BINSTRING are from Python 2) and before bytes.
STRINGS = {BINUNICODE: UINT32, SHORT_BINUNICODE: UINT8, BINUNICODE8: UINT64, SHORT_BINSTRING: UINT8, BINSTRING: UINT32}
BYTES = {SHORT_BINBYTES: UINT8, BINBYTES: UINT32, BINBYTES8: UINT64, BYTEARRAY8: UINT64}
TUPLES = {TUPLE1: 1, TUPLE2: 2, TUPLE3: 3}


class Foreign:
    """A class or function `module.name`, or an object built by it, whose content is not read."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class ScriptObject:
    """An object of a TorchScript program: its attributes by name, among them tensors and further objects."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class Harmful(UserError):
    """A pickle names a function that could run code if an unpickler called it; the argument is the name."""


def read_pickle(
    data: bytes, position: int, functions: Mapping[str, Callable], persistent: Callable[[Any], Any]
) -> tuple[Any, int]:
    """The content of the pickle that starts at `position`, and the position after it.

    Args:
        data: bytes that contain the pickle.
        position: offset of its first opcode.
        functions: replacements of the functions that the pickle calls, by `module.name`; others give a `Foreign`.
        persistent: called with each persistent id.

    Raises:
        Harmful: the pickle names a function that could run code.
        LookupError, struct.error: a damaged pickle, or one that continues after `data`.
        ValueError, TypeError: a damaged pickle, or one that torch.save did not write.
    """
    stack: list = []
    marks: list = []
    memo: list = []
    push, pop = stack.append, stack.pop
    read_uint16, read_uint32, read_int32 = UINT16.unpack_from, UINT32.unpack_from, INT32.unpack_from
    end = len(data)

    def sized(count: Struct) -> bytes:
        """Reads a byte count at `position` and that many bytes."""
        nonlocal position
        start = position + count.size
        position = start + count.unpack_from(data, position)[0]
        if position > end:
            raise IndexError("the pickle is truncated")
        return data[start:position]

    def since_mark() -> list:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    def memoize(index: int) -> None:
        if index > len(memo):  # picklers number memo entries consecutively from 0
            raise UserError(f"memo index {index} after {len(memo)}")
        memo[index : index + 1] = [stack[-1]]

    def line() -> str:
        nonlocal position
        start, position = position, data.find(b"\n", position, position + LONGEST_NAME) + 1
        if not position:
            raise (IndexError if end - start < LONGEST_NAME else ValueError)("a name has no end")
        return data[start : position - 1].decode()

    while True:
        op = data[position]
        position += 1
        # The most frequent opcodes of state dicts come first.
        if op == LONG_BINPUT:
            index = read_uint32(data, position)[0]
            position += 4
            if index == len(memo):
                memo.append(stack[-1])
            else:
                memoize(index)
        elif op == BINGET:
            push(memo[data[position]])
            position += 1
        elif op == BININT1:
            push(data[position])
            position += 1
        elif op in STRINGS:
            push(sized(STRINGS[op]).decode())
        elif op == MARK:
            marks.append(len(stack))
        elif op == TUPLE:
            push(tuple(since_mark()))
        elif op == TUPLE2:
            last = pop()
            stack[-1] = stack[-1], last
        elif op == REDUCE:
            arguments = pop()
            push(call(functions, pop(), arguments))
        elif op == BININT2:
            push(read_uint16(data, position)[0])
            position += 2
        elif op == NEWFALSE:
            push(False)
        elif op == EMPTY_TUPLE:
            push(())
        elif op == BINPERSID:
            push(persistent(pop()))
        elif op == BININT:
            push(read_int32(data, position)[0])
            position += 4
        elif op in TUPLES:
            count = TUPLES[op]
            if len(stack) < count:
                raise IndexError("the stack is empty")
            stack[-count:] = [tuple(stack[-count:])]
        elif op == BINPUT:
            memoize(data[position])
            position += 1
        elif op == LONG_BINGET:
            push(memo[read_uint32(data, position)[0]])
            position += 4
        elif op == MEMOIZE:
            memo.append(stack[-1])
        elif op == GLOBAL:
            push(_foreign(line(), line()))
        elif op == STACK_GLOBAL:
            name, module = pop(), pop()
            if type(module) is not str or type(name) is not str or len(module) + len(name) > LONGEST_NAME:
                raise TypeError("a name is not a string, or too long")
            push(_foreign(module, name))
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
        elif op == NONE:
            push(None)
        elif op == NEWTRUE:
            push(True)
        elif op == BINFLOAT:
            push(FLOAT64.unpack_from(data, position)[0])
            position += 8
        elif op == LONG1:  # at most 255 bytes; LONG4, which would allow gigabytes, is not supported
            push(int.from_bytes(sized(UINT8), "little", signed=True))
        elif op in BYTES:
            push(sized(BYTES[op]))
        elif op == BUILD:  # the state of other objects is ignored
            state = pop()
            if type(stack[-1]) is ScriptObject and type(state) is dict:
                stack[-1].attributes = state
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
                raise UserError(f"the pickle protocol {data[position]} is not supported")
            position += 1
        elif op == FRAME:  # its size matters only for streams
            position += 8
        elif op == STOP:
            return pop(), position
        else:
            raise UserError(f"opcode {bytes((op,))!r}, which torch.save does not write")


def _foreign(module: str, attribute: str) -> Foreign:
    text = f"{module}.{attribute}"
    package, root = module.split(".")[0], attribute.split(".")[0]
    if (
        package in HARMFUL_MODULES
        or package in ("builtins", "__builtin__")
        and root in HARMFUL_BUILTINS
        or text in HARMFUL_NAMES
        or text.startswith(HARMFUL_PACKAGES)
        and text not in SCRIPT_TYPES
    ):
        raise Harmful(text)
    return Foreign(text)


def call(functions: Mapping[str, Callable], function: Any, arguments: Any) -> Any:
    """The result of a call in a pickle: of `functions`, or else a `ScriptObject` or `Foreign`.

    Raises:
        TypeError: an invalid call.
    """
    if type(function) is not Foreign or type(arguments) is not tuple:
        raise TypeError("a call of an object that is not a function")
    if function.name.startswith(SCRIPT_CLASSES):
        return ScriptObject()
    known = functions.get(function.name)
    if known is None:
        return Foreign(function.name)
    if len(arguments) > MOST_ARGUMENTS:
        raise TypeError(f"{len(arguments)} arguments of {function.name}")
    return known(*arguments)


def _set_items(target: Any, items: Any) -> None:
    """Sets alternating keys and values. Only strings and integers are kept, since other keys may take long to hash.

    Raises:
        TypeError: `target` is not a dict, or a key is a nested tuple, which torch.save never writes.
    """
    if type(target) is Foreign:
        return
    if type(target) is not dict or len(items) % 2:
        raise TypeError("dict items for an object that is not a dict")
    for key, value in zip(items[::2], items[1::2]):
        if type(key) is str or type(key) is int and -LARGEST_KEY <= key < LARGEST_KEY:
            target[key] = value
        elif type(key) is tuple and (len(key) > MOST_ARGUMENTS or tuple in map(type, key)):
            raise TypeError("a dict key of nested tuples")


def _extend(target: Any, items: Any) -> None:
    if type(target) is Foreign:
        return
    if type(target) is not list:
        raise TypeError("list items for an object that is not a list")
    target.extend(items)
