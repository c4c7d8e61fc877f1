"""Streaming from an object store: moto's S3 on loopback, through storage options."""

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tap_engine.train.data.stream import Share
from tests.train.data.test_stream import same, settings, stream_of, take
from tests.train.small_store import make_store


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_an_object_store_streams_the_same_batches(endpoint, tmp_path, monkeypatch):
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="lake")
    store = make_store(tmp_path / "store", 10)
    for file in store.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "lake", f"sets/store/{file.relative_to(store)}")
    options = (f"aws_endpoint={endpoint}", "allow_http=true", "aws_region=us-east-1")
    remote = stream_of(["s3://lake/sets/store"], settings(), storage_options=options)
    local = stream_of([store], settings())
    for a, b in zip(take(remote, Share(images=4), 4), take(local, Share(images=4), 4), strict=True):
        assert same(a, b)
