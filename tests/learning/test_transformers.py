"""Models of the transformers library: their vectors, what the run keeps of them, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="pip install 'songray[transformers]'")

from test_fusion import add_previews, keys_of, sound, stored_vectors  # noqa: E402
from transformers_models import FAMILIES, clap, make  # noqa: E402
from uploads import upload_encoder  # noqa: E402

from songray.audio.transform import TransformConfig, transform  # noqa: E402
from songray.errors import InvalidOption  # noqa: E402
from songray.learning import encoder  # noqa: E402
from songray.learning.embed import EmbedConfig, embed  # noqa: E402
from songray.learning.fuse import FusionConfig, fuse  # noqa: E402
from songray.learning.loop import build_model  # noqa: E402
from songray.learning.models.options import MODELS  # noqa: E402
from songray.learning.models.pretrained import TransformersConfig  # noqa: E402
from songray.learning.models.transformers import Transformers, pretrained_weights, resolved  # noqa: E402
from songray.learning.train import TrainConfig, train  # noqa: E402
from songray.learning.windows import embed_clips  # noqa: E402
from songray.library import Library  # noqa: E402
from songray.service.uploads import UploadEncoder  # noqa: E402


def options(name: str, folder: Path, **changed: object) -> TransformersConfig:
    make(name, folder)
    is_trusted = name == "remote_code"
    return TransformersConfig(path=str(folder), trust_remote_code=is_trusted, **changed)  # type: ignore[arg-type]


def load(config: TransformersConfig) -> Transformers:
    complete = resolved(config)
    model = build_model(complete, 0, pretrained_weights(complete))
    assert isinstance(model, Transformers)
    return model


def waveforms(rate: int, *seconds: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(0, 0.1, (round(rate * length), 1)).astype(np.float32) for length in seconds]


def expected(name: str, folder: Path, samples: np.ndarray) -> np.ndarray:
    """The vector of one window, as the library's own documentation computes it."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    is_stereo = name == "stereo_encodec"
    sounds = np.stack([samples] * 2) if is_stereo else samples
    features = extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=name == "remote_code").eval()
    with torch.inference_mode():
        if name == "clap":
            return model.get_audio_features(**features).pooler_output[0].numpy()
        if name == "fused_clap":  # it has one window alone, which its extractor declares as a longer one
            features["is_longer"] = torch.tensor([[False]])
            return model.get_audio_features(**features).pooler_output[0].numpy()
        if name == "encodec":
            return model.encoder(features["input_values"])[0].mean(1).numpy()
        if is_stereo:
            values = features["input_values"]
            scale = values.mean(1, keepdim=True).pow(2).mean(-1, keepdim=True).sqrt() + 1e-8
            return model.encoder(values / scale)[0].mean(1).numpy()
        if name == "whisper":
            return model.encoder(features["input_features"]).last_hidden_state[0].mean(0).numpy()
        return model(features["input_values"]).last_hidden_state[0].mean(0).numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_those_of_the_library_whatever_the_batch(name: str, tmp_path: Path) -> None:
    model = load(options(name, tmp_path / "model"))
    rate = model.config.rate
    clips = waveforms(rate, model.config.window_seconds, 4, 21)
    vectors = embed_clips(model, clips)
    assert vectors.shape == (3, model.dimension)
    peer = expected(name, tmp_path / "model", clips[0][:, 0])
    assert np.abs(vectors[0] - peer).max() < 1e-5 * max(1, np.abs(peer).max())
    shutil.rmtree(tmp_path / "model")
    copied = pickle.loads(pickle.dumps(model))
    assert np.abs(embed_clips(copied, clips[2:]) - vectors[2:]).max() < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "max", "first"])
@pytest.mark.parametrize("name", ["clap", "hubert"])
def test_a_hidden_layer_is_pooled(name: str, pooling: str, tmp_path: Path) -> None:
    model = load(options(name, tmp_path, layer=1, time_pooling=pooling))
    (samples,) = waveforms(model.config.rate, 10)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    features = extractor(samples[:, 0], sampling_rate=model.config.rate, return_tensors="pt")
    whole = transformers.AutoModel.from_pretrained(tmp_path).eval()
    encoder = whole.audio_model if name == "clap" else whole
    features.pop("attention_mask", None)
    with torch.inference_mode():
        hidden = encoder(**features, output_hidden_states=True).hidden_states[1]
    hidden = hidden.flatten(2).transpose(1, 2) if name == "clap" else hidden
    peer = {"mean": hidden.mean(1), "max": hidden.amax(1), "first": hidden[:, 0]}[pooling]
    assert np.allclose(embed_clips(model, [samples]), peer.numpy(), atol=1e-5)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    def refused(message: str, config: TransformersConfig) -> None:
        with pytest.raises(InvalidOption, match=message):
            load(config)

    refused("--path '': name a folder with a config.json", TransformersConfig())
    clap = options("clap", tmp_path / "clap")
    refused(
        "--window-seconds 11: this model takes at most 10 s", TransformersConfig(clap.path, window_seconds=11)
    )
    refused("--layer 9: the model has no such hidden layer", TransformersConfig(clap.path, layer=9))
    coded = options("remote_code", tmp_path / "coded")
    refused("a model with code of its own needs --trust-remote-code", TransformersConfig(coded.path))
    (tmp_path / "clap" / "model.safetensors").rename(tmp_path / "clap" / "pytorch_model.bin")
    refused(r"it has no \*.safetensors, and loading other formats may run code", clap)
    shutil.copy(tmp_path / "coded" / "model.safetensors", tmp_path / "clap" / "model.safetensors")
    refused("its weights have no text_model", clap)
    (tmp_path / "clap" / "tokenizer.json").unlink()
    refused("its weights have no audio_model", clap)


