"""The pretrained networks, against values of independent implementations."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from stored_spectrograms import store_spectrograms
from torch.nn import functional

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.spectrograms import SPECS, Plane, compute, from_bytes, quantise
from songray.errors import MissingInput
from songray.keys import track_key
from songray.learning import encoder
from songray.learning.embed import EmbedConfig, embed
from songray.learning.models import MODELS
from songray.learning.models.build import build
from songray.learning.models.musicnn import coarse, network
from songray.learning.models.musicnn.convert import convert, read_checkpoint
from songray.learning.train import TrainConfig, train
from songray.learning.windows import embed_clips, to_float
from songray.library import Library, matrix

SPEC = SPECS["mel96-16k"]
MUSIC = ROOT.parent / "shared" / "music"
# The published network, its checkpoint read by hand and computed by torch's convolutions, on `chord()`: the
# first six numbers of the vector, its length, and the two likeliest tags.
CHORD = {
    "musicnn-msd": ([-0.1772, -0.1270, -0.2848, -0.2751, -0.3532, 0.1491], 14.2486, {4: 0.514, 28: 0.470}),
    "musicnn-mtt": ([-0.0800, 0.0877, 1.0444, -0.1861, -0.0787, 1.0532], 8.2743, {2: 0.298, 10: 0.285}),
}
# The same of real clips, by a port that is not ours.
CLIPS = {
    ("pablo_reddoors_0", "musicnn-mtt"): (
        [-0.080, 1.052, 0.016, 0.949, -0.079, -0.170], 9.562, {3: 0.791, 8: 0.726}
    ),
    ("pablo_reddoors_0", "musicnn-msd"): (
        [-0.085, 0.663, -0.285, -0.275, -0.353, 0.839], 10.042, {4: 0.458, 6: 0.336}
    ),
    ("macleod_vibeace_0", "musicnn-mtt"): (
        [0.150, -0.028, 0.326, -0.146, -0.079, 0.820], 5.708, {6: 0.242, 2: 0.239}
    ),
    ("macleod_vibeace_0", "musicnn-msd"): (
        [0.098, -0.013, -0.285, -0.275, 0.287, 0.620], 7.757, {9: 0.458, 4: 0.135}
    ),
    ("joth_9thcircle_0", "musicnn-mtt"): (
        [-0.080, 0.090, 0.727, -0.120, -0.079, -0.011], 7.065, {11: 0.428, 3: 0.407}
    ),
    ("joth_9thcircle_0", "musicnn-msd"): (
        [-0.175, -0.127, -0.285, -0.252, -0.353, 1.768], 11.813, {4: 0.515, 28: 0.356}
    ),
}  # fmt: skip
Expected = tuple[list[float], float, dict[int, float]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the workers of the jobs. Threads that wait for a processor would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def chord() -> np.ndarray:
    """Seven seconds of six partials that get louder twice a second."""
    time = np.arange(7 * SPEC.rate) / SPEC.rate
    partials = enumerate((220, 277.18, 329.63, 440, 880, 1760), start=1)
    tones = sum(np.sin(2 * np.pi * hertz * time) / number for number, hertz in partials)
    return (0.2 * tones * (0.6 + 0.4 * np.sign(np.sin(4 * np.pi * time)))).astype(np.float32)


@cache
def model(name: str) -> network.Musicnn:
    built = build(MODELS[name]()).eval()
    assert isinstance(built, network.Musicnn)
    return built


@torch.inference_mode()
def vectors_of(plane: Plane, name: str) -> torch.Tensor:
    """The vectors of the windows of a spectrogram that is not quantised, (windows, 200)."""
    count = len(plane) // model(name).frames
    windows = torch.from_numpy(plane[: count * model(name).frames]).view(count, -1, SPEC.bins)
    return model(name).embed(windows / SPEC.range[1])


def assert_expected(plane: Plane, name: str, expected: Expected) -> None:
    vectors = vectors_of(plane, name)
    first, length, tags = expected
    assert np.abs(vectors.mean(0)[:6].numpy() - first).max() < 1e-3
    assert vectors.mean(0).norm().item() == pytest.approx(length, abs=1e-3)
    with torch.inference_mode():
        probabilities = model(name).tags(vectors).sigmoid().mean(0)
    assert probabilities.topk(2).indices.tolist() == list(tags)
    assert np.abs(probabilities[list(tags)].numpy() - list(tags.values())).max() < 1e-3


@pytest.mark.parametrize("name", CHORD)
def test_a_chord_has_the_vector_of_the_published_network(name: str) -> None:
    assert_expected(compute(chord(), ["mel96-16k"])["mel96-16k"], name, CHORD[name])


@pytest.mark.parametrize(("clip", "name"), CLIPS)
def test_real_clips_have_the_vectors_of_another_port(clip: str, name: str, clips: Path) -> None:
    samples = librosa.load(clips / f"{clip}.mp3", sr=SPEC.rate)[0]
    assert_expected(compute(samples, ["mel96-16k"])["mel96-16k"], name, CLIPS[clip, name])


@pytest.mark.parametrize("name", CHORD)
def test_eight_bits_keep_the_direction_of_a_vector(name: str) -> None:
    if not MUSIC.is_dir():
        pytest.skip(f"no real music at {MUSIC}")
    for file in sorted(MUSIC.glob("*.mp3"))[::100]:
        samples = decode(str(file), Excerpt()).resampled(SPEC.rate)
        plane = compute(samples, ["mel96-16k"])["mel96-16k"]
        exact = vectors_of(plane, name).mean(0).numpy()
        (stored,) = embed_clips(model(name), [quantise(plane, SPEC)])
        assert exact @ stored / np.linalg.norm(exact) / np.linalg.norm(stored) > 0.9999


@pytest.mark.parametrize("bins", network.TIMBRAL)
def test_the_timbral_product_is_a_convolution_and_its_maximum_over_frequency(bins: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    spectrograms = torch.randn(2, network.FRAMES, network.BINS, generator=generator)
    kernel = torch.randn(network.TIMBRAL[bins], network.TIMBRAL_FRAMES, bins, generator=generator)
    padded = functional.pad(spectrograms, (0, 0, 3, 3), value=0.4)
    expected = functional.conv2d(padded[:, None], kernel[:, None]).amax(3).transpose(1, 2)
    assert torch.allclose(network.timbral(spectrograms, kernel, 0.4), expected, atol=1e-3)


@pytest.mark.parametrize("frames", network.TEMPORAL)
def test_the_temporal_product_is_a_convolution_and_its_maximum_over_frequency(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    spectrograms = torch.randn(2, network.FRAMES, network.BINS, generator=generator)
    kernel = torch.randn(network.TEMPORAL[frames], frames, generator=generator)
    padded = functional.pad(spectrograms, (0, 0, (frames - 1) // 2, frames // 2), value=0.4)
    expected = functional.conv2d(padded[:, None], kernel[:, None, :, None]).amax(3).transpose(1, 2)
    assert torch.allclose(network.temporal(spectrograms, kernel, 0.4), expected, atol=1e-3)


@pytest.mark.parametrize("name", CHORD)
def test_stored_windows_have_equal_vectors_in_float32_and_in_bfloat16(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the processor has no products in bfloat16, this compares float32 with itself."""
    spectrogram = quantise(compute(chord(), ["mel96-16k"])["mel96-16k"], SPEC)
    allowed = embed_clips(model(name), [spectrogram])
    monkeypatch.setattr(network, "bfloat16_products", lambda are_exact: nullcontext())
    assert np.abs(embed_clips(model(name), [spectrogram]) - allowed).max() < 1e-5


