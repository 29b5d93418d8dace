"""Decodes LZ4 frames, the compression that Xet uses inside its chunks."""

import struct

MAGIC = 0x184D2204
HAS_DICTIONARY, HAS_CONTENT_CHECKSUM, HAS_CONTENT_SIZE, HAS_BLOCK_CHECKSUM = 0x01, 0x04, 0x08, 0x10
IS_STORED = 0x80000000  # in a block's size: the block is not compressed


def decode_frame(frame: bytes) -> bytes:
    """Decompress one LZ4 frame; its checksums are not checked, the caller knows the file's sha256.

    Args:
        frame: A whole frame, from magic number to end mark.

    Raises:
        ValueError: If `frame` does not start with the magic number or a match points before its start.
    """
    magic, flags = struct.unpack_from("<IB", frame)
    if magic != MAGIC:
        raise ValueError(f"Expected an LZ4 frame, got {frame[:4].hex()}.")
    position = 7 + (8 if flags & HAS_CONTENT_SIZE else 0) + (4 if flags & HAS_DICTIONARY else 0)
    output = bytearray()  # one for all blocks: linked blocks copy from the blocks before them
    while size := struct.unpack_from("<I", frame, position)[0]:
        position += 4
        stored, size = size & IS_STORED, size & ~IS_STORED
        block = frame[position : position + size]
        if stored:
            output += block
        else:
            _decode_block(block, output)
        position += size + (4 if flags & HAS_BLOCK_CHECKSUM else 0)
    return bytes(output)


def _decode_block(block: bytes, output: bytearray) -> None:
    position = 0
    while position < len(block):
        token = block[position]
        num_literals, position = _read_length(block, position + 1, token >> 4)
        output += block[position : position + num_literals]
        position += num_literals
        if position >= len(block):
            return  # the last sequence has literals only
        distance = block[position] | block[position + 1] << 8
        length, position = _read_length(block, position + 2, token & 15)
        _copy_match(output, distance, length + 4)


def _read_length(block: bytes, position: int, length: int) -> tuple[int, int]:
    if length == 15:
        while (byte := block[position]) == 255:
            length, position = length + 255, position + 1
        length, position = length + byte, position + 1
    return length, position


def _copy_match(output: bytearray, distance: int, length: int) -> None:
    start = len(output) - distance
    if distance == 0 or start < 0:
        raise ValueError(f"An LZ4 match points {distance} bytes back, after {len(output)} bytes.")
    match = output[start : start + length]
    repeats = -(-length // len(match))  # a match may overlap what it writes: then it repeats itself
    output += (match * repeats)[:length]
