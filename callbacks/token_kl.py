"""KL to the reference at every token of sampled responses, by three estimators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_align.data import padded
from lit_align.feedback import Answer
from lit_align.groups import GroupBatch, TokenGroup
from lit_align.losses.kl import full_kl, k1, k3
from lit_align.models import Sampling, response_hidden
from lit_align.models.logprobs import MAX_LOGITS, head_logits
from lit_align.rollout import gathered

ESTIMATORS = ("k1", "k3", "full")


class TokenKLs(NamedTuple):
    """Estimates whose sum over a response is one of KL(policy || reference) of the response, nats.

    Args:
        k1: log pi(token) - log ref(token), `(M,)`.
        k3: r - 1 - log r with r = ref(token) / pi(token), `(M,)`.
        full: KL of the two distributions that the token could have come from, over the whole vocabulary, `(M,)`. It is k1's
            mean given what comes before, so it has the same mean and less variance (Rao-Blackwell).
    """

    k1: Tensor
    k3: Tensor
    full: Tensor


@torch.no_grad()
def token_kls(policy: Any, reference: Any, batch: GroupBatch, temperature: float = 1.0) -> TokenKLs:
    """KL estimates of every response token, float32, a chunk of the vocabulary's rows at a time.

    Args:
        policy: A causal language model that the batch's responses were sampled from.
        reference: One with the same vocabulary.
        batch: N responses with M tokens.
        temperature: That they were sampled at; the reference is taken at the same.
    """
    hidden, ref_hidden = response_hidden(policy, batch), response_hidden(reference, batch)
    sampling = Sampling(temperature)
    rows = max(1, MAX_LOGITS // (2 * policy.get_output_embeddings().weight.shape[0]))
    chunks = zip(*(torch.split(tensor, rows) for tensor in (hidden, ref_hidden, batch.targets)), strict=True)
    parts = []
    for of_policy, of_reference, targets in chunks:
        logits = sampling.warp(head_logits(policy, of_policy))
        ref_logits = sampling.warp(head_logits(reference, of_reference))
        logps, ref_logps = (
            every.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1) for every in (logits, ref_logits)
        )
        parts.append(TokenKLs(k1(logps, ref_logps), k3(logps, ref_logps), full_kl(logits, ref_logits)))
    return TokenKLs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def answer_batches(
    trainer: Trainer,
    module: LightningModule,
    answers: Sequence[Answer],
    other: Any = None,
    batch_size: int = 32,
) -> Iterator[GroupBatch]:
    """Answers laid out for the models, on the module's device; inside, the run's precision and whole weights.

    Ranks have different numbers of answers, and so run the models different numbers of times.

    Args:
        trainer: Training.
        module: Has the policy that the answers were sampled from, and its tokenizer.
        answers: Any number of them.
        other: A model besides the policy that is to read them.
        batch_size: Answers that the models read at once.
    """
    tokenizer: Any = module.tokenizer
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with ExitStack() as stack:
        models: list[Any] = [module.policy] if other is None else [module.policy, other]
        for model in models:
            stack.enter_context(gathered(model))
        stack.enter_context(trainer.precision_plugin.forward_context())
        for start in range(0, len(answers), batch_size):
            some = answers[start : start + batch_size]
            groups = [TokenGroup(answer.prompt_ids, [answer.response_ids]) for answer in some]
            yield padded(groups, pad_id=pad_id).to(module.device)


def answer_kls(
    trainer: Trainer,
    module: LightningModule,
    reference: Any,
    answers: Sequence[Answer],
    temperature: float = 1.0,
    batch_size: int = 32,
) -> Iterator[TokenKLs]:
    """KL estimates of the tokens of one answer after the other, on the CPU.

    Args:
        trainer: Training.
        module: As in `answer_batches`.
        reference: What the policy is compared with.
        answers: Any number of them.
        temperature: See `token_kls`.
        batch_size: Answers that the models read at once.
    """
    for batch in answer_batches(trainer, module, answers, reference, batch_size):
        kls = torch.stack(token_kls(module.policy, reference, batch, temperature)).cpu()
        for of_answer in torch.split(kls, batch.response_lengths.tolist(), dim=1):
            yield TokenKLs(*of_answer)
