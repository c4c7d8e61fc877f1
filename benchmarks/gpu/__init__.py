"""Everything that only a GPU can show, by one command.

    python -m benchmarks.gpu all --minutes 25            # or: make gpu
    python -m benchmarks.gpu teacher training            # some steps
    python -m benchmarks.gpu all --dry-run               # tiny sizes on a CPU, to find typos
    python -m benchmarks.gpu report                      # the Markdown page of what is there
    python -m benchmarks.gpu expected                    # expectations and FLOPs, without a device

Steps run in the order of their value, each in a process of its own under a time limit. What was
measured is written after every figure, so nothing is lost when a limit is reached; the same command
goes on where it stopped and skips what is done. docs/gpu.md says what is expected and why.
"""
