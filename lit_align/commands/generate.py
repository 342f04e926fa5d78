"""`lit-align generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lit_align.errors import UserError


def generate(
    prompts: str,
    model: list[str] | None = None,
    out: Path = Path("responses.jsonl"),
    k: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    max_prompt_length: int = 512,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str = "cpu",
    seed: int = 0,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
) -> None:
    """Sample responses to prompts into a file.

    One row a prompt: `prompt`, `responses`, whether each is `finished`, and of which of the `models` it is. Killed and started
    again, it goes on where it stopped, and the file ends as it would have ended. What it was made with stands in
    `<out>.settings.json`; with anything else it is refused.

    Args:
        prompts: Rows of any kind with a prompt, as PromptData reads them, or mini_instruct.
        model: Folder or hub name of a language model. Given several times, each model answers every prompt.
        out: The file to write, .jsonl or .parquet.
        k: Responses to a prompt from each model; also -k.
        temperature: Logits are divided by it.
        top_p: Only the most probable tokens that together reach this probability are drawn; 1 is all of them.
        top_k: Only the k most probable tokens are drawn; 0 is all of them, 1 is greedy decoding.
        max_new_tokens: A response is cut after so many tokens, its EOS among them.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning.
        batch_size: Prompts sampled together. Another one gives other responses.
        dtype: Of the weights.
        device: Where the models run: cpu, cuda, cuda:1. All of them are there at once.
        seed: Of the random numbers.
        columns: Names for rows whose columns go by others, as in a DataModule.
        max_rows: Only so many prompts; the 8 of mini_instruct are repeated up to so many (10,000 if not given).
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lit_align.annotation.generation import Plan, Sampler, generate_file, read_texts, settings_of
    from lit_align.annotation.show import progress
    from lit_align.models.sampling import Sampling
    from lit_align.rollout import RolloutConfig

    if not model:
        raise UserError("Name the --model that answers: a folder or a hub name.")
    disable_progress_bar()
    rollout = RolloutConfig(max_new_tokens, Sampling(temperature, top_k, top_p))
    plan = Plan(k, rollout, max_prompt_length, batch_size, seed, device)
    texts = read_texts(prompts, columns, max_rows)
    sampler = Sampler(model, dtype, plan)
    settings = settings_of(sampler, {"rows": prompts, "columns": columns}, texts)
    console = Console(highlight=False)
    with progress("sampling", len(texts), console, unit="tokens/s") as update:
        there = generate_file(sampler, texts, settings, out, update)
    gone_on = f" ({there:,} were there)" if there else ""
    console.print(
        f"Written: {out}, {len(texts):,} prompts with {k * len(model)} responses each{gone_on}", soft_wrap=True
    )