def test_only_exact_products_may_be_in_bfloat16() -> None:
    stored = torch.arange(256).to(torch.uint8)
    assert torch.equal(network.rounded(to_float(stored) * 255), stored.float())
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    for are_exact in (True, False):
        with network.bfloat16_products(are_exact):
            assert (setting.fp32_precision == "bf16") == are_exact
        assert setting.fp32_precision == before


def coarse_layers() -> coarse.Coarse:
    layers = coarse.Coarse()
    layers.start_from(model("musicnn-msd"))
    return layers.eval()


@torch.inference_mode()
def test_coarse_layers_give_what_musicnn_gives_of_equal_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all frames are equal, a kernel over time gives what that of musicnn gives, but at the edges."""
    monkeypatch.setattr(coarse, "product_type", lambda levels: levels.dtype)
    generator = torch.Generator().manual_seed(0)
    bands = torch.rand(1, 1, SPEC.bins // 3, 1, generator=generator)
    windows = bands.expand(1, network.FRAMES, -1, 3).flatten(2)
    whole, layers = model("musicnn-msd"), coarse_layers()
    levels = windows[:, ::2, ::3][:, : network.FRAMES // 2]
    for own, other in zip(layers.temporal, whole.temporal, strict=True):
        assert isinstance(own, network.Layer) and isinstance(other, network.Layer)
        middle = network.temporal(levels, own.signed_kernel())[:, 46]
        expected = network.temporal(windows, other.signed_kernel())[:, 93]
        assert torch.allclose(middle, expected, atol=1e-4)


@torch.inference_mode()
def test_coarse_layers_in_bfloat16_are_near_to_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has no products in bfloat16, this compares float32 with itself."""
    spectrogram = quantise(compute(chord(), ["mel96-16k"])["mel96-16k"], SPEC)
    windows, layers = to_float(torch.tensor(spectrogram[None, : network.FRAMES])), coarse_layers()
    fast = layers(windows)
    monkeypatch.setattr(coarse, "product_type", lambda levels: levels.dtype)
    assert functional.cosine_similarity(fast, layers(windows)) > 0.9999


def store_noise(library: Library, frames: tuple[int, ...]) -> None:
    """Tracks of different artists in the default set, one of each length."""
    random = np.random.default_rng(0)
    tracks, spectrograms = library.table("tracks"), library.table("spectrograms", "default")
    ids = [{"track_key": track_key(f"t:{n}", 0), "track_id": f"t:{n}"} for n in range(len(frames))]
    rows = [row | {"crawl": 1, "artist_ids": [row["track_id"]], "genres": []} for row in ids]
    tracks.append(pa.Table.from_pylist(rows, tracks.schema()), "tracks")
    cells = [random.integers(0, 256, (length, SPEC.bins), np.uint8).tobytes() for length in frames]
    rows = [row | {"mel96-16k": cell} for row, cell in zip(ids, cells, strict=True)]
    columns = ["track_key", "track_id", "mel96-16k", "error"]
    table = pa.Table.from_pylist(rows, spectrograms.schema()).select(columns)
    spectrograms.append(table, "spectrograms")


