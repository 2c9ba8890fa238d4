"""All that was said on iopub, numbered and in order: the queue of what is not sent yet, and the memory of what was.

Laws of the file:

* A message is kept once. `sent` is the number of the last one that went out; what comes after it is the queue.
* Every message of iopub but the welcome has a number, from 1, without gaps. One text of a stream as it goes out, all
  that was written within one pace, has one number; texts of one stream that lie together are one entry, and what
  is read from it names its first and last number: `{"seq": last, "first_seq": first}` in the metadata.
* Nothing is collapsed: what a front end makes of the journal is what it would have made of the messages.
* The oldest entries go to a file, and out of it when that is full. What is gone is said, with its numbers.
"""

from __future__ import annotations

import logging
import marshal
import threading
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple

from orjson import Fragment

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps, loads
from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.output.spill import Slot, SpillFile

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

MEMORY_LIMIT = 32 << 20
"""Bytes that the journal may have in memory."""

SPILL_LIMIT = 512 << 20
"""Bytes that it may have in a file."""

PAGE = 1 << 20
"""Bytes in a page where the client names no limit."""

_LARGEST_PAGE = 16 << 20
_BLOCK = 256 << 10
"""Bytes that go to the file at once."""

_TEXT = 64 << 10
"""How large an entry may grow by texts of one stream."""

_ENTRY = 300
"""Bytes of memory that an entry costs beside its content: the tuple, its number, the heads of its parts."""

_KEPT = 10_000
"""How many states that were not sent outlive the blocks they were in."""

STREAM, STATUS = MessageType.STREAM.value, MessageType.STATUS.value
_log = logging.getLogger(__name__)


_Stored = tuple[int, str, bytes, bytes, bytes, bytes, tuple[bytes, ...], str, "list[str] | None"]
"""The fields of an entry. A plain tuple of plain values costs the garbage collector nothing, and goes to the file."""


class Entry(NamedTuple):
    """One message, or the texts of one stream that lie together, one for each number."""

    first: int
    msg_type: str
    header: bytes
    parent: bytes
    metadata: bytes
    content: bytes
    buffers: tuple[bytes, ...]
    stream: str
    texts: list[str] | None

    @property
    def last(self) -> int:
        """The number of the last text; of a message its own."""
        return self.first if self.texts is None else self.first + len(self.texts) - 1

    def after(self, number: int) -> Entry:
        """Return the part that comes after a number; texts without their beginning are a message of their own."""
        if number < self.first or self.texts is None:
            return self
        header = loads(self.header)
        header["msg_id"] += f"_{number + 1}"
        return self._replace(first=number + 1, header=dumps(header), texts=self.texts[number + 1 - self.first :])

    def metadata_json(self) -> bytes:
        """Write the metadata, with the numbers in it."""
        return numbered(self.metadata, self.first, self.last)

    def content_json(self) -> bytes:
        """Write the content."""
        return self.content if self.texts is None else text_content(self.stream, "".join(self.texts))


def text_content(stream: str, text: str) -> bytes:
    """Write the content of a stream message."""
    return dumps({"name": stream, "text": text})


def numbered(metadata: bytes, first: int, last: int) -> bytes:
    """Put the numbers into metadata that is a JSON object already, as `dumps` writes it."""
    numbers = b'"seq":%d}' % last if first == last else b'"seq":%d,"first_seq":%d}' % (last, first)
    return b"{" + numbers if len(metadata) <= 2 else metadata[:-1] + b"," + numbers


@dataclass(slots=True, eq=False)
class _Block:
    """Entries that go to the file together; `entries` is None once they are there.

    `first` and `last` name the numbers that it was made of. Of a block that was cut, only states are left.
    """

    first: int
    last: int
    size: int = 0
    entries: list[_Stored] | None = field(default_factory=list[_Stored])
    slot: Slot | None = None


class Page(NamedTuple):
    """The content of a journal_reply, and the buffers of its messages one after the other."""

    content: dict[str, Any]
    buffers: tuple[bytes, ...] = ()


