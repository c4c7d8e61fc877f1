"""The driver of a build: plans, runs units on Ray, commits, indexes. Only this file knows Ray.

Data flows one way: units -> Ray Data -> one actor per teacher (unit_builder.py) -> small results
-> ledger. Rows go from the actors straight to files; the driver sees counts and file names only.
"""

import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions

from tap_engine.pipeline.config import BuildConfig
from tap_engine.pipeline.key_index import index_keys
from tap_engine.pipeline.layout import WorkerLayout, choose_layout
from tap_engine.pipeline.ledger import Ledger, UnitResult, done_images, stored_images
from tap_engine.pipeline.open_store import describe_teacher, open_store
from tap_engine.pipeline.planning import Plan, make_plan
from tap_engine.pipeline.sources.index_cache import INDEX_FOLDER
from tap_engine.pipeline.sources.records import Source, Unit
from tap_engine.pipeline.store import STORAGE_WAITS_S, Store
from tap_engine.pipeline.summary import BuildSummary
from tap_engine.pipeline.unit_builder import open_builder
from tap_engine.schemas.errors import ConfigError, SourceError, StoreError, TapError
from tap_engine.schemas.progress import Progress, Say
from tap_engine.schemas.store_settings import TeacherInfo

_HOPELESS = 16
"""Units that may fail before the first that succeeds: then it is not the units."""


def build(source: Source, config: BuildConfig, *, say: Say = print) -> BuildSummary:
    """Build, or continue, a store from a source. Ray must be initialised.

    Raises:
        ConfigError: settings that cannot work, or weights that are not here.
        SchemaError: the store was built with other settings.
        SourceError: nothing to build from.
        StoreError: another driver is at work, or the store cannot be written.
    """
    start = time.monotonic()
    if not config.out:
        raise ConfigError("these settings name no store; set `out` to its path or URI")
    store = Store(config.out, dict(config.storage_options))
    source.prepare(f"{store.uri}/{INDEX_FOLDER}", say)
    shards = source.shards()
    if not shards:
        raise SourceError("no shards found")
    layout = choose_layout(config, ray.cluster_resources())  # type: ignore[no-untyped-call]
    say(layout.describe())
    open_store(source, store, config, lambda: _describe_teacher(config, layout, say), say)
    with Ledger(store, take_over=config.take_over) as ledger:
        if ledger.removed_rows:
            say(f"removed {ledger.removed_rows:,} rows that an interrupted run left unfinished")
        plan = make_plan(
            source,
            shards,
            unit_images=layout.unit_images,
            limit=config.limit,
            done_images=done_images(ledger.store),
            stored=stored_images(ledger.store),
            on_shard=_say_indexing(say),
        )
        repeated = ""
        if plan.duplicate_images:
            repeated = f"; {plan.duplicate_images:,} repeated images skipped"
        say(
            f"{plan.total_images:,} images in {plan.shards} shards, "
            f"{plan.built_images:,} built before, {len(plan.units):,} units to do{repeated}"
        )
        summary = BuildSummary(built_before=plan.built_images, total_images=plan.total_images)
        summary.add_rejects(ledger.commit_index(plan.rejects, plan.found_images))
        _run(source, store, config, layout, plan, ledger, summary)
        index_keys(ledger.store)
    summary.seconds = time.monotonic() - start
    return summary


def _describe_teacher(
    config: BuildConfig, layout: WorkerLayout, say: Say
) -> tuple[TeacherInfo, pa.Table]:
    """What the teacher is and the `concepts` table it makes, found out in a Ray worker."""
    describe = ray.remote(describe_teacher).options(num_cpus=1, num_gpus=layout.gpus)
    with _own_errors():
        return ray.get(describe.remote(config))


