"""What an image costs in an evaluation on one CPU core: made by full-size generators, seen by FID's Inception.

`python tests/bench/evaluation.py` takes about half a minute; weights are random, which changes no time.
"""

import time

import torch

from pipeline.evaluation.fakes import Fakes
from pipeline.evaluation.question import Size
from pipeline.metrics.detectors import KNOWN, Detector
from pipeline.metrics.inception import FIDInception
from pipeline.recipes import find


def main() -> None:
    torch.set_num_threads(1)
    for recipe in ("mspie.table5_f", "cips.table3_main"):
        G = find(recipe).make().family.G.build().eval()
        began = time.process_time()
        list(Fakes(G, Size(256), "", 0, 2, lambda numbers: None).images(range(2)))
        print(f"{recipe} at 256 px: {(time.process_time() - began) / 2:.2g} s an image")
    options, net = KNOWN["inception_mseitzer"].options, FIDInception().eval()
    detector = Detector("random", "", False, 2048, options, 4, torch.device("cpu"), net)
    began = time.process_time()
    detector(torch.zeros(4, 3, 256, 256, dtype=torch.uint8))
    print(f"FID's Inception: {(time.process_time() - began) / 4:.2g} s an image")


if __name__ == "__main__":
    main()
