"""A document is read the same in pieces of any size, and what is wrong with it is one line."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload.profile import json_stream
from simulator.workload.profile.json_stream import read_pieces

DOCUMENT = {
    "before": [1, {"a": None}],
    "events": [{"n": n, "text": "µ\n" * n, "x": -1.5e-7 * n, "t": True} for n in range(9)] + [12],
    "after": {"events": [3]},
    "number": 17,
}
PIECES = [
    ("before", DOCUMENT["before"]),
    *(("events", event) for event in DOCUMENT["events"]),
    ("after", {"events": [3]}),
    ("number", 17),
]


def pieces(path):
    return list(read_pieces(path, "here", of="events"))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 3])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_pieces_do_not_depend_on_how_much_is_read_at_a_time(
    chunk, indent, pack, tmp_path, monkeypatch
):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    path = tmp_path / "document.json"
    path.write_bytes(pack(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode()))
    assert pieces(path) == PIECES
    path.write_bytes(pack(json.dumps(DOCUMENT["events"], indent=indent).encode()))
    assert pieces(path) == PIECES[1:-2]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(events=st.lists(JSON), rest=st.dictionaries(st.text(), JSON), cut=st.floats(0, 0.999))
def test_any_document_is_read_and_cut_anywhere_it_is_refused(tmp_path_factory, events, rest, cut):
    path = tmp_path_factory.mktemp("any") / "document.json"
    rest.pop("events", None)
    whole = json.dumps({**rest, "events": events}).encode()
    path.write_bytes(whole)
    assert pieces(path) == [*rest.items(), *(("events", event) for event in events)]
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(ValueError, match=r"^here: (cut short: line 1|the file is empty|.*escape)"):
        pieces(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n ", "the file is empty"),
        (b'{"events": [1, ], "b": 2}', "not JSON: line 1, column 16: Expecting value"),
        (b'{"events": [1\n 2], "b": 2}', "not JSON: line 2, column 2: Expecting ',' delimit"),
        (b'{"events": []} 3', "not JSON: line 1, column 16: Extra data"),
        (b'{"events": 3}', "no list 'events'"),
        (b"{}", "no list 'events'"),
        (b'{3: 4, "events": []}', "not JSON: line 1, column 3: Expecting property name"),
        (b'{"events": [' + b"9" * 5000 + b"]}", "not JSON: line 1, column 13: Exceeds the limit"),
        (b'{"events": [' + b"[" * 100_000, "not a trace: nested too deeply"),
        (b'{"\xff', r"not UTF-8 text \(byte 2\)"),
        (b"\x1f\x8b\x08\x00rubbish that is no gzip", "not a readable gzip file"),
        (gzip.compress(b"[1, 2, 3]", mtime=0)[:-9], "the gzip file is cut short"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(content, message, tmp_path):
    path = tmp_path / "document.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^here: {message}"):
        pieces(path)


def test_a_gzip_bomb_is_refused_before_it_expands(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "FREE", 2**20)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 2**26 + b"]"))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"^here: expands to over 200 times its size"):
        pieces(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**25


def test_a_single_value_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MOST_PIECE", 2**21)
    path = tmp_path / "document.json"
    path.write_text('["' + "x" * 2**23 + '"]')
    with pytest.raises(ValueError, match="a single value of over 2097152 characters"):
        pieces(path)


def test_memory_does_not_grow_with_the_document(tmp_path):
    path = tmp_path / "document.json"
    event = json.dumps({"name": "x" * 200})
    most = {}
    for megabytes in (2, 16):
        path.write_text(f"[{', '.join([event] * (megabytes * 2**20 // len(event)))}]")
        tracemalloc.start()
        for _ in read_pieces(path, "here", of="events"):
            pass
        most[megabytes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most[16] < 1.2 * most[2]
