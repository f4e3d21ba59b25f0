"""The structs that Python passes to C are laid out alike on both sides, which is checked when a library is loaded."""

from __future__ import annotations

import ctypes
import re

import pytest
import tiny

from orthrus.backends.native import build, compiler, structs
from orthrus.file_cache import cache_directory

TYPES = {
    "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64, "float": ctypes.c_float, "double": ctypes.c_double,
}  # fmt: skip
SIZES = {"NUM_VIEWS": len(structs.VIEWS), "2": 2}


@pytest.fixture(params=list(tiny.DTYPES.values()), ids=list(tiny.DTYPES), name="library")
def _library(request):
    try:
        return build.library(request.param, cache_directory())
    except compiler.UnavailableError:
        pytest.skip("no C compiler on this machine")


def in_c(name):
    """The names and types of the fields of a struct in the headers."""
    text = "\n".join(path.read_text() for path in sorted(compiler.SOURCES.glob("*.h")))
    (body,) = re.findall(rf"typedef struct {{([^}}]*)}} {name};", text)
    for declaration in filter(None, (part.strip() for part in re.sub(r"/\*.*?\*/", "", body, flags=re.S).split(";"))):
        of, names = re.fullmatch(r"(?:const )?(\w+) (.*)", declaration, flags=re.S).groups()
        for field in (field.strip() for field in names.split(",")):
            if field.startswith("*"):
                yield field.lstrip("*"), ctypes.c_void_p
                continue
            label, size = re.fullmatch(r"(\w+)(?:\[(\w+)\])?", field).groups()
            kind = TYPES.get(of) or getattr(structs, of)
            yield label, kind * SIZES[size] if size else kind


def test_sizes_agree(library):
    assert structs.mismatch(library) is None


@pytest.mark.parametrize("mirror", structs.MIRRORED, ids=lambda mirror: mirror.__name__)
def test_fields_have_the_order_and_the_types_of_the_header(mirror):
    assert list(mirror._fields_) == list(in_c(mirror.__name__))


def test_an_unknown_struct_has_no_size(library):
    assert library.struct_size(b"NoSuchStruct") == 0


def test_a_library_with_another_layout_is_refused_by_name(library, monkeypatch):
    class LinearWeights(ctypes.Structure):
        _fields_ = (*structs.LinearWeights._fields_, ("more", ctypes.c_int64))

    monkeypatch.setattr(structs, "MIRRORED", (LinearWeights,))
    with pytest.raises(compiler.UnavailableError, match=r"LinearWeights has 64 bytes in C and 72 in its ctypes mirror"):
        build.library(tiny.DTYPES["fp32"], cache_directory())
