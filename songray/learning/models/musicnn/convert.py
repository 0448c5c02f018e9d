"""Converts the weights that the PyPI package musicnn publishes to safetensors, without TensorFlow.

    pip download --no-deps musicnn==0.1.0
    python -m songray.learning.models.musicnn.convert musicnn-0.1.0-py3-none-any.whl

writes msd.safetensors, mtt.safetensors and LICENCE beside this module. The package itself cannot be installed
beside songray: it requires TensorFlow and numpy < 1.17. The same wheel gives the same bytes.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

Tensors = dict[str, NDArray[np.float32]]

FOLDERS = {"msd": "musicnn/MSD_musicnn", "mtt": "musicnn/MTT_musicnn"}
TRAINED_ON = """musicnn's weights, converted from the PyPI package musicnn 0.1.0.

msd.safetensors was trained on 200,000 songs of the Million Song Dataset, with Last.fm's tags.
mtt.safetensors was trained on MagnaTagATune: 25,000 clips of Magnatune, with tags from the game TagATune.

"""
# layer of the network → its layer in the checkpoint, and the batch normalisation after it
LAYERS = {
    "timbral.0": ("conv2d", "batch_normalization_1"),
    "timbral.1": ("conv2d_1", "batch_normalization_2"),
    "temporal.0": ("conv2d_2", "batch_normalization_3"),
    "temporal.1": ("conv2d_3", "batch_normalization_4"),
    "temporal.2": ("conv2d_4", "batch_normalization_5"),
    "middle.0": ("conv2d_5", "batch_normalization_6"),
    "middle.1": ("conv2d_6", "batch_normalization_7"),
    "middle.2": ("conv2d_7", "batch_normalization_8"),
    "dense": ("dense", "batch_normalization_10"),
}
EPSILON = 1e-3  # of the batch normalisations
FOOTER_BYTES = 48  # of the index, a LevelDB table


def main(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, source in FOLDERS.items():
            files = [archive.read(f"{source}/{file}") for file in (".index", ".data-00000-of-00001")]
            content = safetensors.numpy.save(convert(read_checkpoint(*files)))
            (folder / f"{name}.safetensors").write_bytes(content)
        licence = archive.read("musicnn-0.1.0.dist-info/LICENSE.md").decode()
    (folder / "LICENCE").write_text(TRAINED_ON + licence.strip() + "\n")


def convert(checkpoint: Tensors) -> Tensors:
    """The parameters of network.Musicnn from the variables of a checkpoint.

    A batch normalisation becomes the multiplication and the addition that it is at inference.
    """
    parameters = _affine(checkpoint, "input", "batch_normalization")
    parameters |= _affine(checkpoint, "pooled", "batch_normalization_9")
    for layer, (source, normalisation) in LAYERS.items():
        # (time, frequency, in, out) or (in, out) → (out, …)
        kernel = np.moveaxis(checkpoint[f"{source}/kernel"].squeeze(), -1, 0)
        parameters |= {f"{layer}.kernel": kernel, f"{layer}.bias": checkpoint[f"{source}/bias"]}
        parameters |= _affine(checkpoint, layer, normalisation)
    parameters |= {"tags.weight": checkpoint["dense_1/kernel"].T, "tags.bias": checkpoint["dense_1/bias"]}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in parameters.items()}


def _affine(checkpoint: Tensors, layer: str, source: str) -> Tensors:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    gamma, beta, mean, variance = (checkpoint[f"{source}/{name}"].astype(np.float64) for name in names)
    factor = gamma / np.sqrt(variance + EPSILON)
    offset = beta - mean * factor
    return {f"{layer}.factor": factor.astype(np.float32), f"{layer}.offset": offset.astype(np.float32)}


def read_checkpoint(index: bytes, data: bytes) -> Tensors:
    """The variables of a TensorFlow V2 checkpoint of one shard, all float32, without those of its optimizer.

    The index is an uncompressed LevelDB table, whose footer refers to an index block, which refers to the
    blocks of entries: name → BundleEntryProto.
    """
    tensors: Tensors = {}
    footer = index[-FOOTER_BYTES:]
    place = 0
    for _ in range(2):  # the handle of the metaindex block
        _, place = _varint(footer, place)
    for _, handle in _entries(index, footer[place:]):
        for name, entry in _entries(index, handle):
            if not name or b"Adam" in name or b"power" in name:  # the first entry is the table's header
                continue
            fields = _message(entry)
            sizes = [size for number, size in _fields(fields[2]) if number == 2]
            shape = [_message(size)[1] for size in sizes]
            start = fields.get(4, 0)  # protobuf leaves out what is 0
            values = np.frombuffer(data[start : start + fields[5]], "<f4")
            tensors[name.decode()] = values.reshape(shape)
    return tensors


def _entries(table: bytes, handle: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block to which a handle refers: its offset and its size."""
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    block = table[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    key, place = b"", 0
    while place < size - 4 - 4 * restarts:
        shared, place = _varint(block, place)  # bytes that the key has in common with the one before it
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _message(content: bytes) -> dict[int, Any]:
    return dict(_fields(content))


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protobuf message: integers, or bytes."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, place = _varint(content, place)
            yield number, value
            continue
        length = 4
        if wire_type == 2:
            length, place = _varint(content, place)
        yield number, content[place : place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """An integer of 7 bits a byte, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
