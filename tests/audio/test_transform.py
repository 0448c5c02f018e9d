from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pytest
from conftest import tone
from samples import librosa_reference, previews

from songray.audio.decode import decode
from songray.audio.excerpt import Excerpt
from songray.audio.extract import Extraction, extract_batch
from songray.audio.sets import excerpt_of
from songray.audio.spectrograms import SPECS, compute, from_bytes, quantise
from songray.audio.transform import TransformConfig, transform
from songray.errors import AudioError, Conflict
from songray.keys import track_key
from songray.library import Library
from songray.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Extraction()


TIME = np.arange(3 * 22050) / 22050
NOISE = np.random.default_rng(0).normal(0, 0.1, TIME.size)
SYNTHETIC = {
    "silence": np.zeros(TIME.size),
    "impulse": np.eye(1, TIME.size, 30000)[0],
    "constant": np.full(TIME.size, 0.5),
    "faint tone on an offset": 0.5 + 1e-3 * np.sin(2 * np.pi * 1000 * TIME),
    "full-scale sine": np.sin(2 * np.pi * 1000 * TIME),
    "clipped sine": np.clip(5 * np.sin(2 * np.pi * 100 * TIME), -1, 1),
    "noise that fades away": NOISE * 10 ** (-4 * TIME),
    "shorter than a window": NOISE[:600],
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("sound", SYNTHETIC)
def test_every_spec_is_what_librosa_makes_of_edge_cases(sound: str, name: str) -> None:
    samples, spec = SYNTHETIC[sound].astype(np.float32), SPECS[name]
    with warnings.catch_warnings(action="ignore"):  # librosa warns of short and of empty sounds
        expected = librosa_reference(samples, spec)
    found = compute(samples, [name])[name]
    assert found.shape == expected.shape == (1 + samples.size // spec.hop_length, spec.bins)
    assert np.abs(found - expected).max() < 0.05


def test_every_spec_is_what_librosa_makes_of_a_clip(clips: Path) -> None:
    for file in ("joth_party_0.mp3", "brahms_hungarian5_0.mp3", "zhelanov_junk_1.mp3"):
        recording = decode(str(clips / file), Excerpt())
        for rate in {spec.rate for spec in SPECS.values()}:
            samples = librosa.load(clips / file, sr=rate, mono=True)[0]
            names = [name for name, spec in SPECS.items() if spec.rate == rate]
            for name, plane in compute(recording.resampled(rate), names).items():
                expected = librosa_reference(samples, SPECS[name])
                assert plane.shape == expected.shape
                assert np.abs(plane - expected).max() < 0.05, (file, name)


@pytest.mark.parametrize("name", SPECS)
def test_storing_adds_at_most_half_a_step(name: str) -> None:
    spec = SPECS[name]
    low, high = spec.range
    values = np.linspace(low, high, 10001, dtype=np.float32)[:, None]
    back = quantise(values, spec) * ((high - low) / 255) + low
    step = (high - low) / 255
    assert np.abs(back - values).max() <= step / 2 * 1.001
    if spec.range == (-80, 0):
        assert step / 2 < 0.157  # dB


@pytest.mark.parametrize("name", SPECS)
def test_nothing_lies_outside_the_range_that_is_stored(name: str) -> None:
    low, high = SPECS[name].range
    for samples in SYNTHETIC.values():
        plane = compute(samples.astype(np.float32), [name])[name]
        assert low - 1e-3 <= plane.min() <= plane.max() <= high + 1e-3


def test_a_row_is_read_back_by_plain_numpy(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", seconds=2)
    (row,) = extract_batch(previews(path.read_bytes()), CONFIG)[0].to_pylist()
    assert row["error"] is None
    assert row["seconds"] == pytest.approx(2)
    assert row["missing_seconds"] == 0
    cells = np.frombuffer(row["mel128"], np.uint8).reshape(-1, 128)
    assert np.array_equal(cells, from_bytes(row["mel128"], SPECS["mel128"]))
    assert cells.max() == 255  # the loudest bin is 0 dB
    loudest = librosa.mel_frequencies(130, fmin=0, fmax=11025)[1:-1][cells.mean(axis=0).argmax()]
    assert loudest == pytest.approx(440, abs=20)


def test_a_set_has_a_column_for_each_of_its_specs(tmp_path: Path) -> None:
    path = str(tone(tmp_path / "a.wav", seconds=5))
    table, _ = extract_batch(previews(path), Extraction(specs=("linear257", "chroma12")))
    assert set(SPECS) & set(table.column_names) == {"linear257", "chroma12"}
    (row,) = table.to_pylist()
    assert from_bytes(row["linear257"], SPECS["linear257"]).shape == (431, 257)
    assert from_bytes(row["chroma12"], SPECS["chroma12"]).shape == (216, 12)
    alone = extract_batch(previews(path), Extraction(specs=("chroma12",)))[0]
    assert alone["chroma12"] == table["chroma12"]  # a spec does not depend on its company


def test_specs_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from mel128, linear257"):
        TransformConfig(specs=("mel128", "mel12"))


def test_bad_sounds_are_rows_beside_good_ones(tmp_path: Path) -> None:
    good = tone(tmp_path / "a.wav").read_bytes()
    table, again = extract_batch(previews(good, b"", b"noise" * 99, "/nowhere.mp3", good), CONFIG)
    rows = table.to_pylist()
    assert [row["error"] for row in rows] == [None, "empty", "not_audio", None]
    assert [row["track_key"] for row in rows] == [0, 1, 2, 4]
    assert again == ["missing"]  # it may come back
    assert all(row["detail"] for row in rows if row["error"])


def test_odd_recordings_are_decoded(clips: Path) -> None:
    paths = sorted((clips / "odd_inputs").glob("*.ogg"))
    rows = extract_batch(previews(*map(str, paths)), CONFIG)[0].to_pylist()
    assert [row["error"] for row in rows] == [None] * len(paths)


def mutated(sound: bytes, random: np.random.Generator) -> bytes:
    """The sound with a few bytes changed, removed or added, or a part cut off, repeated or blanked."""
    first, last = sorted(random.integers(0, len(sound), 2))
    few = np.frombuffer(sound, np.uint8).copy()
    places = random.integers(0, random.choice([200, few.size]), random.choice([1, 10, 1000]))
    few[places] = random.integers(0, 256, places.size)
    variants = [
        few.tobytes(),
        sound[:last],
        sound[first:],
        sound[:first] + sound[last:],
        sound[:last] + sound[first:],
        sound[:first] + bytes(last - first) + sound[last:],
        sound[:first] + random.bytes(999) + sound[first:],
    ]
    return variants[random.integers(len(variants))]


def test_a_set_keeps_its_excerpt_and_new_sets_have_that_of_the_default_one(library: Library) -> None:
    assert excerpt_of(library, "default") == Excerpt(30, "spread:5")
    transform(library, TransformConfig(excerpt_seconds=10, excerpt_at="middle"))
    transform(library, TransformConfig())
    transform(library, TransformConfig(set="second"))
    transform(library, TransformConfig(set="third", excerpt_at="start"))
    assert excerpt_of(library, "default") == excerpt_of(library, "second") == Excerpt(10, "middle")
    assert excerpt_of(library, "third") == Excerpt(10, "start")
    with pytest.raises(Conflict, match="was made with"):
        transform(library, TransformConfig(excerpt_at="start"))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_mutated_mp3s_end_as_rows(library: Library, clips: Path) -> None:
    random = np.random.default_rng(4)
    whole = [path.read_bytes() for path in sorted(clips.glob("*.mp3"))[::10]]
    sounds = [mutated(whole[n % len(whole)], random) for n in range(200)]
    library.table("previews").append(filled(previews(*sounds)), "previews")
    config = TransformConfig(specs=("mel128", "linear257"), excerpt_seconds=5, max_failed_share=1)
    summary = transform(library, config)
    assert summary.done + summary.failed.total() == 200
    assert set(summary.failed) <= {"not_audio", "too_short", "silent", "not_finite"}
    assert summary.done > 160
    for sound in sounds:
        try:
            planes = compute(decode(sound, Excerpt(5)).resampled(22050), config.specs)
        except AudioError:
            continue
        assert all(np.isfinite(plane).all() for plane in planes.values())


DEADLY_DECODER = """
import os, signal, soundfile
open_sound = soundfile.SoundFile.__init__
def init(self, file, *arguments, **options):
    start = file.read(4)
    if start == b"KILL":
        os.kill(os.getpid(), signal.SIGSEGV)
    if start == b"HANG":
        signal.pause()
    file.seek(0)
    open_sound(self, file, *arguments, **options)
soundfile.SoundFile.__init__ = init
"""


@pytest.mark.slow
def test_sounds_that_kill_or_hang_their_decoder_cost_only_themselves(
    library: Library, tmp_path: Path
) -> None:
    """Ray and its workers run with a soundfile that segfaults or hangs at some bytes; no file is known that
    makes the real one do so."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY_DECODER)
    good = tone(tmp_path / "a.wav").read_bytes()
    sounds = [good] * 36  # more than a batch
    sounds[5], sounds[7], sounds[33] = b"KILL 1", b"HANG", b"KILL 2"
    library.table("previews").append(filled(previews(*sounds)), "previews")
    job = subprocess.run(
        [sys.executable, "jobs/transform.py", "--library", library.root, "--seconds-per-track", "5"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert "36 tracks = 0 finished before + 33 finished now + 3 failed (decoder_died 3)" in job.stdout, (
        job.stderr
    )
    rows = library.table("spectrograms", "default").read().to_pylist()
    assert sorted(int(row["track_id"]) for row in rows) == list(range(36))
    assert {int(row["track_id"]) for row in rows if row["error"]} == {5, 7, 33}


def filled(table: pa.Table) -> pa.Table:
    """Previews in all their columns, with keys as they are."""
    rows = [row | {"track_key": track_key(row["track_id"], 0)} for row in table.to_pylist()]
    return pa.Table.from_pylist(rows, pa.schema(TABLES["previews"].columns))
