"""What a run says of itself at its start: config.json, manifest.json, first lines of the log."""

import json
import platform

from tap_engine.schemas.provenance import software
from tap_engine.train.run import Run


def write_manifest(run: Run, notes: list[str]) -> None:
    """Writes config.json and manifest.json, and says what is about to happen."""
    config, process = run.config, run.process
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1))
    stores = [
        {
            "uri": r.uri,
            "versions": r.versions,
            "images": r.rows,
            "provenance": r.provenance.settings,
        }
        for r in run.stream.readers
    ]
    manifest = {
        "software": software(),
        "machine": {"platform": platform.platform(), "device": str(process.device)},
        "processes": process.world,
        "stores": stores,
    }
    (run.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    trained = sum(p.numel() for p in run.parameters())
    total = sum(p.numel() for p in run.model.parameters())
    batch, optim = config.train.batch, config.optim
    rate = f"peak rate {optim.peak_rate(batch):.2e}"
    if batch != optim.rate_batch:
        rate += (
            f" ({optim.rate:.2e} is meant for {optim.rate_batch} images per step, here {batch}; "
            f"optim.scaling={optim.scaling})"
        )
    epochs = config.train.steps * batch / run.stream.epoch_images
    for note in notes if run.step == 0 else []:
        run.log.say(f"started from {note}")
    run.log.say(
        f"{config.recipe}: {trained:,} of {total:,} parameters train on {process.world} x "
        f"{process.device.type}, {config.train.precision}\n"
        f"{config.train.steps:,} steps of {batch} images ({run.share.images} x "
        f"{run.share.accumulate} x {process.world} processes), {epochs:.2f} epochs of "
        f"{run.stream.epoch_images:,} images; {rate}"
    )
    if run.names is not None:
        run.log.say(f"concepts: {len(run.names.names):,}, logit scale {run.names.logit_scale:.1f}")
    if run.tokenizer is not None:
        run.log.say(f"captions: {run.tokenizer.vocab_size:,} ids of {run.tokenizer.fingerprint}")
    run.log.say(f"run folder {run.folder}")
