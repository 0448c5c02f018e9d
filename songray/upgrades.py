"""Rows that earlier versions of songray wrote, in the current format."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

from songray.keys import COMPLETENESS_MASK, clear_completeness, hash64

UPGRADED = {"id_hash", "completeness", "checksum", "audio_checksum"}


def upgrade_tracks(rows: pa.Table) -> pa.Table:
    """Rows of `tracks` with `track_id` and the columns UPGRADED, in the current format.

    Earlier versions kept the completeness in the lower 5 bits of `checksum` and a hash of the id in the upper
    half of `audio_checksum`, without columns of their own.
    """
    is_old = rows["id_hash"].is_null().to_numpy()
    if not is_old.any():
        return rows
    checksum = pa.compute.fill_null(rows["checksum"], 0).to_numpy()
    hashes = [hash64("id", name) for name in rows["track_id"].to_pylist()]
    audio_checksum = pa.compute.fill_null(rows["audio_checksum"], 0).to_numpy() & 0xFFFFFFFF
    completeness = pa.compute.fill_null(rows["completeness"], 0).to_numpy()
    upgraded = {
        "id_hash": pa.array(hashes, pa.int64()),
        "completeness": pa.array(np.where(is_old, checksum & COMPLETENESS_MASK, completeness), pa.int32()),
        "checksum": pa.array(clear_completeness(checksum)),
        "audio_checksum": pa.array(audio_checksum),
    }
    for name, column in upgraded.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows
