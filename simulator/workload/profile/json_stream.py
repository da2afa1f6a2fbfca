"""Read a large JSON document piece by piece, plain or gzipped.

A profile of a gigabyte is one list of small events beside a few other fields. The list is read
event by event; what is in memory is the piece that is parsed and the text that was read ahead,
however long the document is.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 2**20
"""Bytes that are read at a time."""
MOST_PIECE = 2**26
"""Characters of one event or one other field; profilers write a few thousand."""
MOST_EXPANSION = 200
"""Times its size that a gzipped file may expand to; profiles expand to 10 or 20 times theirs."""
FREE = 2**26
"""Bytes up to which a file may expand as it likes."""
_GZIP_MAGIC = b"\x1f\x8b"
_BLANK = re.compile(r"[ \t\n\r]*")
_WORDS = ("true", "false", "null", "-Infinity", "Infinity", "NaN")
_CUT = 16
"""Characters before the end of the text within which a token may be cut in two."""


def read_pieces(path: Path, where: str, *, of: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of each field of an object; the list `of` element by element.

    A document that is a list counts as that list.

    Raises ValueError, one line, for a file that cannot be read, is cut short, is not JSON, expands
    beyond measure or has no list `of`.
    """
    text = _Text(_decoded(path, where), where)
    first = text.peek()
    if not first:
        raise ValueError(f"{where}: the file is empty")
    found = first == "["
    if found:
        yield from ((of, element) for element in text.elements())
    elif first == "{":
        text.take("{")
        after = text.take("}") if text.peek() == "}" else ","
        while after == ",":
            name = text.value()
            if not isinstance(name, str):
                raise text.wrong("Expecting property name enclosed in double quotes")
            text.take(":")
            if name == of and text.peek() == "[":
                found = True
                yield from ((of, element) for element in text.elements())
            else:
                yield name, text.value()
            after = text.take(",}")
    else:
        text.value()
    if text.peek():
        raise text.wrong("Extra data")
    if not found:
        raise ValueError(f"{where}: no list {of!r}; expected a Kineto or Chrome trace")


def _decoded(path: Path, where: str) -> Iterator[str]:
    """The text of a file, chunk by chunk."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"{where}: cannot be read: not a file")
        for chunk in _chunks(path, where):
            # What waits for the rest of a character comes before this chunk.
            read -= len(decoder.getstate()[0])
            yield decoder.decode(chunk)
            read += len(chunk) + len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text (byte {read + error.start})") from None
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None


def _chunks(path: Path, where: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        if not packed:
            while chunk := file.read(CHUNK):
                yield chunk
            return
        expanded = 0
        try:
            with gzip.open(file) as unpacked:
                while chunk := unpacked.read(CHUNK):
                    expanded += len(chunk)
                    if expanded > max(FREE, MOST_EXPANSION * file.tell()):
                        raise ValueError(
                            f"{where}: expands to over {MOST_EXPANSION} times its size, as no "
                            "profile does; allowed: a gzipped JSON profile"
                        )
                    yield chunk
        except EOFError:
            raise ValueError(f"{where}: the gzip file is cut short") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{where}: not a readable gzip file: {error}") from None


class _Text:
    """Text that is parsed from front to back while it is read."""

    def __init__(self, chunks: Iterator[str], where: str) -> None:
        self.chunks = chunks
        self.where = where
        self.text = ""
        self.at = 0
        """What stands before this place of the text has been parsed."""
        self.lines = 0
        """Line breaks in what has been parsed and forgotten."""
        self.column = 0
        """Characters of the last line in what has been forgotten."""
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def take(self, allowed: str) -> str:
        """Parse one of some characters."""
        found = self.peek()
        if not found or found not in allowed:
            raise self.wrong(f"Expecting {allowed[0]!r} delimiter")
        self.at += 1
        return found

    def elements(self) -> Iterator[Any]:
        """The elements of a list, one after the other."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def value(self) -> Any:
        """Parse one value."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = "Unterminated" in error.msg or error.pos >= len(self.text) - _CUT
                ahead = error.pos - self.at
                if not (cut and self.more()):
                    self.at += ahead
                    raise self.wrong(error.msg) from None
            except RecursionError:
                raise ValueError(f"{self.where}: not a trace: nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise self.wrong(str(error).partition(";")[0]) from None
            else:
                # A number that ends where the text does may go on in the next chunk.
                if end < len(self.text) or not self.more():
                    self.at = end
                    return value

    def more(self) -> bool:
        """Read as much again as is not parsed yet; False where there is no more."""
        parsed = self.text[: self.at]
        self.lines += parsed.count("\n")
        tail = parsed.rpartition("\n")[2]
        self.column = len(tail) + (0 if "\n" in parsed else self.column)
        waiting = [self.text[self.at :]]
        if len(waiting[0]) > MOST_PIECE:
            raise ValueError(
                f"{self.where}: not a trace: a single value of over {MOST_PIECE} characters"
            )
        self.at = 0
        wanted = max(1, len(waiting[0]))
        read = 0
        while read < wanted and (chunk := next(self.chunks, None)) is not None:
            waiting.append(chunk)
            read += len(chunk)
        self.text = "".join(waiting)
        return read > 0

    def wrong(self, message: str) -> ValueError:
        """The error at this place; at the very end the parser was still in the middle of it."""
        before = self.text[: self.at]
        line = self.lines + before.count("\n") + 1
        column = len(before.rpartition("\n")[2]) + 1 + (0 if "\n" in before else self.column)
        rest = self.text[self.at :].rstrip()
        in_word = any(word.startswith(rest) for word in _WORDS)
        cut = "Unterminated" in message or ((len(rest) <= 1 or in_word) and not self.more())
        what = "cut short" if cut and message != "Extra data" else "not JSON"
        return ValueError(f"{self.where}: {what}: line {line}, column {column}: {message}")