class Journal:
    """A bounded ring of what was said; from any thread.

    Args:
        memory_limit: bytes in memory, about; what is older goes to a file.
        spill_limit: bytes in the file; 0 for none.
        folder: where the file is made, see `SpillFile`.
    """

    def __init__(
        self,
        memory_limit: int = MEMORY_LIMIT,
        spill_limit: int = SPILL_LIMIT,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.last: int = 0
        self.sent: int = 0
        self._memory_limit = memory_limit
        self._block_size = min(_BLOCK, memory_limit // 4)
        self._file = SpillFile(spill_limit, folder)
        self._lock = threading.Lock()
        self._size: int = 0
        self._open = _Block(1, 0)
        self._blocks: list[_Block] = [self._open]
        self._settled: int = 0  # so many of the oldest blocks are in the file, or cut
        self._kept: int = 0
        self._parent: bytes = EMPTY
        self._texts: list[str] = []
        self._texts_of: tuple[bytes, str] = EMPTY, ""
        self._texts_size: int = 0
        self._cuts: list[tuple[int, int, str]] = []
        self._gaps: deque[int] = deque(maxlen=1000)
        self._window: Sequence[_Stored] = ()
        self._window_at: int = 0

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def append(
        self,
        msg_type: str,
        header: bytes,
        parent: bytes,
        metadata: bytes,
        content: bytes,
        buffers: tuple[bytes, ...] = (),
    ) -> int:
        """Keep a message; return its number."""
        content = bytes(memoryview(content))  # a copy: what orjson writes keeps the 4 KB that it was written in
        size = len(header) + len(metadata) + len(content)
        with self._lock:
            number = self.last = self.last + 1
            self._texts_size = _TEXT
            self._add(
                (number, msg_type, header, parent, metadata, content, buffers, "", None),
                size + sum(map(len, buffers)) if buffers else size,
            )
        return number

    def append_text(self, header: bytes, parent: bytes, stream: str, text: str) -> int:
        """Keep a text of a stream, with the texts before it where they lie together; return its number."""
        size = getsizeof(text) + 8
        with self._lock:
            number = self.last = self.last + 1
            if self._texts_size + size > _TEXT or self._texts_of != (parent, stream) or not self._open.entries:
                self._texts, self._texts_of, self._texts_size = [text], (parent, stream), size
                entry = number, STREAM, header, parent, EMPTY, b"", (), stream, self._texts
                self._add(entry, size + len(header))
            else:
                self._texts.append(text)
                self._texts_size += size
                self._grow(size)
        return number

    def note_gap(self) -> None:
        """Note that a subscriber that does not read is left out, from the next message until it reads again."""
        self._gaps.append(self.sent + 1)

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self.forget()

    def forget(self) -> None:
        """Forget everything, in a forked child: there another thread's lock would stay locked for ever."""
        self._file.close()
        self._open = _Block(self.last + 1, self.last)
        self._blocks, self._settled, self._size = [self._open], 0, 0

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def unsent(self) -> Entry | None:
        """Return what comes after `sent`; None where all is sent. For the one thread that sends."""
        if self.sent >= self.last:
            return None
        entry = self._in_window()
        if entry is None:
            with self._lock:
                for entries in self._entries_after(self.sent):
                    self._window, self._window_at = entries, 0
                    if (entry := self._in_window()) is not None:
                        break
                else:  # all of it was cut
                    self.sent = self.last
        return entry and entry.after(self.sent)

    def page(self, request: Mapping[str, Any]) -> Page:
        """Answer a journal_request: what was said after `since`, oldest first, as much as `limit` allows.

        Asked for are `since`, the number seen last (0 for everything), `limit` in bytes (by default 1 MiB, at most
        16; one message is given however large it is), and `until`, the last number wanted (by default the last
        there is). The answer has

        * `messages`: header, parent_header, metadata (with the numbers), content and msg_type of each, and in
          `buffers` how many of the reply's buffers are its own;
        * `next`: the `since` of the next page, null where this is the last one;
        * `last`: the number of the last message, sent or not;
        * `cut`: `[{"first", "last", "reason"}]`, the numbers up to `next` that are gone;
        * `gaps`: numbers from which on some subscriber that did not read was left out: it asks here.
        """
        try:
            since, limit, until = _asked(request)
        except ValueError as error:
            return Page({"status": "error", "ename": "ValueError", "evalue": str(error), "traceback": []})
        with self._lock:
            return self._page(since, limit, min(until, self.last))

    def _page(self, since: int, limit: int, until: int) -> Page:
        messages: list[dict[str, Any]] = []
        cut: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        seen, size, more = since, 0, False
        for entry in self._parts(since, until):
            message, cost = _as_dict(entry)
            if messages and size + cost > limit:
                more = True
                break
            cut += self._cut_between(seen, entry.first)
            messages.append(message)
            buffers += entry.buffers
            seen, size = entry.last, size + cost
        if not more:
            cut += self._cut_between(seen, until + 1)
        content = {
            "status": "ok",
            "messages": messages,
            "next": seen if more else None,
            "last": self.last,
            "cut": cut,
            "gaps": [number for number in self._gaps if since < number <= until],
        }
        return Page(content, tuple(buffers))

    def _parts(self, since: int, until: int) -> Iterator[Entry]:
        for entries in self._entries_after(since):
            for stored in entries[bisect_right(entries, since, key=_last) :]:
                entry = Entry(*stored)
                if entry.first > until:
                    return
                yield entry.after(since)

    def _in_window(self) -> Entry | None:
        while self._window_at < len(self._window):
            entry = Entry(*self._window[self._window_at])
            if entry.last > self.sent:
                return entry
            self._window_at += 1
        return None

    def _entries_after(self, number: int) -> Iterator[Sequence[_Stored]]:
        """Give the entries of each block that has any after a number, oldest first."""
        for block in self._blocks[bisect_right(self._blocks, number, key=_last_of_block) :]:
            yield self._load(block)

    def _load(self, block: _Block) -> Sequence[_Stored]:
        if block.slot is None:
            return block.entries or ()
        try:
            return marshal.loads(self._file.read(block.slot))
        except OSError as error:
            self._note_cut(block, f"The journal's file could not be read: {error}.")
            return ()

    def _cut_between(self, seen: int, following: int) -> list[dict[str, Any]]:
        """List what is gone of the numbers between two."""
        gone = ((max(first, seen + 1), min(last, following - 1), reason) for first, last, reason in sorted(self._cuts))
        return [{"first": first, "last": last, "reason": reason} for first, last, reason in gone if first <= last]

    # ── making room ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, entry: _Stored, size: int) -> None:
        if entry[3] is not self._parent:  # those of one cell share it
            self._parent = entry[3]
            size += len(entry[3])
        assert self._open.entries is not None
        self._open.entries.append(entry)
        self._grow(size + _ENTRY)

    def _grow(self, size: int) -> None:
        block = self._open
        block.last = self.last
        block.size += size
        self._size += size
        if block.size >= self._block_size:
            self._open = _Block(self.last + 1, self.last)
            self._blocks.append(self._open)
            while self._size > self._memory_limit and self._blocks[self._settled] is not self._open:
                self._settle(self._blocks[self._settled])

    def _settle(self, block: _Block) -> None:
        """Move a block from memory to the file."""
        self._size -= block.size
        data = marshal.dumps(block.entries) if self._file.limit else b""
        if not 0 < len(data) <= self._file.limit:
            self._cut(block, self._limits())
            return
        try:
            for _ in range(self._file.make_room(len(data))):
                self._cut(next(block for block in self._blocks if block.slot), self._limits())
            block.slot = self._file.write(data)
        except OSError as error:
            _log.warning("The journal's file cannot be written, what is older is forgotten: %s", error)
            self._cut(block, f"The journal's file could not be written: {error}.")
            return
        block.entries = None
        self._settled += 1

    def _cut(self, block: _Block, reason: str) -> None:
        """Forget a block, but for the states in it that were not sent: clients wait for idle."""
        settled = self._blocks.index(block) < self._settled
        states = [entry for entry in self._load(block) if entry[1] == STATUS] if block.last > self.sent else []
        self._note_cut(block, reason)
        if states:
            block.slot, block.entries = None, states
            self._kept += len(states)
            self._settled += not settled
        else:
            self._blocks.remove(block)
            self._settled -= settled
        self._forget_states()

    def _forget_states(self) -> None:
        """Forget, of the blocks that were cut, the states that were sent or are too many."""
        for block in self._blocks[: self._settled]:
            if block.slot is not None or (block.last > self.sent and self._kept <= _KEPT):
                break
            self._kept -= len(block.entries or ())
            self._blocks.remove(block)
            self._settled -= 1

    def _note_cut(self, block: _Block, reason: str) -> None:
        if any(first <= block.first <= last for first, last, _ in self._cuts):
            return
        if self._cuts and self._cuts[-1][1:] == (block.first - 1, reason):
            self._cuts[-1] = self._cuts[-1][0], block.last, reason
        else:
            self._cuts.append((block.first, block.last, reason))

    def _limits(self) -> str:
        return f"The journal holds {self._memory_limit} bytes in memory and {self._file.limit} in a file."


def _last(entry: _Stored) -> int:
    return Entry(*entry).last


def _last_of_block(block: _Block) -> int:
    return block.last


def _asked(request: Mapping[str, Any]) -> tuple[int, int, int]:
    since = _whole(request, "since", None)
    limit = _whole(request, "limit", PAGE)
    return since, min(limit, _LARGEST_PAGE), _whole(request, "until", 1 << 62)


def _whole(request: Mapping[str, Any], name: str, default: int | None) -> int:
    value = request.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"A journal_request's {name!r} is a whole number from 0, not {value!r}.")
    return value


def _as_dict(entry: Entry) -> tuple[dict[str, Any], int]:
    """Write an entry as a page has it; return it and its size in bytes."""
    content = entry.content_json()
    message = {
        "header": Fragment(entry.header),
        "parent_header": Fragment(entry.parent),
        "metadata": Fragment(entry.metadata_json()),
        "content": Fragment(content),
        "msg_type": entry.msg_type,
        "buffers": len(entry.buffers),
    }
    return message, len(entry.header) + len(entry.parent) + len(content) + sum(map(len, entry.buffers))
