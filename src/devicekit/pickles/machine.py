"""A pickle is a program; this machine runs it and has no instruction that calls, imports or looks anything up.

Python's own unpickler calls what a file names, and so is as safe as the check of the names is. Here a name stays a name
and a call becomes a value that says what would have been called: one of ours where the name is understood, otherwise an
``Opaque``. The instructions and their meaning: CPython, Lib/pickle.py and Lib/pickletools.py. Every instruction takes
time and memory in proportion to its own length, so that a file is read in proportion to its size.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable
from typing import Any

from devicekit.pickles.known import called, state_given
from devicekit.pickles.stand_ins import Bag, Global, Opaque, Piece, keyed
from devicekit.pickles.tape import SHORT, Tape
from devicekit.weights.header import UnbelievableError

__all__ = ["Machine", "Notes"]

MOST_STEPS = 20_000_000
"""Instructions of one pickle. A tensor takes about 30, and no checkpoint of a million tensors is known."""
MOST_DIGITS = 308
"""Of a number that is written out; reading millions of them takes hours."""


LONGEST_NAME = 1000
"""Letters of a module, or of a class in it."""


class Notes:
    """What is noticed while the pickles of one file run.

    Args:
        room: bytes that may be copied from one value into another.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.named: list[Global] = []
        """Everything that was named, in order, as often as it was."""
        self.dropped: list[str] = []
        """What understood objects had and no file of tensors keeps, in words."""
        self.steps = 0
        """Instructions so far."""
        self.by_torch = False
        """Whether it is torch.save's own format."""
        self.nested = False
        """Whether this is a file within the file; there is none in that."""


