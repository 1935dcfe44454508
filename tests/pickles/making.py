"""Old files to convert, harmless and hostile, and what to hold the new ones against."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from devicekit import host
from devicekit.errors import WeightsError
from devicekit.pickles.conversion import Conversion, Wish, convert
from tests.weights.files import facts

NEW = "new.safetensors"


def converted(old: bytes | Path, folder: Path, **wish: Any) -> Conversion:
    """Convert a file, or the bytes of one, to ``new.safetensors`` in a folder."""
    source = old
    if isinstance(old, bytes):
        source = folder / "old.pt"
        source.write_bytes(old)
    return convert(source, folder / NEW, Wish(**wish), host.current())


def refused(old: bytes | Path, folder: Path, *words: str, **wish: Any) -> WeightsError:
    """The error of what must not be converted, with these words in it; nothing of the new file is left."""
    try:
        converted(old, folder, **wish)
    except WeightsError as error:
        said = str(error)
        assert [word for word in words if word not in said] == [], said
        assert "\x1b" not in said
        assert len(said) < 5000
        assert [path.name for path in folder.iterdir() if "new" in path.name] == []
        return error
    raise AssertionError("it was converted")


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    """What safetensors itself reads from the new file."""
    from safetensors.torch import load_file

    return load_file(folder / NEW)  # type: ignore[no-any-return]


def metadata(folder: Path) -> dict[str, str]:
    """The new file's texts."""
    from safetensors import safe_open

    with safe_open(folder / NEW, "pt") as file:
        return file.metadata()  # type: ignore[no-any-return]


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert facts(found) == facts(wanted)


def saved(value: Any, **options: Any) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


def of_torch(code: bytes, **storages: bytes) -> bytes:
    """A file as torch.save writes it, with this pickle, and storages ``_0``, ``_1``."""
    held = {f"x/data/{key.removeprefix('_')}": data for key, data in storages.items()}
    return archive({"x/data.pkl": code, "x/byteorder": b"little", **held})


def op_text(text: str) -> bytes:
    """An instruction that puts a text down."""
    raw = text.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def op_int(number: int) -> bytes:
    """An instruction that puts a number down."""
    return pickle.LONG + f"{number}L\n".encode()


def op_ints(*numbers: int) -> bytes:
    """Instructions that put a tuple down."""
    return pickle.MARK + b"".join(map(op_int, numbers)) + pickle.TUPLE


def op_name(module: str, name: str) -> bytes:
    """An instruction that names a class."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def op_storage(key: str = "0", kind: str = "FloatStorage", count: int = 4) -> bytes:
    """Instructions that put a storage down."""
    inside = op_text("storage") + op_name("torch", kind) + op_text(key) + op_text("cpu") + op_int(count)
    return pickle.MARK + inside + pickle.TUPLE + pickle.BINPERSID


def op_tensor(shape: bytes, strides: bytes, offset: int = 0, *, storage: bytes | None = None) -> bytes:
    """Instructions that put a tensor down."""
    begin = op_name("torch._utils", "_rebuild_tensor_v2") + pickle.MARK
    middle = (op_storage() if storage is None else storage) + op_int(offset) + shape + strides
    return begin + middle + pickle.NEWFALSE + pickle.NONE + pickle.TUPLE + pickle.REDUCE


def op_dict(**values: bytes) -> bytes:
    """Instructions that put a dictionary down."""
    items = b"".join(op_text(key) + value for key, value in values.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def program(code: bytes) -> bytes:
    """A whole pickle."""
    return pickle.PROTO + b"\2" + code + pickle.STOP


GOOD = op_tensor(op_ints(2, 2), op_ints(2, 1))
FOUR = bytes(range(16))
"""Four numbers of float32."""