def _run(
    source: Source,
    store: Store,
    config: BuildConfig,
    layout: WorkerLayout,
    plan: Plan,
    ledger: Ledger,
    summary: BuildSummary,
) -> None:
    if not plan.units:
        return
    progress = Progress(total=plan.total_images, done=plan.built_images, unit="images")
    start = time.monotonic()
    before = summary.rejected_images
    places = {u.unit_id: f"{u.shard} from {u.file_names[0]!r} on" for u in plan.units}
    pending: list[UnitResult] = []
    committed = start

    def commit() -> None:
        nonlocal committed
        ledger.commit(pending)
        for result in pending:
            summary.add(result)
        pending.clear()
        committed = time.monotonic()

    def show(force: bool = False) -> None:
        rate = (summary.regions + sum(r.regions for r in pending)) / (time.monotonic() - start)
        rejects = sum(summary.rejects.values())
        done = plan.built_images + summary.images + summary.rejected_images - before
        text = f"{summary.units:,}/{len(plan.units):,} units, {rate:,.0f} regions/s"
        if waiting := sum(result.images for result in pending):
            text += f", {waiting:,} images wait for the next commit"
        text += f", {rejects:,} rejects"
        progress.update(min(done, plan.total_images), text, force=force)

    try:
        for result in run_units(source, store, config, layout, plan.units):
            if result.failure:
                summary.failed.append(f"{places[result.unit_id]}: {result.failure}")
                if len(summary.failed) >= _HOPELESS and not summary.units and not pending:
                    raise SourceError(
                        f"the first {len(summary.failed)} units failed, none succeeded; the last: "
                        f"{summary.failed[-1]}"
                    )
            else:
                pending.append(result)
            if time.monotonic() - committed >= config.workers.commit_s:
                commit()
            show()
        commit()
        show(force=True)
    finally:
        progress.close()


def run_units(
    source: Source, store: Store, config: BuildConfig, layout: WorkerLayout, units: Sequence[Unit]
) -> Iterator[UnitResult]:
    """Results of units as they finish, in no particular order."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = ExecutionOptions(verbose_progress=False)
    # A unit of a large teacher takes minutes; a build that waits is not one that hangs.
    context.execution_no_progress_timeout_s = -1
    # A worker may be killed while it loads its teacher, as at any other moment.
    context.max_consecutive_actor_init_deaths = config.workers.retries
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Units and results are pickled here: Ray would do it too, and log that they are not for Arrow.
    # One block per unit, so that units, not groups of them, are what is handed out and retried.
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _UnitActor,  # type: ignore[arg-type]
        fn_constructor_args=(source, store, config, layout.cpus, _Attempts.remote()),  # type: ignore[attr-defined]
        compute=ActorPoolStrategy(size=min(layout.actors, len(units))),
        num_cpus=layout.cpus,
        num_gpus=layout.gpus or None,
    )
    with _own_errors():
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Attempts:
    """Counts how often each unit was begun, in an actor of its own: a unit may crash its worker.

    If the actor's node dies, Ray restarts it elsewhere with zero counts, and callers wait for that.
    """

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, unit_id: int) -> int:
        self._begun[unit_id] += 1
        return self._begun[unit_id]


class _UnitActor:
    """A UnitBuilder in a Ray worker: loads the teacher once, proves that it is the store's.

    Ray gives the unit of a dead worker to another one, without end; one that kills its workers
    again and again is reported instead. A storage error is waited out a few times.
    """

    def __init__(
        self, source: Source, store: Store, config: BuildConfig, cpus: int, attempts: Any
    ) -> None:
        # An error that the user must mend is told with the first unit: Ray would start a worker
        # that fails to start again and again.
        self._error: TapError | None = None
        try:
            self._builder = open_builder(store, source, config, cpus)
        except TapError as error:
            self._error = error
        self._attempts = attempts
        self._retries = config.workers.retries
        self._store_uri = store.uri

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        unit: Unit = pickle.loads(row["unit"])
        begun = ray.get(self._attempts.begin.remote(unit.unit_id))
        if begun > self._retries + 1:
            failure = f"its worker died {begun - 1} times"
            return {"result": pickle.dumps(UnitResult(unit.unit_id, failure=failure))}
        for wait_s in (*STORAGE_WAITS_S, None):
            try:
                return {"result": pickle.dumps(self._builder(unit))}
            except SourceError as error:
                failure = str(error)
                return {"result": pickle.dumps(UnitResult(unit.unit_id, failure=failure))}
            except OSError as error:  # the source; the store's are StoreErrors
                if wait_s is None:
                    failure = f"{unit.shard} cannot be read: {error}"
                    return {"result": pickle.dumps(UnitResult(unit.unit_id, failure=failure))}
                time.sleep(wait_s)
            except StoreError:
                if wait_s is None or "://" not in self._store_uri:
                    raise
                time.sleep(wait_s)
        raise AssertionError("unreachable")


@contextmanager
def _own_errors() -> Iterator[None]:
    """A TapError that a worker raised reaches the user as itself, not wrapped by Ray."""
    try:
        yield
    except TapError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, TapError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise cause from None


def _say_indexing(say: Say) -> Callable[[int, int], None]:
    """Reports the indexing: a thousand shards on an object store take some minutes."""
    progress = Progress(total=0, unit="shards indexed", say=say)

    def on_shard(done: int, total: int) -> None:
        progress.total = total
        progress.update(done)

    return on_shard
