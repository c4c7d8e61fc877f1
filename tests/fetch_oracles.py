"""Fetches the public files behind the tests that compare with published numbers.

    python -m tests.fetch_oracles DIR [--dry-run]

Nothing is downloaded unless somebody runs this, and it says first what it takes from where. A
file is kept only if its SHA-256 is the one below; one that is already there is checked and not
fetched again. Afterwards `TAP_ENGINE_TEST_DATA=DIR make test` uses them. The rest of
tests/README.md's table has to be cut from larger downloads or may not be passed on; the script
says so for each at its end.

It was written without a network: the hashes are those of the files in use, the addresses are
untried.
"""

import argparse
import hashlib
import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tap_engine.schemas.replacing import replacing

COCOAPI = "https://raw.githubusercontent.com/cocodataset/cocoapi/master/results/"
CLIPSCORE = "https://raw.githubusercontent.com/jmhessel/clipscore/main/example/"
DENSECAP = "https://raw.githubusercontent.com/jcjohnson/densecap/master/info/"
LIMIT_BYTES = 64 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Oracle:
    """One public file.

    Attributes:
        path: where it belongs below the folder.
        url: where it comes from.
        sha256: of the file that the tests were written with.
        licence: its owner's terms.
    """

    path: str
    url: str
    sha256: str
    licence: str


ORACLES = (
    Oracle(
        "oracles/coco/instances_val2014_fakesegm100_results.json",
        COCOAPI + "instances_val2014_fakesegm100_results.json",
        "5b47c1e8f8b40c0c6dfe81cb3c736ba98d99441e0fe1de79f4f4ed6280ea5f2c",
        "BSD",
    ),
    Oracle(
        "oracles/coco/instances_val2014_fakebbox100_results.json",
        COCOAPI + "instances_val2014_fakebbox100_results.json",
        "de12f830df8df4c79286735887097029f5fc735f69a21450e3f0df9318a1936f",
        "BSD",
    ),
    Oracle(
        "oracles/caption_clipscore/good_captions.json",
        CLIPSCORE + "good_captions.json",
        "74894756e9586ae0d1e8e44ddac2db228687e75efa5c092bca41ace494fd8ad2",
        "MIT",
    ),
    Oracle(
        "oracles/caption_clipscore/bad_captions.json",
        CLIPSCORE + "bad_captions.json",
        "7b41448b72677753629431e8dcdf153a6643deffe540862d235675a83f82a068",
        "MIT",
    ),
    Oracle(
        "oracles/caption_clipscore/refs.json",
        CLIPSCORE + "refs.json",
        "9bf65e26203fee99b38b87991fda0d7c395224ba50224b41a07ee799a05c1af5",
        "MIT",
    ),
    Oracle(
        "densecap_splits.json",
        DENSECAP + "densecap_splits.json",
        "b8994337972228a57a401f63c5cc7f10b13f4b87261483222185968ef04f4742",
        "MIT",
    ),
)

WRITTEN: Mapping[str, Any] = {
    "oracles/caption_clipscore/expected.json": {
        "clipscore": {
            "good": {
                "Bleu": [0.6667, 0.4899, 0.3469, 0.0],
                "METEOR": 0.3444,
                "ROUGE_L": 0.428,
                "CIDEr": 0.5637,
            },
            "bad": {
                "Bleu": [0.4815, 0.2404, 0.1359, 0.0],
                "METEOR": 0.1861,
                "ROUGE_L": 0.3121,
                "CIDEr": 0.279,
            },
        }
    }
}
"""Published numbers, four decimals, from the README of clipscore."""

BY_HAND = (
    "oracles/coco/instances_val2014_100.json: the first 100 images by id of COCO's "
    "annotations_trainval2014.zip (CC BY 4.0)",
    "oracles/coco/expected.json: 12 numbers for segm and for bbox, computed by pycocotools",
    "vg_real: region_descriptions.json and image_data.json of Visual Genome, cut to images 1 and 2",
    "concept_lists.json: the category names of the six data sets",
    "real_sa1b: six COCO photos; licences differ by photo",
)

Fetch = Callable[[str], bytes]


class WrongFile(Exception):
    """A download or a file that is there is not the file that the tests were written with."""


def download(url: str) -> bytes:
    """The bytes behind an https address; at most `LIMIT_BYTES`."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        found: bytes = answer.read(LIMIT_BYTES + 1)
    if len(found) > LIMIT_BYTES:
        raise WrongFile(f"{url} is larger than {LIMIT_BYTES >> 20} MiB")
    return found


def fetch_oracle(oracle: Oracle, folder: Path, fetch: Fetch = download) -> str:
    """Puts one file in its place.

    Returns:
        What was done, for people.

    Raises:
        WrongFile: the bytes have another SHA-256; nothing is written then.
        OSError: the address does not answer.
    """
    path = folder / oracle.path
    if path.is_file():
        _check(path.read_bytes(), oracle, str(path))
        return f"there already: {path}"
    content = fetch(oracle.url)
    _check(content, oracle, oracle.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(content)
    return f"fetched: {path}"


def _check(content: bytes, oracle: Oracle, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != oracle.sha256:
        raise WrongFile(
            f"{where}: expected SHA-256 {oracle.sha256}, found {found}; it was left alone. Has the "
            "file changed at its source?"
        )


def main(arguments: Sequence[str] | None = None, fetch: Fetch = download) -> int:
    """Exit code: 0 if all files are in place, 1 if one is not."""
    parser = argparse.ArgumentParser(description="Fetch public test data.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, fetch nothing")
    chosen = parser.parse_args(arguments)
    print(f"into {chosen.folder}:")
    for oracle in ORACLES:
        print(f"  {oracle.path}\n    from {oracle.url} ({oracle.licence})")
    for name in WRITTEN:
        print(f"  {name}\n    written by this script")
    failed = 0
    if not chosen.dry_run:
        for oracle in ORACLES:
            try:
                print(fetch_oracle(oracle, chosen.folder, fetch))
            except (OSError, WrongFile) as error:
                failed += 1
                print(f"not fetched: {oracle.path}: {error}", file=sys.stderr)
        for name, numbers in WRITTEN.items():
            path = chosen.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
    print("not fetched by this script:")
    for line in BY_HAND:
        print(f"  {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
