"""The lease of a store: which driver may commit to it.

Lance's Append does not compare versions, so two drivers would duplicate rows. One driver at a time
holds a lease in the config of the small `concepts` table: `update_config` with a stale version is
refused, which makes it a compare-and-swap.
"""

import json
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

from tap_engine.pipeline.store import Store
from tap_engine.schemas.errors import StoreError
from tap_engine.schemas.tables import CONCEPTS

LEASE_KEY = "tap.driver"

LEASE_S = 600.0
"""How long a driver that went silent on another machine keeps others out."""


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
        dataset = self._store.open(CONCEPTS)
        held = dataset.config().get(LEASE_KEY)
        holder = json.loads(held) if held else None
        self.alone = holder is None or _is_gone(holder)
        if holder and not (self.alone or holder["expires"] < time.time() or self._take_over):
            until = time.strftime("%H:%M:%S", time.localtime(holder["expires"]))
            raise StoreError(
                f"{self._store.uri} is being built by process {holder['pid']} on "
                f"{holder['host']} (lease until {until}); two builds would write rows twice. "
                "Wait, or add --take-over if you know that it is gone"
            )
        try:
            dataset.update_config({LEASE_KEY: self._text()})
        except OSError as error:
            raise StoreError(f"another build of {self._store.uri} started just now") from error
        self._renewer.start()

    def require(self) -> None:
        """Raise unless the lease is still ours."""
        holder = json.loads(self._store.open(CONCEPTS).config().get(LEASE_KEY, "{}"))
        if holder.get("id") != self._id or holder["expires"] < time.time():
            raise StoreError(
                f"the lease on {self._store.uri} was lost to {holder.get('host', 'nobody')} "
                f"(process {holder.get('pid')}); stopped before committing anything more"
            )

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        self._stop.set()
        if self._renewer.is_alive():
            self._renewer.join()
        dataset = self._store.open(CONCEPTS)
        if json.loads(dataset.config().get(LEASE_KEY, "{}")).get("id") == self._id:
            dataset.delete_config_keys([LEASE_KEY])
            # Each renewal was a version of this small table.
            dataset.cleanup_old_versions(older_than=timedelta(hours=1))

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
                "pid": os.getpid(),
                "started": _start_time(os.getpid()),
                "expires": time.time() + LEASE_S,
            }
        )


def _is_gone(holder: dict[str, object]) -> bool:
    """Held by a process of this machine that does not run any more."""
    same_machine = holder["host"] == socket.gethostname() and holder["boot"] == _boot_id()
    return same_machine and _start_time(int(str(holder["pid"]))) != holder["started"]


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_time(pid: int) -> str | None:
    """Clock ticks at which a process started; tells it from a later one with the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
