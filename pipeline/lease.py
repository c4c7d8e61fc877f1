"""The lease of a store: the right of one driver to commit to it.

Lance's Append does not compare versions, so two drivers would duplicate rows. One driver at a time
holds a lease in the config of the small `concepts` table: `update_config` with a stale version is
refused, which makes it a compare-and-swap.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.tables import CONCEPTS

_LOG = logging.getLogger(__name__)

LEASE_KEY = "tap.driver"

LEASE_S = 600.0
"""How long a driver that went silent on another machine keeps others out."""

_CLOCKS_DIFFER_S = 3600.0
"""Two machines' clocks are assumed to differ by less. A lease that another machine let expire by
less than this is watched for a renewal before it counts as given up."""


class Lease:
    """Who may commit: renewed by a thread, required before every commit."""

    def __init__(self, store: Store, take_over: bool) -> None:
        self._store = store
        self._take_over = take_over
        self._id = uuid.uuid4().hex
        self.alone = True
        """No earlier driver can be alive: it gave its lease back, or was seen to be gone."""
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)

    def take(self) -> None:
        """Hold the lease from now on; a thread renews it.

        Raises:
            StoreError: another driver holds it.
        """
        holder = self._holder()
        self.alone = holder is None or _is_gone(holder)
        if holder and not (self.alone or self._take_over or self._is_silent(holder)):
            until = time.strftime("%H:%M:%S", time.localtime(holder["expires"]))
            raise StoreError(
                f"{self._store.uri} is being built by process {holder['pid']} on "
                f"{holder['host']} (lease until {until}); two builds would write rows twice. "
                "Wait, or add --take-over if you know that it is gone"
            )
        self._write(holder)
        self._renewer.start()

    def require(self) -> None:
        """Raise unless the lease is still ours.

        One that expired while nobody wanted it (a machine that slept) is renewed.
        """
        holder = self._holder() or {}
        if holder.get("id") != self._id:
            raise StoreError(
                f"the lease on {self._store.uri} was lost to {holder.get('host', 'nobody')} "
                f"(process {holder.get('pid')}); stopped before committing anything more"
            )
        if holder["expires"] < time.time():
            self._write(holder)

    def release(self) -> None:
        """Give the lease back, if it is still ours. Storage that fails here is only reported."""
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()
        try:
            if (self._holder() or {}).get("id") == self._id:
                dataset = self._store.open(CONCEPTS)
                self._store.patiently(lambda: dataset.delete_config_keys([LEASE_KEY]))
                # Each renewal was a version of this small table.
                dataset.cleanup_old_versions(older_than=timedelta(hours=1))
        except (OSError, StoreError) as error:
            _LOG.warning(
                "the lease on %s could not be given back (%.200s); another machine has to wait "
                "until it ends, in %d s",
                self._store.uri,
                error,
                LEASE_S,
            )

    def _holder(self) -> dict[str, Any] | None:
        held = self._store.open(CONCEPTS).config().get(LEASE_KEY)
        return json.loads(held) if held else None

    def _write(self, before: dict[str, Any] | None) -> None:
        """Put our own text in place of `before`; refused by Lance if somebody else was faster."""

        def swap() -> None:
            dataset = self._store.open(CONCEPTS)
            held = dataset.config().get(LEASE_KEY)
            found = json.loads(held) if held else None
            if (found or {}).get("id") == self._id and found != before:
                return  # our own swap, whose answer was lost on the way
            if found != before:
                raise StoreError(f"another build of {self._store.uri} started just now")
            dataset.update_config({LEASE_KEY: self._text()})

        try:
            self._store.patiently(swap)
        except StoreError:
            found = self._holder() or {}
            if found.get("id") == self._id:
                return
            if found != (before or {}):
                raise StoreError(f"another build of {self._store.uri} started just now") from None
            raise

    def _is_silent(self, holder: dict[str, Any]) -> bool:
        """Tells whether a lease has ended, by watching it if the clocks may differ."""
        late = time.time() - holder["expires"]
        if late < 0:
            return False
        if late > _CLOCKS_DIFFER_S or _same_machine(holder):
            return True
        _LOG.warning(
            "the lease of process %s on %s has ended by this machine's clock; waiting %d s for a "
            "sign of life",
            holder["pid"],
            holder["host"],
            LEASE_S / 3,
        )
        end = time.monotonic() + LEASE_S / 3
        while time.monotonic() < end:
            time.sleep(min(LEASE_S / 60, 5))
            if (self._holder() or {}) != holder:
                return False
        return True

    def _renew(self) -> None:
        while not self._stop.wait(LEASE_S / 4):
            try:
                dataset = self._store.open(CONCEPTS)
                if json.loads(dataset.config().get(LEASE_KEY, "{}")).get("id") != self._id:
                    return  # taken over; `require` will say so before the next commit
                dataset.update_config({LEASE_KEY: self._text()})
            except (OSError, StoreError):
                continue  # a take-over won the race, or the store is briefly away: look again

    def _text(self) -> str:
        return json.dumps(
            {
                "id": self._id,
                "host": socket.gethostname(),
                "boot": _boot_id(),
                "pids": _pid_namespace(),
                "pid": os.getpid(),
                "started": _start_time(os.getpid()),
                "expires": time.time() + LEASE_S,
            }
        )


def _same_machine(holder: dict[str, Any]) -> bool:
    return bool(holder["host"] == socket.gethostname() and holder["boot"] == _boot_id())


def _is_gone(holder: dict[str, Any]) -> bool:
    """Held by a process of this machine that does not run any more.

    Containers on one machine may share its name and have their own process numbers: a process that
    is not found among those of another namespace may well be alive.
    """
    seen = _same_machine(holder) and holder.get("pids") == _pid_namespace()
    return seen and _start_time(int(str(holder["pid"]))) != holder["started"]


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_time(pid: int) -> str | None:
    """Clock ticks at which a process started; tells it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
