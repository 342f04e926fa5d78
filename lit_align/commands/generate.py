"""`lit-align generate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_align.errors import UserError

if TYPE_CHECKING:
    from lit_align.annotation.samplers import Plan, Sampler

HERE: dict[str, Any] = {"max_prompt_length": 512, "batch_size": 16, "dtype": "float32", "device": "cpu"}
"""What decides how models of this process answer, unless something else is given."""

THERE: dict[str, Any] = {"api_key_env": None, "concurrency": 8, "timeout": 600.0, "extra": {}}
"""What decides how a server is asked, unless something else is given."""


def generate(
    prompts: str,
    model: list[str] | None = None,
    out: Path = Path("responses.jsonl"),
    k: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    max_prompt_length: int | None = None,
    batch_size: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    seed: int = 0,
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
    server: str | None = None,
    api_key_env: str | None = None,
    concurrency: int | None = None,
    timeout: float | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Sample responses to prompts into a file.

    One row a prompt: `prompt`, `responses`, whether each is `finished`, and of which of the `models` it is. Killed and started
    again, it goes on where it stopped, and the file ends as it would have ended. What it was made with stands in
    `<out>.settings.json`; with anything else it is refused.

    Args:
        prompts: Rows of any kind with a prompt, as PromptData reads them, or mini_instruct.
        model: Folder or hub name of a language model, or its name on the server. Given several times, each model answers every
            prompt.
        out: The file to write, .jsonl or .parquet.
        k: Responses to a prompt from each model; also -k.
        temperature: Logits are divided by it.
        top_p: Only the most probable tokens that together reach this probability are drawn; 1 is all of them.
        top_k: Only the k most probable tokens are drawn; 0 is all of them, 1 is greedy decoding. A server is not sent 0, so
            there it means what the server does of itself.
        max_new_tokens: A response is cut after so many tokens, its EOS among them.
        max_prompt_length: Tokens of a prompt; a longer one loses its beginning. 512 if not given; not with a server.
        batch_size: Prompts sampled together. Another one gives other responses. 16 if not given; not with a server.
        dtype: Of the weights. float32 if not given; not with a server.
        device: Where the models run: cpu, cuda, cuda:1. All of them are there at once. cpu if not given; not with a server.
        seed: Of the random numbers.
        columns: Names for rows whose columns go by others, as in a DataModule.
        max_rows: Only so many prompts; the 8 of mini_instruct are repeated up to so many (10,000 if not given).
        server: The address of an OpenAI API that has the models, such as http://localhost:8000/v1. Chats go to
            `/chat/completions`, plain text to `/completions`, one request a response.
        api_key_env: The environment variable that holds the server's API key, if it wants one. The key itself is never logged,
            saved or shown.
        concurrency: Requests under way at the server at once. 8 if not given.
        timeout: Seconds that a response of the server may take. 600 if not given.
        extra: Fields added to every request to the server, such as '{chat_template_kwargs: {enable_thinking: false}}'; null
            takes one away.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from lit_align.annotation.generation import generate_file, read_texts, settings_of
    from lit_align.annotation.samplers import Plan
    from lit_align.annotation.show import progress
    from lit_align.models.sampling import Sampling
    from lit_align.rollout import RolloutConfig

    if not model:
        raise UserError("Name the --model that answers: a folder or a hub name, or its name on the --server.")
    disable_progress_bar()
    plan = Plan(k, RolloutConfig(max_new_tokens, Sampling(temperature, top_k, top_p)), seed)
    here = {"max_prompt_length": max_prompt_length, "batch_size": batch_size, "dtype": dtype, "device": device}
    there = {"api_key_env": api_key_env, "concurrency": concurrency, "timeout": timeout, "extra": extra}
    texts = read_texts(prompts, columns, max_rows)
    sampler = _local(model, plan, here, there) if server is None else _remote(model, plan, server, here, there, out)
    settings = settings_of(sampler, {"rows": prompts, "columns": columns}, texts)
    console = Console(highlight=False)
    with progress("sampling", len(texts), console, unit="tokens/s") as update:
        number = generate_file(sampler, texts, settings, out, update)
    gone_on = f" ({number:,} were there)" if number else ""
    console.print(
        f"Written: {out}, {len(texts):,} prompts with {k * len(model)} responses each{gone_on}", soft_wrap=True
    )


def _local(models: list[str], plan: Plan, here: Mapping[str, Any], there: Mapping[str, Any]) -> Sampler:
    """Models in this process."""
    from lit_align.annotation.samplers import LocalSampler

    _refuse(there, "says how a server is asked: name the --server, or leave it out")
    return LocalSampler(models, plan, **_filled(here, HERE))


def _remote(
    models: list[str], plan: Plan, url: str, here: Mapping[str, Any], there: Mapping[str, Any], out: Path
) -> Sampler:
    """Models behind a server."""
    from lit_align.annotation.server import ServerSampler
    from lit_align.feedback.endpoint_http import Server

    _refuse(here, "has no effect with --server, where the server decides it: leave it out")
    chosen = _filled(there, THERE)
    server = Server(url, chosen["api_key_env"], chosen["timeout"])
    return ServerSampler(
        models, plan, server, chosen["concurrency"], chosen["extra"], out.with_name(f"{out.name}.answers.sqlite")
    )


def _refuse(options: Mapping[str, Any], why: str) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise UserError(f"--{given[0]} {why}.")


def _filled(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: defaults[name] if value is None else value for name, value in options.items()}
