"""How fast scenes of the sample world are drawn, on one core.

    python benchmarks/sample.py [--scenes 100]

Counted: a whole scene as `tap-data sample` makes it: layout, drawing, exact masks, run-length
encoding, JPEG, annotations and truth rows. Not counted: loading the sprite sheet, once per process.
CPU time of the one thread, so that others on the machine count less; wall time beside it.
"""

import argparse
import os
import statistics
import time

import cv2

from tap_engine.pipeline.sample.files import SceneName, draw_scene


def measure(size: int, scenes: int) -> str:
    draw_scene(SceneName(1, "train", 0), size)
    wall, cpu, regions, bytes_ = [], [], 0, 0
    for index in range(scenes):
        began, began_cpu = time.perf_counter(), time.thread_time()
        drawn = draw_scene(SceneName(1, "train", index), size)
        wall.append(time.perf_counter() - began)
        cpu.append(time.thread_time() - began_cpu)
        regions += len(drawn.truth)
        bytes_ += len(drawn.jpeg)
    return (
        f"| {size} | {scenes / sum(cpu):.1f} | {scenes / sum(wall):.1f} | "
        f"{1000 * statistics.median(cpu):.0f} | {1000 * max(cpu):.0f} | "
        f"{regions / scenes:.1f} | {bytes_ / scenes / 1000:.0f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenes", type=int, default=100)
    count = parser.parse_args().scenes
    cv2.setNumThreads(1)
    print(f"{count} scenes of each size, load {os.getloadavg()[0]:.1f}")
    print("| side, px | scenes/s of CPU | of wall | CPU ms, median | worst | masks | JPEG, kB |")
    print("|---|---|---|---|---|---|---|")
    for side in (256, 512, 1024):
        print(measure(side, count), flush=True)
