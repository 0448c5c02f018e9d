"""What is compared where the key indexes have several ranges, and the version several shards."""

from __future__ import annotations

import numpy as np
import pytest
from constructed import RUN, add_run, add_tracks, units

from songray import key_index
from songray.keys import KeySet, track_key
from songray.library import Library
from songray.search.build import IndexConfig, index
from songray.search.changes import compare
from songray.search.target import lowest_tracks
from songray.search.version import delete, live_tracks, newest_version


def test_changes_are_what_is_missing_and_what_is_obsolete(
    library: Library, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since a version was written, some tracks were deleted from it, some have changed, some are new, and of
    some the vectors are gone."""
    monkeypatch.setattr(key_index, "RANGE_ROWS", 16)
    add_run(library)
    for first in (0, 20, 40):
        add_tracks(library, units(20), first=first)
    version = index(library, IndexConfig(shard_tracks=25, links=8)).version
    with compare(library, version) as changes:
        assert (changes.tracks, changes.missing) == (60, 0) and not any(map(len, changes.obsolete))
    deleted = KeySet(np.sort([track_key(f"a:{number}", 0) >> 8 for number in (3, 33)]))
    with library.lease(f"indexes/{RUN}") as lease:
        delete(library, RUN, deleted, lease)
    embeddings = library.table("embeddings", RUN)
    embeddings.delete([file for file in embeddings.files() if "/20-" in file])
    add_tracks(library, units(5, seed=1), first=0, revision=1)
    add_tracks(library, units(7, seed=2), first=60)
    every = lowest_tracks(library, RUN, 1000).rows
    version = newest_version(library, RUN)
    assert version is not None
    indexed = [live_tracks(library, RUN, entry) for entry in version.shards]
    with compare(library, version) as changes:
        missing = np.concatenate(list(changes.missing_tracks))
    assert changes.tracks == len(every) == 47
    assert changes.missing == len(missing) == 5 + 7
    keys = np.concatenate([live["key"] for live in indexed])
    assert np.array_equal(missing, every[~np.isin(every["key"], keys)])
    expected = [live["label"][~np.isin(live["key"], every["key"])].tolist() for live in indexed]
    assert [labels.tolist() for labels in changes.obsolete] == expected
    assert sum(map(len, expected)) == 4 + 19  # of a:3 and of a:33 no more than of others
