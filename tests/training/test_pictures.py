"""The pictures of a run say what the numbers are."""

import torch

from manual_backprop.training.data import Images
from manual_backprop.training.pictures import most_wrong


def test_the_most_wrong_digits_come_first_with_their_outputs():
    labels = torch.tensor([7, 1, 4])
    outputs = torch.zeros(3, 10)
    outputs[0, 7], outputs[0, 2] = 0.9, 0.125  # right
    outputs[1, 1], outputs[1, 7] = 0.25, 0.5
    outputs[2, 4], outputs[2, 9] = 1e-9, 0.96
    images = Images(torch.rand(3, 784), labels, torch.nn.functional.one_hot(labels, 10).float())
    (axes,) = most_wrong(images, outputs, count=2).axes
    assert [text.get_text() for text in axes.texts] == ["4: 1e-09, 9: 0.96", "1: 0.25, 7: 0.5"]
    assert len(axes.images) == 2
