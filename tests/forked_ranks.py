"""Several ranks from one interpreter: imports are paid once, and no thread has started yet.

`WORLD_SIZE=4 MASTER_ADDR=... MASTER_PORT=... python tests/forked_ranks.py train ...` is the command line on 4 ranks.
What starts ranks for users is torchrun, accelerate or Slurm, and tested as such elsewhere.
"""

import os
import sys
import traceback
from collections.abc import Callable

import torch._dynamo  # noqa: F401  # or Adam would import it in each rank


def fork_ranks(count: int, work: Callable[[], object]) -> int:
    """Run `work` in so many processes with RANK and LOCAL_RANK; the exit code of the first that fails, or 0."""
    children: list[int] = []
    rank = 0
    for number in range(1, count):
        child = os.fork()
        if not child:
            rank, children = number, []
            break
        children.append(child)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
    code = 0
    try:
        work()
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return code or next(filter(None, codes), 0)


if __name__ == "__main__":
    from pipeline import attempt, cli  # noqa: F401

    sys.exit(fork_ranks(int(os.environ["WORLD_SIZE"]), cli.main))
