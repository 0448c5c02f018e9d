"""Mutations of bytes, JSON and query strings, always the same for the same seed, and sounds to mutate."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import soundfile
from conftest import CLIPS

CLIP_BYTES = 60_000  # of a real clip: some seconds
MAX_BYTES = 400_000
EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFF00)


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("song.mp3", b"\xff\xfb\x90\x00" * 100)
    return content.getvalue()


# What FFmpeg, or a careless reader, might take for a reference to another file or host.
OTHER_FORMATS = {
    "SDP": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio 5004 RTP/AVP 0\r\n",
    "HLS": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "DASH": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    b'<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">'
    b"<BaseURL>file:///etc/passwd</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "M3U": b"#EXTM3U\n#EXTINF:1,x\n/etc/passwd\n",
    "PLS": b"[playlist]\nFile1=file:///etc/passwd\nNumberOfEntries=1\nVersion=2\n",
    "XSPF": b'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    b'<playlist version="1" xmlns="http://xspf.org/ns/0/"><trackList><track><location>&e;</location>'
    b"</track></trackList></playlist>",
    "JSPF": b'{"playlist": {"title": "x", "track": [{"location": ["file:///etc/passwd"]}]}}',
    "ZIP": _zip(),
    "GZIP": gzip.compress(b"x" * 1000, mtime=0),
    "HTML": b"<!DOCTYPE html><html><body>not found</body></html>",
    "PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x06\x00\x00\x00",
    "ID3": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
    "RIFF": b"RIFF\xff\xff\xff\xffWAVEfmt \x10\x00\x00\x00\x01\x00\xff\xff\xff\xff\xff\xff",
    "MP4": b"\x00\x00\x00\x01ftypisom\xff\xff\xff\xff\xff\xff\xff\xffmoov\x00\x00\x00\x08trak",
    "EBML": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
    "UTF-16": "id,url\n1,http://x.test/1\n".encode("utf-16"),
    "NUL": bytes(4096),
}


def sounds() -> list[bytes]:
    """Short sounds in several formats, and the beginnings of real clips where there are any."""
    time = np.arange(2 * 22050) / 22050
    stereo = np.stack([np.sin(2 * np.pi * hertz * time) * 0.3 for hertz in (330, 440)], 1)
    encoded = []
    for container, subtype in (
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("CAF", "ALAC_16"), ("W64", "PCM_24"),
    ):  # fmt: skip
        content = io.BytesIO()
        rate = 48000 if subtype == "OPUS" else 22050
        soundfile.write(content, stereo, rate, format=container, subtype=subtype)
        encoded.append(content.getvalue())
    clips = sorted(CLIPS.glob("*.mp3"))[::6] if CLIPS.is_dir() else []
    odd = sorted((CLIPS.parent / "odd").glob("test_*")) if CLIPS.is_dir() else []
    return [*encoded, *(path.read_bytes()[:CLIP_BYTES] for path in clips), *map(Path.read_bytes, odd)]


def _flipped_bits(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    end = len(content) if random.random() < 0.5 else min(256, len(content))  # half of them in the header
    for _ in range(random.choice((1, 3, 20, 200))):
        content[random.randrange(end)] ^= 1 << random.randrange(8)
    return bytes(content)


def _cut_off(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    return bytes(content[: random.choice((1, 4, 12, 40, 200, random.randrange(len(content)))) :])


def _with_insertion(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(content))
    return bytes(content[:at] + random.randbytes(random.choice((1, 7, 1000))) + content[at:])


def _with_repetition(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    start, end = sorted(random.randrange(len(content)) for _ in range(2))
    return bytes(content[:end] + content[start:end] * random.choice((1, 2, 5)) + content[end:])


def _with_swapped_chunks(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    a, b, c = sorted(random.randrange(len(content)) for _ in range(3))
    return bytes(content[:a] + content[b:c] + content[a:b] + content[c:])


def _with_extreme_lengths(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    end = len(content) if random.random() < 0.3 else min(128, len(content))
    for _ in range(random.choice((1, 1, 2, 8))):
        at, size = random.randrange(end), random.choice((2, 4, 8))
        value = random.choice(EXTREMES).to_bytes(8, random.choice(("little", "big")))
        content[at : at + size] = value[:size] if random.random() < 0.5 else value[-size:]
    return bytes(content)


def _spliced(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return bytes(content[: random.randrange(len(content))] + other[random.randrange(len(other)) :])


def _with_another_format_first(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    prefix = random.choice(list(OTHER_FORMATS.values()))
    return prefix + (bytes(content) if random.random() < 0.5 else b"")


def _empty(random: Random, content: bytearray, others: Sequence[bytes]) -> bytes:
    return b""


MUTATIONS: dict[Callable[[Random, bytearray, Sequence[bytes]], bytes], int] = {  # and their weights
    _flipped_bits: 5, _cut_off: 3, _with_insertion: 2, _with_repetition: 2, _with_swapped_chunks: 2,
    _with_extreme_lengths: 5, _spliced: 3, _with_another_format_first: 4, _empty: 1,
}  # fmt: skip


def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Mutated once to three times; `others` are what it may be spliced with."""
    for _ in range(random.choice((1, 1, 2, 3))):
        if content:
            (mutation,) = random.choices(list(MUTATIONS), list(MUTATIONS.values()))
            content = mutation(random, bytearray(content), others)
    return content[:MAX_BYTES]


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, -(2**63), 2**31, 1e308, 1e-320, float("nan"), float("inf"), "", " ",
    "\x00", "\ud83d", "\udcff", "a" * 20_000, "𝕏‮\u0301" * 50, "=cmd()", "../../etc/passwd",
    "file:///etc/passwd", "http://[::1", "spotify:track:x", "0000-00-00", "9" * 5000, [], {}, [[]], [None],
    {"id": None}, {"": {"": ""}}, [{}] * 300,
)  # fmt: skip


