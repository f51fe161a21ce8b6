"""Cost and accuracy of a network on a set of images, over all processes."""

from typing import NamedTuple

import torch
from torch import Tensor

from manual_backprop.network import Network
from manual_backprop.training.data import DIGITS, Images
from manual_backprop.training.parallel import Workers

CHUNK = 10_000  # images at a time: keeps the memory of wide layers small


class Score(NamedTuple):
    """``cost`` the mean over the images, ``accuracy`` in percent, ``confusion[i, j]`` images of an i taken for a j."""

    cost: float
    accuracy: float
    confusion: Tensor


@torch.inference_mode()
def score(network: Network, images: Images, workers: Workers) -> Score:
    """Each process takes every ``workers.size``-th image."""
    mine = (tensor[workers.rank :: workers.size].split(CHUNK) for tensor in images)
    sums = torch.zeros(1 + DIGITS * DIGITS, dtype=torch.float64, device=images.x.device)
    for x, labels, y in zip(*mine, strict=True):
        outputs, cost = network.outputs_and_cost(x, y)
        sums[0] += cost * len(x)
        answers = outputs.argmax(-1)
        sums[1:] += torch.bincount(labels * DIGITS + answers, minlength=DIGITS * DIGITS)
    sums = workers.sum(sums)
    confusion = sums[1:].reshape(DIGITS, DIGITS).cpu().long()
    n = max(1, len(images))
    return Score(float(sums[0]) / n, 100 * float(confusion.diagonal().sum()) / n, confusion)