@pytest.mark.usefixtures("cluster")
def test_jobs_fit_the_scale_alone_and_embed_in_any_batches(library: Library) -> None:
    store_noise(library, (400, 200, 100, 600))
    run = train(library, "musicnn-msd", MODELS["musicnn-msd"](), TrainConfig())
    assert embed(library, EmbedConfig(run=run.name, batch_tracks=3, actors=1)).done == 4
    loaded = encoder.load_model(library, run)
    assert (loaded.projection == 1).all()  # centred, not whitened
    published, fitted = model("musicnn-msd").state_dict(), loaded.model.state_dict()
    assert all(torch.equal(fitted[name], values) for name, values in published.items())
    written = library.table("embeddings", run.name).read().sort_by("track_key")
    stored = library.table("spectrograms", "default").read(["track_key", "mel96-16k"]).sort_by("track_key")
    rows = zip(stored["mel96-16k"], matrix(written["embedding"]), written["tags"].to_pylist(), strict=True)
    for cell, vector, tags in rows:
        (alone,), (probabilities,) = loaded.encode_with_tags({"mel96-16k": [from_bytes(cell.as_py(), SPEC)]})
        assert np.abs(alone - vector).max() < 1e-5
        assert np.abs(probabilities - np.array(tags)).max() < 1e-3  # they are stored in half precision


@pytest.mark.usefixtures("cluster")
def test_a_set_without_the_spec_is_refused_with_the_command_for_another(library: Library) -> None:
    store_spectrograms(library, 4)
    with pytest.raises(MissingInput, match="songray transform --specs mel96-16k --set NAME"):
        train(library, "musicnn-msd", MODELS["musicnn-msd"](), TrainConfig())


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A block of a LevelDB table; each key is stored without what it shares with the one before it."""
    content, before = b"", b""
    for key, value in entries:
        shared = next((n for n, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), len(before))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<II", 0, 1)  # one restart, at 0


def entry(shape: tuple[int, ...], offset: int, size: int) -> bytes:
    """BundleEntryProto of float32; zeros are left out."""
    sizes = b"".join(b"\x12" + varint(1 + len(varint(n))) + b"\x08" + varint(n) for n in shape)
    place = b"\x20" + varint(offset) if offset else b""
    return b"\x08\x01\x12" + varint(len(sizes)) + sizes + place + b"\x28" + varint(size)


def test_a_checkpoint_is_read_without_the_variables_of_its_optimizer() -> None:
    values = np.arange(700, dtype=np.float32)
    data = values.tobytes()
    entries = block([
        (b"", b"\x08\x01"),  # the header
        (b"dense/bias", entry((100,), 0, 400)),
        (b"dense/bias/Adam", entry((100,), 0, 400)),
        (b"dense/kernel", entry((2, 300), 400, 2400)),
    ])  # fmt: skip
    handle = varint(0) + varint(len(entries))
    index = block([(b"dense/z", handle)])
    start = len(entries) + 5  # a block is followed by its compression and checksum
    footer = (varint(0) + varint(0) + varint(start) + varint(len(index))).ljust(48, b"\0")
    tensors = read_checkpoint(entries + bytes(5) + index + bytes(5) + footer, data)
    assert set(tensors) == {"dense/bias", "dense/kernel"}
    assert np.array_equal(tensors["dense/bias"], values[:100])
    assert np.array_equal(tensors["dense/kernel"], values[100:].reshape(2, 300))


def test_a_batch_normalisation_becomes_a_factor_and_an_offset() -> None:
    random = np.random.default_rng(0)
    shapes = {name: tuple(values.shape) for name, values in model("musicnn-msd").state_dict().items()}
    checkpoint = {
        f"batch_normalization{number}/{part}": random.uniform(0.5, 2, 3).astype(np.float32)
        for number in ("", *(f"_{n}" for n in range(1, 11)))
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    for number in range(8):
        layer = f"conv2d_{number}" if number else "conv2d"
        checkpoint |= {f"{layer}/kernel": np.ones((2, 1, 1, 3)), f"{layer}/bias": np.ones(3)}
    for layer in ("dense", "dense_1"):
        checkpoint |= {f"{layer}/kernel": np.ones((2, 3)), f"{layer}/bias": np.ones(3)}
    parameters = convert(checkpoint)
    assert parameters.keys() == shapes.keys()
    values = random.normal(size=(5, 3))
    gamma, beta, mean, variance = (
        checkpoint[f"batch_normalization_1/{part}"]
        for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    expected = gamma * (values - mean) / np.sqrt(variance + 1e-3) + beta
    assert np.allclose(values * parameters["timbral.0.factor"] + parameters["timbral.0.offset"], expected)
