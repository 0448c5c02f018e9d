"""Reads previews, writes spectrograms: one decoding a track, one column a spec."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from songray.audio.excerpt import Excerpt
from songray.audio.extract import Extraction, extract_batches
from songray.audio.sets import DEFAULT, excerpt_of, specs_of
from songray.audio.spectrograms import SPECS
from songray.errors import InvalidOption
from songray.library import Library
from songray.stages import Stage
from songray.summary import Summary

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class TransformConfig:
    set: str = DEFAULT
    """Name of the set of spectrograms."""
    specs: tuple[str, ...] = ()
    """Spectrograms to compute of each track, from one decoding: mel128, linear257, mel128-8k, mel96,
    mfcc20-8k, chroma12, mel96-16k. By default those that the set has; for a new set mel128 and mel96-16k."""
    excerpt_seconds: float | None = None
    """The longest excerpt of a track that is decoded, in seconds. By default that of the set; for a new set
    that of the set default, and else 30."""
    excerpt_at: str | None = None
    """Position of the excerpt: middle, start, or spread:n for n pieces that are joined. By default that of
    the set; for a new set that of the set default, and else spread:5."""
    seconds_per_track: float = Extraction.seconds_per_track
    """Time limit for decoding one track, in seconds; its process is ended beyond it."""
    rows_per_file: int = 256
    """The most tracks of one file, which are finished together; fewer where few are pending."""
    max_failed_share: float = 0.5
    """Exit with an error where more than this share of the tracks of a run fails."""

    def __post_init__(self) -> None:
        if not set(self.specs) <= set(SPECS):
            raise InvalidOption(f"--specs {' '.join(self.specs)}: choose from {', '.join(SPECS)}")
        if self.seconds_per_track <= 0:
            raise InvalidOption(f"seconds_per_track is {self.seconds_per_track}: must be above 0")
        if self.rows_per_file < 1:
            raise InvalidOption(f"rows_per_file is {self.rows_per_file}: must be at least 1")
        self.within(Excerpt())  # validates both of its options

    def within(self, excerpt: Excerpt) -> Excerpt:
        """An excerpt, with what these options say about it in place of its own."""
        seconds = excerpt.seconds if self.excerpt_seconds is None else self.excerpt_seconds
        return Excerpt(seconds, excerpt.at if self.excerpt_at is None else self.excerpt_at)


def transform(library: Library, config: TransformConfig) -> Summary:
    """Compute the spectrograms of the previews that have none yet."""
    previews, spectrograms = library.table("previews"), library.table("spectrograms", config.set)
    extraction = Extraction(
        specs=config.specs or specs_of(library, config.set),
        excerpt=config.within(excerpt_of(library, config.set)),
        seconds_per_track=config.seconds_per_track,
    )
    specs = {name: SPECS[name].settings for name in extraction.specs}
    spectrograms.claim({"specs": specs, "excerpt": asdict(extraction.excerpt)})
    with Stage("transform", library, previews, spectrograms, config.rows_per_file) as stage:
        if stage.has_pending:
            (
                stage.read()
                # Ray Data fuses these two steps in this order, and slices what was read without a copy.
                .map_batches(
                    transform_block,
                    fn_args=(extraction, stage.tally),
                    batch_size=stage.rows_per_file,
                    batch_format="pyarrow",
                )
                .repartition(target_num_rows_per_block=stage.rows_per_file, strict=True)
                .write_parquet(spectrograms.path, **stage.write_options())
            )
    stage.summary.check(config.max_failed_share)
    return stage.summary


def transform_block(previews: pa.Table, extraction: Extraction, tally: ray.actor.ActorHandle) -> pa.Table:
    """Rows of previews → rows of spectrograms, in batches that are reported to the tally."""
    import ray

    tables = []
    for rows, retryable in extract_batches(previews, extraction, tally):
        ray.get(tally.add.remote(rows.num_rows, retryable))  # counted before the stage ends
        tables.append(rows)
    return pa.concat_tables(tables)
