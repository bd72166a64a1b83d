"""An S3-compatible server of a test (moto's), with the bucket `models`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address; the credentials stand in the environment meanwhile."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    patch = pytest.MonkeyPatch()
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    address = f"http://{host}:{port}"
    from pyarrow import fs

    admin = fs.S3FileSystem(
        endpoint_override=address, region="us-east-1", allow_bucket_creation=True
    )
    admin.create_dir("models")
    yield address
    moto.stop()
    patch.undo()