def test_texts_have_the_vectors_of_the_library(tmp_path: Path) -> None:
    model = load(options("clap", tmp_path / "model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    peer = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    shutil.rmtree(tmp_path / "model")
    copied = pickle.loads(pickle.dumps(model))
    for text in ("calm piano", "people applaud, a dog barks"):
        with torch.inference_mode():
            features = peer.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
        for each in (model, copied):
            assert each.has_text and np.allclose(each.embed_text(text), features, atol=1e-6)


def test_a_text_encoder_that_gives_all_texts_one_vector_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clap(tmp_path, equal_texts=True)
    model = load(TransformersConfig(path=str(tmp_path)))
    assert not model.has_text and "gives different texts nearly equal vectors" in caplog.text


@pytest.mark.usefixtures("cluster")
def test_a_run_finds_tracks_by_a_text_without_the_folder(library: Library, tmp_path: Path) -> None:
    """By itself, and where it is joined with a run that takes no text."""
    config = options("clap", tmp_path / "model")
    add_previews(library, tmp_path, range(6))
    add_rows(library, range(6))
    transform(library, TransformConfig())
    run, baseline = (
        train(library, name, options, TrainConfig())
        for name, options in (("transformers", config), ("mfcc", MODELS["mfcc"]()))
    )
    shutil.rmtree(tmp_path / "model")
    for each in (run, baseline):
        embed(library, EmbedConfig(run=each.name))
    joined = fuse(library, FusionConfig((f"{run.name}:1", f"{baseline.name}:3")))
    embed(library, EmbedConfig(run=joined.name))
    text = "loud guitars, drums"
    of_run, of_joined = (encoder.load(library, each).encode_text(text) for each in (run, joined))
    assert encoder.load(library, baseline).encode_text(text) is None
    alone = stored_vectors(library, run.name, range(6)) @ of_run
    assert np.allclose(stored_vectors(library, joined.name, range(6)) @ of_joined, alone / 2, atol=1e-5)
    asked = asyncio.run(UploadEncoder(library).embed_text(text, joined.name))
    assert np.allclose(asked, of_joined, atol=1e-6)


def test_the_licence_is_that_of_the_model_card(tmp_path: Path) -> None:
    config = options("ast", tmp_path)
    assert resolved(config).license == ""
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [audio]\n---\n# A model\n")
    assert resolved(config).license == "cc-by-nc-4.0"


def add_rows(library: Library, numbers: range) -> None:
    table = library.table("tracks")
    rows = [
        {"track_key": key, "track_id": f"t:{number}", "artist_ids": [f"a:{number}"]}
        for number, key in zip(numbers, keys_of(numbers), strict=True)
    ]
    table.append(pa.Table.from_pylist(rows, table.schema()), "000001")


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_run_embeds_previews_and_uploads_without_the_folder(library: Library, tmp_path: Path) -> None:
    """The model is joined with one that takes spectrograms; a preview that is no more is retried."""
    folder = tmp_path / "model"
    config = options("remote_code", folder, license="mit")
    add_previews(library, tmp_path, range(8))
    add_rows(library, range(8))
    transform(library, TransformConfig())
    run = train(library, "transformers", config, TrainConfig())
    assert "weights of the licence mit" in str(run)
    shutil.rmtree(folder)
    assert embed(library, EmbedConfig(run=run.name)).done == 8
    assert embed(library, EmbedConfig(run=run.name)).done == 0
    baseline = train(library, "mfcc", MODELS["mfcc"](), TrainConfig())
    embed(library, EmbedConfig(run=baseline.name))
    joined = fuse(library, FusionConfig((f"{run.name}:1", f"{baseline.name}:1")))
    assert embed(library, EmbedConfig(run=joined.name)).done == 8
    with upload_encoder(library) as embed_uploads:
        for name in (run.name, joined.name):
            stored = stored_vectors(library, name, range(8))
            uploaded = embed_uploads(name, [sound(tmp_path, number) for number in (5, 1)])
            assert np.abs(uploaded - stored[[5, 1]]).max() < 1e-5
