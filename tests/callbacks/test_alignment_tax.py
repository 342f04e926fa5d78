from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import AlignmentTax
from lit_align.data.mini_assistant import skills
from lit_align.data.mini_instruct import PROMPTS
from lit_align.models import ModelConfig, load_policy
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

ROWS = [(PROMPTS[0], "cats are lovely"), (PROMPTS[0], "um"), (PROMPTS[3], "gladly dogs are clever")]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Texts, two of them with one prompt."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in ROWS))
    return str(file)


def perplexity(model, tokenizer) -> float:
    """Of `ROWS`, from whole logits."""
    nlls = []
    for prompt, response in ROWS:
        first = tokenizer(prompt).input_ids
        ids = [*first, *tokenizer(response, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        nlls += [-float(logps[at - 1, ids[at]]) for at in range(len(first), len(ids))]
    return math.exp(sum(nlls) / len(nlls))


def test_perplexity_is_over_tokens_and_against_the_start(fit_small, start, rows):
    module, trainer = fit_small("dpo", [AlignmentTax(rows, 5)])
    before = perplexity(load_policy(ModelConfig(str(start))).eval(), module.tokenizer)
    after = perplexity(module.policy.eval(), module.tokenizer)
    found = trainer.callback_metrics
    assert float(found["eval/tax/perplexity"]) == pytest.approx(after, rel=1e-5)
    assert float(found["eval/tax/perplexity_ratio"]) == pytest.approx(after / before, rel=1e-5)
    assert after != before


def test_the_start_is_that_of_the_whole_run(fit_small, rows, tmp_path):
    def fit(folder: str, ckpt_path: Path | None = None) -> float:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        callbacks = [AlignmentTax(rows, 2), saving]
        _, trainer = fit_small("dpo", callbacks, enable_checkpointing=True, ckpt_path=ckpt_path)
        return float(trainer.callback_metrics["eval/tax/perplexity_ratio"])

    assert fit("first") == fit("second", tmp_path / "first" / "step=2.ckpt") != 1


def test_skills_are_those_of_the_samples(monkeypatch: pytest.MonkeyPatch, rows: str):
    """A model that answers everything rightly, and then one that copies wrongly."""

    def answering(right: Callable[[str], bool]):
        known = {item.prompt: (item.right or "otters live in rivers .") for item in skills()}
        return lambda model, tokenizer, prompts, k, config: [
            SimpleNamespace(prompt=prompt, response=known[prompt] if right(prompt) else "um") for prompt in prompts
        ]

    tax = AlignmentTax(rows, 1, skills=RolloutConfig(32))
    monkeypatch.setattr(tax, "_perplexity", lambda trainer, module: 2.0)
    trainer, module = SimpleNamespace(global_rank=0, world_size=1), SimpleNamespace(policy=1, tokenizer=1)
    monkeypatch.setattr("callbacks.alignment_tax.sample_answers", answering(lambda prompt: True))
    metrics = tax.evaluate(trainer, module)
    assert metrics["eval/tax/copy"] == metrics["eval/tax/addition"] == 1
    assert metrics["eval/tax/copy_change"] == metrics["eval/tax/toxic"] == 0
    monkeypatch.setattr("callbacks.alignment_tax.sample_answers", answering(lambda p: not p.startswith("copy")))
    metrics = tax.evaluate(trainer, module)
    assert metrics["eval/tax/copy_change"] == -1
    assert metrics["eval/tax/addition_change"] == 0
    assert metrics["eval/tax/perplexity_ratio"] == 1
