"""Training as a job of a Ray cluster, for those who built their store on one.

    python -m tap_engine.jobs.ray_train --workers 16 -- run --recipe vit_b_stage1 --store S --out R

What stands after `--` is the command line of `tap-train`. Ray Train starts one process per GPU and
the process group; from there on it is the same trainer as under torchrun, which stays the way to
launch where there is no Ray. The run folder must be one that all nodes see.
"""

from typing import Annotated

import typer


def launch(
    arguments: Annotated[
        list[str], typer.Argument(help="The command line of tap-train, after --.")
    ],
    workers: Annotated[int, typer.Option(help="The number of processes; one per GPU.")] = 8,
    gpu: Annotated[bool, typer.Option(help="Give each process a GPU.")] = True,
    cpus: Annotated[
        int,
        typer.Option(help="The number of CPUs per process, including those of its data loaders."),
    ] = 8,
    restarts: Annotated[int, typer.Option(help="The number of new starts after failures.")] = 3,
) -> None:
    """Run `tap-train` in many processes of the Ray cluster that RAY_ADDRESS names."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        _work,
        train_loop_config={"arguments": arguments},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus}
        ),
        # Figures and stop requests are exchanged on the CPU, gradients on the GPU.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo"),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=restarts)),
    ).fit()


def _work(config: dict[str, list[str]]) -> None:
    from tap_engine.jobs.train_cli import main

    # A worker that starts again goes on from the newest checkpoint: --resume is auto.
    try:
        main(config["arguments"], standalone_mode=False)
    except SystemExit as end:
        # To Ray a worker that exits is a lost one, and the error is on the worker's screen alone.
        if end.code:
            raise RuntimeError(f"tap-train ended with exit code {end.code}") from end


if __name__ == "__main__":
    typer.run(launch)
