"""Source and store on S3, served by moto on loopback."""

import logging

import boto3
import lance
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from tap_engine.schemas.tables import IMAGES, REGIONS, table_uri
from tests.e2e.support import tap_data
from tests.scenes import scene_members, write_shard

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def s3():
    """Environment of an S3 endpoint with one bucket, and its client."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    env = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="bucket")
    yield env, client
    server.stop()


def test_a_build_from_s3_to_s3_equals_a_local_one(s3, tmp_path, tiny_clip, few_concepts) -> None:
    env, client = s3
    shard = write_shard(tmp_path / "sa_000000.tar", range(1, 6))
    client.upload_file(str(shard), "bucket", "shards/sa_000000.tar")
    for name, content in scene_members([8, 9]).items():
        client.put_object(Bucket="bucket", Key=f"shards/{name}", Body=content)
        (tmp_path / name).write_bytes(content)
    common = ("--teacher", tiny_clip, "--vocabulary", few_concepts, "--concepts", "top:3")
    build = ("build-semantic", "s3://bucket/shards", "--out", "s3://bucket/store", *common)
    first = tap_data(*build, "--limit", 4, **env)
    assert "built 4 images and 20 regions" in first.stdout
    second = tap_data(*build, **env)
    assert "built 3 images and 15 regions" in second.stdout
    assert "21 checks passed, 0 failed" in tap_data("verify", "s3://bucket/store", **env).stdout
    tap_data("build-semantic", tmp_path, "--out", tmp_path / "store", *common)
    options = {key.lower(): value for key, value in env.items()} | {
        "aws_endpoint": env["AWS_ENDPOINT_URL"]
    }
    for table, key in ((IMAGES, "image_id"), (REGIONS, "key")):
        local = lance.dataset(table_uri(str(tmp_path / "store"), table))
        remote = lance.dataset(table_uri("s3://bucket/store", table), storage_options=options)
        columns = [name for name in local.schema.names if name not in ("unit", "jpeg", "embedding")]
        left, right = (d.to_table(columns=columns).sort_by(key) for d in (local, remote))
        assert left.drop_columns([c for c in columns if c.startswith("concept_")]) == (
            right.drop_columns([c for c in columns if c.startswith("concept_")])
        )
        if table == REGIONS:
            vectors = [
                np.stack(
                    d.to_table(columns=["key", "embedding"]).sort_by("key")["embedding"].to_pylist()
                )
                for d in (local, remote)
            ]
            np.testing.assert_allclose(*(v.astype(np.float32) for v in vectors), atol=1e-3)


def test_a_missing_prefix_is_named(s3, tmp_path, tiny_clip) -> None:
    env, _ = s3
    done = tap_data(
        *("build-semantic", "s3://bucket/nothing", "--out", tmp_path / "s", "--teacher", tiny_clip),
        code=1,
        **env,
    )
    assert "SourceError: s3://bucket/nothing" in done.stderr
