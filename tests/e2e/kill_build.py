"""Kill a build at random moments until it is done; used by a test and, at length, by hand.

python -m tests.e2e.kill_build --kills 40 --images 60 --seed 1
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import lance
import psutil

from tap_engine.schemas.tables import CONCEPTS, IMAGES, REGIONS, REJECTS, table_uri
from tests.scenes import write_shard, write_tiny_clip

TARGETS = ("driver", "actor", "worker")


def build_command(shards: Path, store: Path, teacher: Path, vocabulary: Path) -> list[str]:
    return [
        *(sys.executable, "-c", "from tap_engine.jobs.data_cli import main; main()"),
        *("build-semantic", str(shards), "--out", str(store), "--teacher", str(teacher)),
        *("--vocabulary", str(vocabulary), "--concepts", "top:3", "--unit-images", "2"),
        *("--commit-seconds", "0.5", "--cpus", "2", "--max-reject-share", "1"),
    ]


def victims(driver: psutil.Process, target: str) -> list[psutil.Process]:
    """Processes of one build by their role."""
    if target == "driver":
        return [driver]
    found = []
    for process in driver.children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and ("_UnitActor" in title) == (target == "actor"):
            found.append(process)
    return found


def run_disturbed(command: list[str], kills: int, rng: random.Random, log: Path) -> Counter[str]:
    """Run `command`, killing a random process of it until `kills` have landed; then let it end."""
    done: Counter[str] = Counter()
    while True:
        with log.open("ab") as stream:
            driver = subprocess.Popen(command, stdout=stream, stderr=stream)
        process = psutil.Process(driver.pid)
        while driver.poll() is None and sum(done.values()) < kills:
            time.sleep(rng.uniform(0.2, 4.0))
            try:
                # Mostly while units are being built; now and then in start-up, too.
                if not victims(process, "actor") and rng.random() > 0.05:
                    continue
                target = rng.choice(TARGETS)
                choice = victims(process, target)
                if choice and driver.poll() is None:
                    rng.choice(choice).kill()
                    done[target] += 1
            except psutil.Error:
                continue
        try:
            code = driver.wait(timeout=240)
        except subprocess.TimeoutExpired:
            driver.kill()
            raise AssertionError(f"the build hung; its log:\n{log.read_text()[-3000:]}") from None
        if code == 0:
            return done
        if code != -9:
            # A part of Ray itself that was hit may end the driver: the same command goes on.
            print(f"ended itself: {log.read_text(errors='replace').splitlines()[-1]}", flush=True)
            done[f"driver ended itself with {code}"] += 1
        if sum(done.values()) > 3 * kills:
            raise AssertionError(f"no end in sight: {done}\n{log.read_text()[-3000:]}")


def same_rows(a: Path, b: Path) -> None:
    """Every row of every table of two stores, bit for bit."""
    for table, key in ((IMAGES, "image_id"), (REGIONS, "key"), (CONCEPTS, "concept_id")):
        left, right = (lance.dataset(table_uri(str(store), table)) for store in (a, b))
        columns = [name for name in left.schema.names if name != "jpeg"]
        tables = [d.to_table(columns=columns).sort_by(key) for d in (left, right)]
        assert tables[0] == tables[1], f"{table} differs"
    reasons = [
        sorted(map(str, lance.dataset(table_uri(str(store), REJECTS)).to_table().to_pylist()))
        for store in (a, b)
    ]
    assert reasons[0] == reasons[1], "rejects differ"


def main(kills: int, images: int, seed: int, folder: Path) -> None:
    from tap_engine.pipeline.store import Store
    from tap_engine.pipeline.verify import verify

    shards = folder / "shards"
    shards.mkdir()
    half = images // 2
    write_shard(shards / "sa_000000.tar", range(1, half + 1))
    write_shard(shards / "sa_000001.tar", range(half + 1, images + 1))
    (shards / "sa_7.json").write_text("{}")  # something for `rejects`
    vocabulary = folder / "six.txt"
    vocabulary.write_text("person\ndog\ncat\ntree\ncar\nsky\n")
    teacher = write_tiny_clip(folder / "teacher")
    quiet, disturbed = folder / "quiet", folder / "disturbed"
    start = time.monotonic()
    command = build_command(shards, quiet, teacher, vocabulary)
    subprocess.run(command, check=True, capture_output=True)
    undisturbed_s = time.monotonic() - start
    start = time.monotonic()
    done = run_disturbed(
        build_command(shards, disturbed, teacher, vocabulary),
        kills,
        random.Random(seed),
        folder / "log",
    )
    report = verify(Store(str(disturbed)))
    assert report.ok, report.problems
    same_rows(quiet, disturbed)
    print(
        f"{sum(done.values())} kills ({dict(done)}), {images} images in {images // 2} units: "
        f"{len(report.checks)} checks passed, rows identical to the undisturbed build "
        f"({undisturbed_s:.0f} s; disturbed {time.monotonic() - start:.0f} s)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(chosen.kills, chosen.images, chosen.seed, Path(place))
