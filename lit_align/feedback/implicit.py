"""Policies as rewards: how likely they find a response, alone or against a reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.feedback.frozen import FrozenModel
from lit_align.feedback.reading import AnswerReader
from lit_align.feedback.source import Answer, RewardSource, Scores, checked
from lit_align.groups import sum_by_response
from lit_align.models import ModelConfig, response_logps


class LogProbReader(AnswerReader):
    """Reads answers with a causal language model: the log-probability of each response, given its prompt.

    Args:
        owner: The reward that asks, for what is said to people.
        config: The model, with the tokenizer that the text is encoded by.
        batch_size: Answers that the model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(self, owner: str, config: ModelConfig, batch_size: int, max_length: int) -> None:
        super().__init__(config.path, config, batch_size, max_length)
        self.frozen = FrozenModel(owner, config)

    @torch.no_grad()
    def log_probs(self, answers: Sequence[Answer], normalise: bool = False) -> Tensor:
        """Log-probabilities of N responses, nats, float32, on the CPU, `(N,)`.

        Args:
            answers: The N answers.
            normalise: Divides each by the number of its tokens.

        Raises:
            UserError: The chat template refuses a prompt, or a log-probability is not finite.
        """
        sums = torch.empty(len(answers), dtype=torch.float32)
        device = self.frozen.device
        with torch.autocast(device.type, enabled=False):
            for rows, on_cpu in self.batches(answers):
                batch = on_cpu.to(device)
                of_tokens = response_logps(self.frozen.model, batch)
                values = sum_by_response(of_tokens, batch.response_index, batch.n_responses)
                sums[rows] = (values / batch.response_lengths if normalise else values).cpu()
        return checked(sums, answers, f"The model {self.name!r}")


class LogProbReward(RewardSource):
    """The log-probability of a response under a model: a trained policy as a scorer, wherever a reward model could be.

    With `normalise` it is the score p of RRHF (Yuan et al. 2023, 2304.05302), by which a model that was trained to rank
    responses ranks new ones. The model reads text by its own tokenizer and chat template, as `RewardModelReward` does.

    Args:
        policy: The model.
        normalise: Whether the log-probability is divided by the number of tokens; otherwise long responses score low.
        batch_size: Answers that the model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(
        self, policy: ModelConfig, normalise: bool = True, batch_size: int = 32, max_length: int = 1024
    ) -> None:
        self.normalise = normalise
        self._reader = LogProbReader("LogProbReward", policy, batch_size, max_length)

    def to(self, device: torch.device | str) -> None:
        """Moves the model, now or when it is loaded."""
        self._reader.frozen.to(device)

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """Nats a token, or nats where it is not normalised.

        Raises:
            UserError: The chat template refuses a prompt, or a log-probability is not finite.
        """
        return Scores(self._reader.log_probs(answers, self.normalise), {})


class ImplicitReward(RewardSource):
    """The reward that a policy is optimal for: beta * (log pi(y|x) - log pi_ref(y|x)), summed over the response's tokens.

    It is DPO's implicit reward (Rafailov et al. 2023, 2305.18290, equation 5, without the term of the prompt alone), and by
    a `RewardJudge` around it the policy compares responses as in SPA (Kim et al. 2025, 2406.04412). Rewards of
    different prompts cannot be compared.

    Each model reads text by its own tokenizer and chat template. The components `policy` and `reference` are the two
    log-probabilities, nats.

    Args:
        policy: The policy.
        reference: What it is compared with, for SPA the SFT model in every round. None scores by beta * log pi(y|x) alone,
            which favours short responses.
        beta: As the policy was trained with.
        batch_size: Answers that a model reads at once.
        max_length: Tokens of prompt and response together; a longer prompt loses its beginning, then a response its end.
    """

    def __init__(
        self,
        policy: ModelConfig,
        reference: ModelConfig | None,
        beta: float = 0.1,
        batch_size: int = 32,
        max_length: int = 1024,
    ) -> None:
        if not beta > 0:
            raise UserError(f"ImplicitReward: beta must be above 0, got {beta}.")
        self.beta = beta
        configs = {"policy": policy} if reference is None else {"policy": policy, "reference": reference}
        self._readers = {
            role: LogProbReader("ImplicitReward", config, batch_size, max_length) for role, config in configs.items()
        }

    def to(self, device: torch.device | str) -> None:
        """Moves both models, now or when they are loaded."""
        for reader in self._readers.values():
            reader.frozen.to(device)

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """The implicit rewards.

        Raises:
            UserError: A chat template refuses a prompt, or a log-probability is not finite.
        """
        sums = {role: reader.log_probs(answers) for role, reader in self._readers.items()}
        log_ratio = sums["policy"] - sums["reference"] if "reference" in sums else sums["policy"]
        return Scores(self.beta * log_ratio, sums)
