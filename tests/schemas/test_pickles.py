import collections
import os
import pickle

import numpy as np
import pytest

from tap_engine.schemas import pickles
from tap_engine.schemas.errors import CheckpointError


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_come_through(tmp_path, protocol) -> None:
    content = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        ["a", b"bytes \xff"],
        collections.OrderedDict(x=np.float16(1.5)),
    ]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    array, names, mapping = pickles.load(path)
    assert array.tolist() == content[0].tolist()
    assert names == content[1]
    assert mapping == content[2]


def test_code_is_refused_by_name_and_not_run(tmp_path) -> None:
    marker = tmp_path / "pwned"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps([np.zeros(2), Attack(marker)]))
    with pytest.raises(CheckpointError, match=r"posix\.mkdir"):
        pickles.load(path)
    assert not marker.exists()


def test_indirect_access_is_refused(tmp_path) -> None:
    # protocol 4 can name a dotted path inside an allowed module
    path = tmp_path / "dotted.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.")
    with pytest.raises(CheckpointError, match=r"ndarray\.__class__"):
        pickles.load(path)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2, 3])[:-3]])
def test_damaged_files_say_so(tmp_path, content) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable pickle"):
        pickles.load(path)
