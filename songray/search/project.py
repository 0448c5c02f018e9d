"""Reads embeddings, writes maps: the position of each track in two dimensions, and its cluster.

A map is fitted to a sample; it places other tracks between the nearest ones of these. See stored_maps.py.
"""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from songray.cluster import connect
from songray.errors import InvalidOption, MissingInput
from songray.keys import REVISION_BITS
from songray.learning import runs
from songray.learning.scale import unit
from songray.library import Library, matrix
from songray.search.clusters import clusters_of
from songray.search.maps import METHODS, Method, faithfulness, positions_of
from songray.search.reference import Reference
from songray.search.stored_maps import MAP, REFERENCE, clear, read_map_reference
from songray.stages import Stage
from songray.storage import read_json, storage_errors, write_json
from songray.summary import Summary
from songray.table import Table

if TYPE_CHECKING:
    import ray

FIT_CPUS = 2


@dataclass(frozen=True)
class ProjectConfig:
    run: str = ""
    """Run whose embeddings are projected; may be omitted where the library has only one."""
    method: Method = "tsne"
    """Method that fits the map: tsne and umap keep neighbours, pca keeps the directions of most variance."""
    fitted_tracks: int = 5000
    """The most tracks that the map is fitted to, a random sample. Others are placed between the nearest of
    these."""
    refit: bool = False
    """Fit the map anew. By default that is done where the embeddings have doubled since, up to
    --fitted-tracks."""
    rows_per_file: int = 65_536
    """Largest number of tracks that are finished together, as one file."""

    def __post_init__(self) -> None:
        if self.fitted_tracks < 2:
            raise InvalidOption(f"fitted_tracks is {self.fitted_tracks}: must be at least 2")


def project(library: Library, config: ProjectConfig) -> Summary:
    """Compute the positions of the tracks that have none. A map that is fitted anew replaces all of them."""
    run = runs.choose(library, config.run).name
    source, output = library.table("embeddings", run), library.table("maps", run, config.method)
    made = fitted(library, source, output, config)
    with Stage(f"project {run}", library, source, output, config.rows_per_file) as stage:
        if stage.has_pending:
            import ray

            (
                stage.read()
                .map_batches(
                    _place_block,
                    fn_args=(ray.put(read_map_reference(output)), stage.tally),
                    batch_size=stage.rows_per_file,
                    batch_format="pyarrow",
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(output.path, **stage.write_options())
            )
    trust = f"trustworthiness {made['trustworthiness']:.2f}, continuity {made['continuity']:.2f}"
    stage.summary.remarks.append(f"{METHODS[config.method]} of {made['fitted_tracks']} tracks: {trust}")
    return stage.summary


def fitted(library: Library, source: Table, output: Table, config: ProjectConfig) -> dict[str, Any]:
    """What is known of the map, which is fitted where it is due. A run that was killed leaves no map.json, so
    that the next one fits anew. Raises MissingInput where there is nothing to fit it to."""
    with library.lease(output.name) as lease:
        made: dict[str, Any] | None = read_json(output.filesystem, posixpath.join(output.path, MAP))
        keys = source.sample_keys(config.fitted_tracks)
        if made and not config.refit:
            is_full = made["fitted_tracks"] >= config.fitted_tracks
            if is_full or keys.size < 2 * made["fitted_tracks"]:
                return made
        if keys.size < 2:
            raise MissingInput(f"{source.name} has {keys.size} tracks: run `songray embed` first")
        connect()
        import ray

        task = ray.remote(fit).options(num_cpus=FIT_CPUS)
        reference, made = ray.get(task.remote(source, config, keys >> REVISION_BITS))
        lease.check()
        clear(output)
        content = reference.to_bytes()
        with storage_errors(output.path):
            output.filesystem.create_dir(output.path, recursive=True)
            with output.filesystem.open_output_stream(posixpath.join(output.path, REFERENCE)) as stream:
                stream.write(content)
        made |= {"id": hashlib.sha256(content).hexdigest()[:16], "at": datetime.now(UTC).isoformat()}
        write_json(output.filesystem, posixpath.join(output.path, MAP), made)
    return made


def fit(source: Table, config: ProjectConfig, tracks: np.ndarray) -> tuple[Reference, dict[str, Any]]:
    """Worker: the map of some tracks, and what is known of it."""
    rows = source.newest_rows(tracks, ["embedding"])
    vectors = unit(matrix(rows["embedding"]))
    positions = positions_of(vectors, config.method)
    known = {**asdict(config), "fitted_tracks": len(vectors), **faithfulness(vectors, positions)._asdict()}
    numbers, clusters = rows["track_key"].to_numpy() >> REVISION_BITS, clusters_of(vectors)
    known["clusters"] = int(clusters.max()) + 1
    return Reference(numbers, vectors, positions, clusters), known


def _place_block(rows: pa.Table, reference: ray.ObjectRef, tally: ray.actor.ActorHandle) -> pa.Table:
    import ray

    placed = place_batch(rows, ray.get(reference))
    ray.get(tally.add.remote(placed.num_rows))
    return placed


def place_batch(rows: pa.Table, reference: Reference) -> pa.Table:
    """Rows of embeddings → rows of maps."""
    vectors = unit(matrix(rows["embedding"]))
    x, y = reference.place(vectors).T
    columns = {
        "track_key": rows["track_key"],
        "track_id": rows["track_id"],
        "x": pa.array(x),
        "y": pa.array(y),
        "cluster": pa.array(reference.cluster(vectors)),
    }
    return pa.table(columns)
