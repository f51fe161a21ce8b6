"""Wrong ones: attention of one head, O = softmax(QKᵀ/√d) V, and with heads that share a key."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_backprop.zoo.entry import EVERYWHERE, Grads, draw, wrong

QKV = draw((4, 3), (4, 3), (4, 3))


def softmax_backward(probability: Tensor, grad_probability: Tensor) -> Tensor:
    """∂C/∂S of P = softmax(S): P ⊙ (∂C/∂P − its sum along the row weighted with P)."""
    return probability * (grad_probability - (grad_probability * probability).sum(-1, keepdim=True))


class Attention(Function):
    """O = softmax(QKᵀ/√d) V."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return Attention.probability(q, k) @ v

    @staticmethod
    def probability(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


@wrong("attention-scale-missing-for-q", "attention", QKV, *EVERYWHERE)
class AttentionScale(Attention):
    """1/√d is applied to the gradient of K and not to that of Q."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = Attention.probability(q, k)
        grad_scores = softmax_backward(p, grad_output @ v.mT)
        return grad_scores @ k, grad_scores.mT @ q / q.shape[-1] ** 0.5, p.mT @ grad_output  # wrong: first too


@wrong("attention-softmax-row-sum-missing", "attention", QKV, *EVERYWHERE, source="Dao-AILab/quack PR#53")
class AttentionRowSum(Attention):
    """The softmax is differentiated as if it were an exponential."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = Attention.probability(q, k)
        grad_scores = p * (grad_output @ v.mT) / q.shape[-1] ** 0.5  # wrong: softmax_backward
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad_output


@wrong("attention-key-gradient-transposed", "attention", QKV, *EVERYWHERE,
       source="fla-org/flash-linear-attention PR#875")  # fmt: skip
class AttentionKey(Attention):
    """As many queries as keys hide that the scores' gradient is not transposed for K."""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = Attention.probability(q, k)
        grad_scores = softmax_backward(p, grad_output @ v.mT) / q.shape[-1] ** 0.5
        return grad_scores @ k, grad_scores @ q, p.mT @ grad_output  # wrong: grad_scores.mT @ q


@wrong("attention-log-sum-exp-dropped", "attention", QKV, *EVERYWHERE, "MB211", source="Dao-AILab/flash-attention#889")
class AttentionLogSumExp(Function):
    """The logarithm of the row sums is an output as well, and its gradient is ignored."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v)
        scores = q @ k.mT
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = (q @ k.mT).softmax(-1)
        grad_scores = softmax_backward(p, grad_output @ v.mT)  # wrong: + p * grad_lse.unsqueeze(-1)
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad_output


@wrong("attention-causal-mask-forward-only", "attention", QKV, *EVERYWHERE)
class AttentionCausal(Function):
    """The backward computes the probabilities once more, and forgets the mask."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        future = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).triu(1)
        return (q @ k.mT).masked_fill(future, -torch.inf).softmax(-1) @ v

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k, v = ctx.saved_tensors
        p = (q @ k.mT).softmax(-1)  # wrong: masked
        grad_scores = softmax_backward(p, grad_output @ v.mT)
        return grad_scores @ k, grad_scores.mT @ q, p.mT @ grad_output


@wrong("attention-shared-keys-grouped-wrongly", "attention_scores", draw((4, 5, 3), (2, 5, 3)), *EVERYWHERE)
class GroupedScores(Function):
    """Heads 0, 1 share key head 0, heads 2, 3 share key head 1; the gradient adds heads 0, 2 and 1, 3."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.repeat_interleave(2, 0).mT

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Grads:
        q, k = ctx.saved_tensors
        grad_heads = grad_output.mT @ q
        grad_k = grad_heads.reshape(2, *k.shape).sum(0)  # wrong: (len(k), 2, …).sum(1)
        return grad_output @ k.repeat_interleave(2, 0), grad_k