def _deep() -> Any:
    nested: Any = []
    for _ in range(300):  # as deeply as Python's own writer allows; deeper ones come as text
        nested = [nested]
    return nested


def mutate_json(random: Random, value: Any) -> Any:
    """A copy with one to three changes: a value replaced or removed, a name changed, an item repeated."""
    value = deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        parent, place = None, None
        node = value
        while isinstance(node, dict | list) and node and (parent is None or random.random() < 0.8):
            parent = node
            place = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
            node = node[place]
        odd = _deep() if random.random() < 0.03 else deepcopy(random.choice(ODD_VALUES))
        if parent is None or random.random() < 0.03:
            return odd
        change = random.random()
        if change < 0.7:
            parent[place] = odd
        elif change < 0.85:
            del parent[place]
        elif isinstance(parent, list):
            parent.extend([node] * random.choice((1, 50)))
        else:
            parent[random.choice(("id", "x", "", "\ud83d", "__proto__"))] = parent.pop(place)
    return value


def json_text(random: Random, value: Any) -> bytes:
    """As JSON with NaN, Infinity and lone surrogates, seldom nested so deeply that parsers refuse it."""
    text = json.dumps(value)
    if random.random() < 0.03:
        deep = "[" * 50_000 + "]" * 50_000
        text = text.replace("null", deep, 1) if "null" in text else deep
    return text.encode()


ODD_TEXTS = (
    b"", b" ", b"\x00", b"\xff\xfe", b"\xed\xa0\xbd", b"-1", b"0", b"1e400", b"nan", b"inf", b"9" * 400,
    "١".encode(), "²".encode(), b"x" * 5000, "é́".encode() * 300, b"../../etc/passwd", b"t:1\r\nX: y",
    b"'; DROP TABLE tracks", b"<script>", b"%", b"%zz", b"&&&=", b"[]", b"{}", b"true", b"null", b"*" * 199,
    "\U0001f3b5‮".encode(), b"enc:ff", b"enc:zz", b"xml", b"json", b"jsonp", b"0,0,0,0", b"1,1,-1,-1",
)  # fmt: skip


def mutate_query(random: Random, parameters: list[tuple[str, str]]) -> str:
    """Parameters as a query string: values replaced or mutated, names repeated, removed or renamed."""
    pairs = [(name.encode(), value.encode()) for name, value in parameters] or [(b"q", b"x")]
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(pairs))
        name, value = pairs[at]
        change = random.random()
        if change < 0.5:
            pairs[at] = name, random.choice(ODD_TEXTS)
        elif change < 0.75:
            pairs[at] = name, mutate(random, value, ODD_TEXTS[1:])[:4000]
        elif change < 0.85:
            pairs.extend([(name, random.choice((value, *ODD_TEXTS)))] * random.choice((1, 300)))
        elif change < 0.95:
            pairs[at] = random.choice(ODD_TEXTS)[:4000], value
        elif len(pairs) > 1:
            del pairs[at]
    return "&".join(f"{quote_from_bytes(name)}={quote_from_bytes(value)}" for name, value in pairs)[:60_000]
