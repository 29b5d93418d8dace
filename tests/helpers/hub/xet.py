"""The two binary formats of Xet: xorbs hold compressed chunks, shards say which chunks make a file."""

import struct
from dataclasses import dataclass

from .lz4 import decode_frame

CHUNK_HEADER_SIZE = 8
STORED, LZ4, GROUPED_LZ4 = 0, 1, 2
SHARD_HEADER_SIZE = RECORD_SIZE = 48
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
BOOKEND = b"\xff" * 32


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in the bytes of its xorb, header included."""

    start: int
    end: int
    scheme: int
    num_bytes: int  # after decompression


@dataclass(frozen=True)
class Xorb:
    """An uploaded container of chunks."""

    body: bytes
    chunks: tuple[Chunk, ...]

    def unpack(self, first: int, end: int) -> bytes:
        """The decompressed content of the chunks `first` up to, not including, `end`."""
        return b"".join(_decompress(chunk, self.body) for chunk in self.chunks[first:end])


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb; the terms of a file, in order, are its content."""

    xorb: str
    num_bytes: int
    first: int
    end: int


@dataclass(frozen=True)
class ShardFile:
    """One file described by a shard."""

    xet_hash: str
    sha256: str | None
    terms: tuple[Term, ...]


def spell_hash(raw: bytes) -> str:
    """Xet spells a hash as four little-endian 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def parse_xorb(body: bytes) -> Xorb:
    """Find the chunks of a xorb.

    Raises:
        ValueError: If a chunk ends after the end of the body or has an unknown compression scheme.
    """
    chunks, start = [], 0
    while start < len(body) and body[start] == 0:  # 0 is a chunk's version; a footer starts with letters
        size = int.from_bytes(body[start + 1 : start + 4], "little")
        scheme = body[start + 4]
        end = start + CHUNK_HEADER_SIZE + size
        if end > len(body) or scheme > GROUPED_LZ4:
            raise ValueError(
                f"Chunk {len(chunks)} of the xorb is broken: scheme {scheme}, ends at {end} of {len(body)}."
            )
        chunks.append(Chunk(start, end, scheme, int.from_bytes(body[start + 5 : start + 8], "little")))
        start = end
    return Xorb(body, tuple(chunks))


def _decompress(chunk: Chunk, body: bytes) -> bytes:
    data = body[chunk.start + CHUNK_HEADER_SIZE : chunk.end]
    if chunk.scheme != STORED:
        data = decode_frame(data)
    if chunk.scheme == GROUPED_LZ4:
        data = _ungroup(data)
    if len(data) != chunk.num_bytes:
        raise ValueError(f"A chunk has {len(data)} bytes, its header says {chunk.num_bytes}.")
    return data


def _ungroup(data: bytes) -> bytes:
    """Undo the grouping of first, second, third and fourth bytes, which compresses floats better."""
    output, start = bytearray(len(data)), 0
    for group in range(4):
        size = len(range(group, len(data), 4))
        output[group::4] = data[start : start + size]
        start += size
    return bytes(output)


def parse_shard(body: bytes) -> list[ShardFile]:
    """Read the file section of a shard; its xorb section only helps deduplication and is left out."""
    files, position = [], SHARD_HEADER_SIZE
    while (raw_hash := body[position : position + 32]) != BOOKEND:
        flags, num_terms = struct.unpack_from("<II", body, position + 32)
        position += RECORD_SIZE
        terms = tuple(_parse_term(body, position + number * RECORD_SIZE) for number in range(num_terms))
        position += num_terms * RECORD_SIZE * (2 if flags & HAS_VERIFICATION else 1)
        sha256 = None
        if flags & HAS_METADATA:
            sha256 = spell_hash(body[position : position + 32])
            position += RECORD_SIZE
        files.append(ShardFile(spell_hash(raw_hash), sha256, terms))
    return files


def _parse_term(body: bytes, position: int) -> Term:
    num_bytes, first, end = struct.unpack_from("<III", body, position + 36)
    return Term(spell_hash(body[position : position + 32]), num_bytes, first, end)
