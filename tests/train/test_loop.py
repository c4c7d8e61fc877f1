"""The loop: same bits after a kill, same losses in two processes, stops as it should."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tap_engine.schemas.errors import ConfigError
from tap_engine.train.checkpoint import checkpoints
from tap_engine.train.data.examples import Batch
from tap_engine.train.data.loading import LoaderError
from tap_engine.train.data.stream import Stream
from tap_engine.train.loop import Interrupted, TrainingError, train
from tap_engine.train.opening import open_run
from tap_engine.train.run_log import LogConfig, RunLog
from tests.train.held_folder import held
from tests.train.small_run import arguments, command, small_config
from tests.train.small_store import make_store

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class StreamWithoutSharedMemory(Stream):
    """In a loader process, which unpickles it, no batch finds shared memory."""

    def __setstate__(self, state):
        def full(_):
            raise RuntimeError("unable to allocate shared memory: No space left on device (28)")

        self.__dict__.update(state)
        Batch.shared = full


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("loop") / "store", 11)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def assert_same_checkpoint(a, b):
    assert a.name == b.name
    for name in ("model.safetensors", "trainer.safetensors"):
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), f"{name}: {key}"
    one, other = (json.loads((p / "state.json").read_text()) for p in (a, b))
    assert one["stream"]["consumed"] == other["stream"]["consumed"]


def trained(config, folder):
    run = open_run(config, folder)
    train(run)
    return run


def test_a_run_in_two_parts_equals_a_run_in_one(store, tmp_path):
    for name, extra in (("plain", ()), ("average", ("optim.ema_decay=0.9",))):
        config = small_config(store, *extra)
        trained(config, tmp_path / name / "whole")
        part = tmp_path / name / "parts"
        run = open_run(config, part)
        # Die at step 5, two steps after a checkpoint.
        run.optimizer.register_step_post_hook(lambda *_, run=run: 1 / (run.step < 4))
        with pytest.raises(ZeroDivisionError):
            train(run)
        assert checkpoints(part)[-1].name == "step_00000003"
        again = trained(config, part)
        assert again.step == 8 and again.consumed == 16
        for a, b in zip(checkpoints(tmp_path / name / "whole"), checkpoints(part), strict=True):
            assert_same_checkpoint(a, b)
        assert losses(tmp_path / name / "whole") == losses(part)


@pytest.mark.slow
def test_kill_9_and_the_same_command_gives_the_same_bits(store, tmp_path):
    settings = ("train.steps=16", "checkpoint.every=2", "checkpoint.keep=50", "stream.workers=1")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        command(*arguments(store, killed, *settings)), env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    while len(checkpoints(killed)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(checkpoints(killed)) < 8
    again = subprocess.run(
        command(*arguments(store, killed, *settings, "stream.workers=0")),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "going on from" in again.stdout
    trained(small_config(store, *settings, "stream.workers=0"), whole)
    for a, b in zip(checkpoints(whole), checkpoints(killed), strict=True):
        assert_same_checkpoint(a, b)
    assert losses(whole) == losses(killed)


@pytest.mark.slow
def test_two_processes_train_like_one(store, tmp_path):
    # No dropout: its draws differ by process. Two passes of two images, or two processes of two.
    settings = ("model.decoder.dropout=0", "train.batch=4", "train.steps=5")
    trained(small_config(store, *settings), tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run(
        [
            *launch,
            "-m",
            "tap_engine.jobs.train_cli",
            *arguments(store, tmp_path / "two", *settings),
        ],
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=240,
    )
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4, 5]
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4), step
    ours, theirs = (
        load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("one", "two")
    )
    for key in ours:
        # Each process counts its own passes, and the first alone keeps its batch statistics.
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(theirs[key], ours[key], atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("off", ["concept", "segmentation"])
def test_two_processes_train_without_concepts_or_masks(store, tmp_path, off):
    settings = ("train.batch=4", "train.steps=3", f"loss.{off}=0", "loss.auxiliary=0")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    program = ["-m", "tap_engine.jobs.train_cli", *arguments(store, tmp_path / "two", *settings)]
    subprocess.run(
        [*launch, *program],
        env=ENVIRONMENT,
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=240,
    )
    assert list(losses(tmp_path / "two")) == [1, 2, 3]


def test_accumulated_passes_sum_to_the_loss_of_one(store, tmp_path):
    # Same images, other split into passes; batch statistics differ, so the encoder has none.
    found = {}
    for images in (1, 4):
        config = small_config(
            store,
            "train.batch=4",
            f"train.images={images}",
            "train.steps=1",
            "model.decoder.dropout=0",
        )
        run = open_run(config, tmp_path / str(images))
        run.model.image_encoder.eval()
        run.model.train = lambda *_: None
        train(run)
        found[images] = losses(tmp_path / str(images))[1]
    assert found[1] == pytest.approx(found[4], rel=1e-5)


def test_sigterm_saves_and_the_run_goes_on(store, tmp_path):
    config = small_config(store)
    run = open_run(config, tmp_path / "run")
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where an earlier test started it

    def hook(*_):
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run.optimizer.register_step_post_hook(hook)
    with pytest.raises(Interrupted) as stopped:
        train(run)
    assert stopped.value.signal == signal.SIGTERM
    assert checkpoints(tmp_path / "run")[-1].name == "step_00000005"
    assert signal.getsignal(signal.SIGTERM) is before
    trained(config, tmp_path / "run")
    trained(config, tmp_path / "whole")
    assert_same_checkpoint(checkpoints(tmp_path / "whole")[-1], checkpoints(tmp_path / "run")[-1])


LIVE = ("train.steps=500", "train.threads=1", "checkpoint.every=1000")


def until_step(process, number):
    """Read a run's output up to the line of a step."""
    for line in process.stdout:
        if line.startswith(f"step {number}/"):
            return
    raise AssertionError("the run ended before")


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGTERM, ("stream.workers=2",)),  # Slurm: every process of the job
        (signal.SIGINT, ("stream.workers=1", "stream.prefetch=1", "train.images=1")),  # a terminal
        (signal.SIGHUP, ("stream.workers=0",)),  # a terminal that is gone
    ],
    ids=["slurm", "terminal", "terminal-gone"],
)
def test_a_stop_of_the_whole_job_saves(store, tmp_path, number, settings):
    process = subprocess.Popen(
        command(*arguments(store, tmp_path / "run", *LIVE, *settings)),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        until_step(process, 2)
        os.killpg(process.pid, number)
        said, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "the same command goes on" in said
    (checkpoint,) = checkpoints(tmp_path / "run")
    steps = list(losses(tmp_path / "run"))
    assert checkpoint.name == f"step_{steps[-1]:08d}"


def test_training_goes_on_when_nobody_reads_its_output(store, tmp_path):
    process = subprocess.Popen(
        command(*arguments(store, tmp_path / "run")),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_step(process, 1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 0, errors
    assert "nobody reads the standard output any more" in errors
    assert list(losses(tmp_path / "run")) == list(range(1, 9))


def test_batches_that_cannot_be_handed_over_are_an_error(store, tmp_path):
    """A loader without shared memory, as in a container with a small /dev/shm."""
    config = small_config(store, "stream.workers=1")
    run = open_run(config, tmp_path / "run")
    run.stream.__class__ = StreamWithoutSharedMemory
    with pytest.raises(LoaderError, match=r"No space left.*/dev/shm.*stream.workers=0"):
        train(run)
    assert run.step == 0


def test_a_step_that_lacks_a_batch_is_not_counted(store, tmp_path):
    run = open_run(small_config(store, "train.images=1"), tmp_path / "run")
    batches = list(run.batches())
    run.stream.batches = lambda *_, **__: iter(batches[:5])  # two batches a step
    with pytest.raises(TrainingError, match="step 3 lacks 1 of its batches"):
        train(run)
    assert run.step == 2 and run.consumed == 4


def test_a_folder_has_one_run(store, tmp_path):
    """Another process holds it; kill -9 leaves nothing behind."""
    folder = tmp_path / "run"
    with held(folder) as pid, pytest.raises(ConfigError, match=f"in use by process {pid} on"):
        open_run(small_config(store), folder)
    trained(small_config(store), folder)


def test_a_loss_that_is_not_finite_stops_with_the_images_named(store, tmp_path):
    run = open_run(small_config(store), tmp_path / "run")
    with torch.no_grad():
        run.model.image_decoder.sem_pred.layers[0].weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="images of the step are in"):
        train(run)
    assert checkpoints(tmp_path / "run") == []
    (file,) = (tmp_path / "run").glob("not_finite_step_*.json")
    content = json.loads(file.read_text())
    assert content["step"] == 0 and len(content["image_ids"]) == 2
    assert all(len(keys) > 0 for keys in content["keys"])


def test_training_goes_on_in_training_mode_after_a_measurement(store, tmp_path):
    run = open_run(small_config(store, f"held_out.store={store}"), tmp_path / "run")
    assert run.objective.training and run.model.image_decoder.training
    with run.in_use():
        assert not run.model.image_decoder.training
    assert run.objective.training and run.model.image_decoder.training
    assert not run.model.text_decoder.training  # frozen: it stays as it is used


def test_too_many_unreadable_images_stop_the_run(tmp_path):
    # Every JPEG of this store is cut in half.
    cut = make_store(tmp_path / "cut", 4, pixels=False, jpegs=(b"\xff\xd8 no image",))
    few = ("stream.max_problems=3", "train.steps=4", "log.every=1")
    with pytest.raises(TrainingError, match=r"4 images could not be read.*max_problems=3"):
        trained(small_config(cut, *few), tmp_path / "few")
    enough = ("stream.max_problems=8", "train.steps=4", "log.every=1")
    assert trained(small_config(cut, *enough), tmp_path / "enough").step == 4


def test_lines_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path):
    def log(step):
        return RunLog(tmp_path, LogConfig(tensorboard=False), step=step, steps=9, active=True)

    figures = {"loss": 1.0, "images": 2.0, "wait_s": 0.0, "rate": 0.1}
    first = log(0)
    for step in range(1, 6):
        first.report(step, figures, seconds=1.0, steps=1)
    first.close()
    again = log(3)  # the checkpoint was of step 3
    again.report(4, figures, seconds=1.0, steps=1)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_what_is_frozen_stays_and_the_rest_moves(store, tmp_path):
    settings = ("optim.rate_factors=text_decoder:0,image_encoder:0,image_encoder.lateral:1",)
    run = open_run(small_config(store, *settings), tmp_path / "run")
    before = {k: v.clone() for k, v in run.model.named_parameters()}
    train(run)
    for name, value in run.model.named_parameters():
        if "mask_pred" in name:  # a candidate that was never chosen has no gradient
            continue
        frozen = name.startswith(("text_decoder", "image_encoder")) and "lateral" not in name
        assert torch.equal(value, before[name]) == frozen, name


@pytest.mark.parametrize("precision", ["bf16"])
def test_lower_precision_trains(store, tmp_path, precision):
    run = trained(small_config(store, f"train.precision={precision}"), tmp_path / "run")
    assert all(p.dtype == torch.float32 for p in run.parameters())
    assert all(loss < 100 for loss in losses(tmp_path / "run").values())


@pytest.mark.parametrize("kind", ["reverse_kl", "top_k", "feature"])
def test_every_concept_loss_trains(store, tmp_path, kind):
    run = trained(
        small_config(store, f"loss.concept_loss={kind}", "train.steps=2"), tmp_path / "run"
    )
    assert run.step == 2


def test_reports_and_folder_of_a_run(store, tmp_path, capsys):
    settings = ("log.pictures_every=4", "log.tensorboard=true", "log.every=4", "train.batch=4")
    trained(small_config(store, *settings, "optim.rate_batch=2"), tmp_path / "run")
    text = capsys.readouterr().out
    assert "1.50e-03 is meant for 2 images per step, here 4; optim.scaling=linear" in text
    assert "peak rate 3.00e-03" in text
    for word in ("step 8/8", "loss", "images/s", "wait", "GB", "ETA", "iou_box"):
        assert word in text
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["train"]["batch"] == 4
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["stores"][0]["images"] == 11 and "torch" in manifest["software"]
    assert len(list((run / "pictures").glob("*.png"))) == 2
    assert list((run / "tensorboard").iterdir())
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 8 and 0 <= line["wait_share"] < 1 and line["images_per_s"] > 0
