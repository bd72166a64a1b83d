"""Tracking: the small interface that the driver calls, and MLflow behind it (the only module that imports it).

    driver -> MlflowTracker -> spool.jsonl -> SendingThread -> LineSender -> MlflowSink -> server

The driver's calls end when their line is on disk. Everything to the right of the spool may be slow, refuse,
or be away; the run folder has the truth either way.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.metric_names import clean_tags, flatten_params
from orchestrator.report import write_report
from orchestrator.run_folder import RoundFolder, RunFolder
from orchestrator.tracking_mlflow import MlflowSink
from orchestrator.tracking_push import LineSender, SendingThread, TrackingSink, Warn
from orchestrator.tracking_spool import (
    ArtifactLine,
    EndStatus,
    FinishLine,
    RoundLine,
    SendLock,
    Spool,
    StartLine,
    StepsLine,
    TrackedRun,
)
from orchestrator.tracking_uri import absolute_uri, redact
from policies.errors import PolicyStoreError, TrackingError
from policies.records import PolicyVersion, RoundResult
from policies.store import PolicyStore
