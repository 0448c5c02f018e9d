"""A Ray to run on: the cluster that RAY_ADDRESS names, or one that this process starts for itself."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping

LOCAL_LOGICAL_CPUS = 4  # with fewer, pipelines of several actor pools wait for each other for ever

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_maximum_startup_concurrency": "8",  # on a few cores, Ray warns of a usual number of workers
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints each line of a worker twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # each check takes one epoch's report; the default is 2 s
}


def connect(environment: Mapping[str, str] | None = None) -> None:
    """Join the cluster that RAY_ADDRESS names, or start a local Ray; do nothing where Ray is connected.

    `environment` holds variables that Ray reads when it starts, beside ENVIRONMENT; variables that are set
    already keep their values.
    """
    import ray  # in this function: a job that has nothing to do never loads it

    if ray.is_initialized():
        return
    for name, value in {**ENVIRONMENT, **(environment or {})}.items():
        os.environ.setdefault(name, value)
    quiet = ray.LoggingConfig(log_level="ERROR")
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, logging_level=logging.WARNING, logging_config=quiet)
    else:
        cpus = max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1)
        ray.init(
            "local", num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR, logging_config=quiet
        )
    configure_ray_data()


def configure_ray_data() -> None:
    """Have Ray Data raise a worker's own errors, and leave the report of progress to the stages."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.raise_original_map_exception = True  # its own UserCodeException loses the cause
    context.print_on_execution_start = False
    context.enable_progress_bars = False  # stages report their progress in tracks
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")  # there may be few rows
