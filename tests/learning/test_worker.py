"""What a training worker decides between epochs."""

from __future__ import annotations

from dataclasses import replace

from small_models import small

from songray.learning.models.build import build
from songray.learning.worker import Job, stop_reason
from songray.library import Library


def test_training_stops_without_improvement_or_at_its_limit_of_seconds(library: Library) -> None:
    job = Job(library, "r", "cae", small("cae"), {})
    model = build(small("cae"))
    curve = [
        {"epoch": n + 1, "validation_loss": loss, "seconds": 10.0 * n} for n, loss in enumerate([3, 2, 4, 5])
    ]
    assert not stop_reason(job, model, curve)
    assert not stop_reason(replace(job, patience=2), model, curve[:3])
    assert stop_reason(replace(job, patience=2), model, curve) == "no improvement for 2 epochs"
    assert not stop_reason(replace(job, max_seconds=31), model, curve)
    assert stop_reason(replace(job, max_seconds=30), model, curve) == "stopped after 30 s"
    assert not stop_reason(replace(job, patience=1, max_seconds=1), model, [])