class Machine:
    """Runs the pickles of one file.

    Args:
        notes: hear what is noticed.
        persistent: what stands for a persistent id, which is how torch names its storages; None: there can be none.
    """

    def __init__(self, notes: Notes, persistent: Callable[[Any], Any] | None = None) -> None:
        self._notes = notes
        self._persistent = persistent

    def run(self, tape: Tape) -> Any:
        """What the pickle describes; the tape stands behind it.

        Raises:
            UnbelievableError: it is no pickle, or does what none does that holds weights.
        """
        self._tape = tape
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._begin = tape.position
        while True:
            at = self._at = tape.position - self._begin
            code = tape.read(1)
            if code == pickle.STOP:
                return self._pop()
            self._notes.steps += 1
            if self._notes.steps > MOST_STEPS:
                raise UnbelievableError(f"it has more than {MOST_STEPS} instructions")
            action = _ACTIONS.get(code)
            if action is None:
                raise UnbelievableError(f"byte {at} of its pickle is no instruction for weights: {code!r}")
            try:
                action(self)
            except (UnicodeError, ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError) as exc:
                raise UnbelievableError(f"byte {at} of its pickle makes no sense ({type(exc).__name__})") from None

    # -- the stack ---------------------------------------------------------------------------------
    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UnbelievableError("its pickle takes more than it has put down")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _to_mark(self) -> list[Any]:
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _drop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    def _put(self, key: int) -> None:
        self._memo[key] = self._top()

    # -- containers --------------------------------------------------------------------------------
    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Opaque):
            target.given.append(values)
        else:
            raise UnbelievableError("its pickle appends to what is no list")

    def _add(self) -> None:
        values, target = self._to_mark(), self._top()
        if type(target) is not Bag:
            raise UnbelievableError("its pickle adds to what is no set")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target, pairs = self._top(), _paired(values)
        if type(target) is dict:
            target.update(pairs)
        elif isinstance(target, Opaque):
            target.given.append(pairs)
        else:
            raise UnbelievableError("its pickle sets items of what is no dictionary")

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    # -- what would be calls -----------------------------------------------------------------------
    def _name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnbelievableError("its pickle names a class by what is no text")
        if max(len(module), len(name)) > LONGEST_NAME:
            raise UnbelievableError(f"its pickle names a class in more than {LONGEST_NAME} letters")
        found = Global(module, name, self._at)
        self._notes.named.append(found)
        self._push(found)

    def _name_from_stack(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _call(self, what: Any, args: Any, more: Any = None) -> None:
        if not isinstance(what, Global) or not isinstance(args, tuple):
            raise UnbelievableError("its pickle calls what is no class and no function")
        self._charge(args)
        self._push(called(what, args, more or {}, self._notes))

    def _charge(self, args: tuple[Any, ...]) -> None:
        """What is made of values may be a copy of them, and the values may have been put down once for many copies."""
        for arg in args:
            if isinstance(arg, str | bytes):
                self._notes.room -= len(arg)
            elif isinstance(arg, list | tuple | dict):
                self._notes.steps += len(arg)
        if self._notes.room < 0:
            raise UnbelievableError("its pickle copies many times what it holds")

    def _reduce(self) -> None:
        args, what = self._pop(), self._pop()
        self._call(what, args)

    def _new_with_keywords(self) -> None:
        more, args, what = self._pop(), self._pop(), self._pop()
        self._call(what, args, more)

    def _instance(self) -> None:
        args = tuple(self._to_mark())
        self._name(self._tape.line().decode(), self._tape.line().decode())
        self._call(self._pop(), args)

    def _object(self) -> None:
        what, *args = self._to_mark()
        self._call(what, tuple(args))

    def _build(self) -> None:
        state = self._pop()
        state_given(self._top(), state, self._notes)

    def _ask(self, identity: Any) -> None:
        if self._persistent is None:
            raise UnbelievableError("its pickle refers to something outside of it")
        self._push(self._persistent(identity))

    # -- plain values ------------------------------------------------------------------------------
    def _int_line(self) -> None:
        line = self._tape.line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _int(line))

    def _old_text(self, raw: bytes | Piece) -> None:
        """What Python 2 called a text: names, and the bytes of arrays."""
        short = isinstance(raw, bytes) and len(raw) <= SHORT and raw.isascii()
        self._push(raw.decode("ascii") if isinstance(raw, bytes) and short else raw)

    def _quoted(self) -> None:
        line = self._tape.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise UnbelievableError("its pickle has a text without quotes")
        self._old_text(codecs.escape_decode(line[1:-1])[0])  # as pickle itself does

    def _long(self, width: int) -> None:
        count = self._tape.number(width, signed=width == 4)
        if not 0 <= count <= 4096:
            raise UnbelievableError(f"its pickle has a number of {count} bytes")
        self._push(self._tape.number(count, signed=True))


def _paired(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise UnbelievableError("its pickle has a key without a value")
    return keyed(values[::2], values[1::2])


def _int(line: bytes) -> int:
    digits = line.removesuffix(b"L")
    if len(digits) > MOST_DIGITS:
        raise UnbelievableError(f"its pickle has a number of {len(digits)} digits")
    return int(digits)


_ACTIONS: dict[bytes, Callable[[Machine], None]] = {
    pickle.PROTO: lambda m: _check_protocol(m._tape.number(1)),
    pickle.FRAME: lambda m: (m._tape.read(8), None)[1],  # how much to read ahead, which the tape decides itself
    pickle.MARK: Machine._mark,
    pickle.POP: Machine._drop,
    pickle.POP_MARK: lambda m: (m._to_mark(), None)[1],
    pickle.DUP: lambda m: m._push(m._top()),
    pickle.NONE: lambda m: m._push(None),
    pickle.NEWTRUE: lambda m: m._push(True),
    pickle.NEWFALSE: lambda m: m._push(False),
    pickle.INT: Machine._int_line,
    pickle.BININT: lambda m: m._push(m._tape.number(4, signed=True)),
    pickle.BININT1: lambda m: m._push(m._tape.number(1)),
    pickle.BININT2: lambda m: m._push(m._tape.number(2)),
    pickle.LONG: lambda m: m._push(_int(m._tape.line())),
    pickle.LONG1: lambda m: m._long(1),
    pickle.LONG4: lambda m: m._long(4),
    pickle.FLOAT: lambda m: m._push(float(m._tape.line())),
    pickle.BINFLOAT: lambda m: m._push(struct.unpack(">d", m._tape.read(8))[0]),
    pickle.STRING: Machine._quoted,
    pickle.BINSTRING: lambda m: m._old_text(m._tape.data(m._tape.number(4))),
    pickle.SHORT_BINSTRING: lambda m: m._old_text(m._tape.data(m._tape.number(1))),
    pickle.UNICODE: lambda m: m._push(m._tape.line().decode("raw-unicode-escape")),
    pickle.SHORT_BINUNICODE: lambda m: m._push(m._tape.text(m._tape.number(1))),
    pickle.BINUNICODE: lambda m: m._push(m._tape.text(m._tape.number(4))),
    pickle.BINUNICODE8: lambda m: m._push(m._tape.text(m._tape.number(8))),
    pickle.SHORT_BINBYTES: lambda m: m._push(m._tape.data(m._tape.number(1))),
    pickle.BINBYTES: lambda m: m._push(m._tape.data(m._tape.number(4))),
    pickle.BINBYTES8: lambda m: m._push(m._tape.data(m._tape.number(8))),
    pickle.BYTEARRAY8: lambda m: m._push(m._tape.data(m._tape.number(8))),
    pickle.EMPTY_TUPLE: lambda m: m._push(()),
    pickle.TUPLE1: lambda m: m._tuple(1),
    pickle.TUPLE2: lambda m: m._tuple(2),
    pickle.TUPLE3: lambda m: m._tuple(3),
    pickle.TUPLE: lambda m: m._push(tuple(m._to_mark())),
    pickle.EMPTY_LIST: lambda m: m._push([]),
    pickle.LIST: lambda m: m._push(m._to_mark()),
    pickle.APPEND: lambda m: m._append([m._pop()]),
    pickle.APPENDS: lambda m: m._append(m._to_mark()),
    pickle.EMPTY_DICT: lambda m: m._push({}),
    pickle.DICT: lambda m: m._push(_paired(m._to_mark())),
    pickle.SETITEM: Machine._set_one,
    pickle.SETITEMS: lambda m: m._set(m._to_mark()),
    pickle.EMPTY_SET: lambda m: m._push(Bag()),
    pickle.FROZENSET: lambda m: m._push(Bag(m._to_mark())),
    pickle.ADDITEMS: Machine._add,
    pickle.PUT: lambda m: m._put(_int(m._tape.line())),
    pickle.BINPUT: lambda m: m._put(m._tape.number(1)),
    pickle.LONG_BINPUT: lambda m: m._put(m._tape.number(4)),
    pickle.MEMOIZE: lambda m: m._put(len(m._memo)),
    pickle.GET: lambda m: m._push(m._memo[_int(m._tape.line())]),
    pickle.BINGET: lambda m: m._push(m._memo[m._tape.number(1)]),
    pickle.LONG_BINGET: lambda m: m._push(m._memo[m._tape.number(4)]),
    pickle.GLOBAL: lambda m: m._name(m._tape.line().decode(), m._tape.line().decode()),
    pickle.STACK_GLOBAL: Machine._name_from_stack,
    pickle.REDUCE: Machine._reduce,
    pickle.NEWOBJ: Machine._reduce,
    pickle.NEWOBJ_EX: Machine._new_with_keywords,
    pickle.INST: Machine._instance,
    pickle.OBJ: Machine._object,
    pickle.BUILD: Machine._build,
    pickle.BINPERSID: lambda m: m._ask(m._pop()),
}
"""All of protocols 0 to 5, but for four kinds: EXT1, EXT2 and EXT4 name what the program that reads has registered,
PERSID is a persistent id as a text, and NEXT_BUFFER and READONLY_BUFFER mean bytes that are not in the file."""


def _check_protocol(number: int) -> None:
    if number > pickle.HIGHEST_PROTOCOL:
        raise UnbelievableError(f"its pickle is of protocol {number}, which is not known")
