"""Every identity between the layouts holds to machine precision, and the matrices are what they are called."""

import pytest
import torch

from manual_backprop.chapter.jacobian_layout import Identity, layouts


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sizes", [(3, 4, 2), (2, 5, 5), (1, 1, 1), (8, 8, 8)], ids=str)
def test_equal_to_machine_precision(sizes, seed):
    found = layouts(sizes, seed)
    assert len(found.identities) == 10
    for identity in found.identities:
        assert identity.left.shape == identity.right.shape
        assert identity.right.abs().max() > 0
        assert identity.difference < 1e-15, identity.words


def test_shapes_and_diagonal():
    found = layouts((3, 4, 2))
    assert found.sigma_prime.shape == (4, 4)
    assert torch.equal(found.sigma_prime, found.sigma_prime.diagonal().diag())
    assert ((found.sigma_prime.diagonal() > 0) & (found.sigma_prime.diagonal() <= 0.25)).all()
    assert (found.numerator.shape, found.denominator.shape) == ((2, 4), (4, 2))
    assert torch.equal(found.numerator, found.denominator.T)


def test_the_third_order_tensor_is_mostly_zero():
    found = layouts((3, 4, 2))
    assert found.third_order.shape == (4, 4, 3)
    assert found.third_order.count_nonzero() == 12 == found.gradients.weights[0].numel()


def test_an_identity_that_does_not_hold():
    assert Identity("0 = 2", torch.zeros(3), torch.tensor([0.0, 2.0, -1.0])).difference == 2
