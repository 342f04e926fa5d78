"""The exact numbers of a comparison, from policies whose numbers are known."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lit_align.data.mini_instruct import PROMPTS, WORDS, demonstrator_logps, gold_scores
from lit_align.errors import UserError
from lit_align.exact import Enumeration, expected_reward, optimal_policy, word_table
from lit_align.models import ModelConfig, load_reward_model, load_tokenizer
from lit_align.report import compare_exactly, exact, read_group, reward_table

POLICY, REWARD = "LlamaForCausalLM", "LlamaForSequenceClassification"


def make_run(
    folder: Path, method: str, starts_from: Path | None, architecture: str | None, train: str = "mini_instruct"
) -> None:
    policy = {"path": "mini_instruct", "init": "random"} if starts_from is None else {"path": str(starts_from)}
    config = {
        "model": {"class_path": f"lit_align.methods.{method}", "init_args": {"policy": policy}},
        "data": {"class_path": "lit_align.data.X", "init_args": {"train": train}},
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if architecture:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps({"architectures": [architecture]}))


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Tables by run name, which stand for the exported models."""
    tables: dict[str, torch.Tensor] = {}
    zero = torch.zeros(len(PROMPTS), dtype=torch.float64)

    def enumerated(model: str, tokenizer: object) -> Enumeration:
        if model == "leaky":
            warnings.warn("4 % leaked.", UserWarning, stacklevel=1)
        return Enumeration(tables[model], zero, zero, zero)

    for load in ("load_policy", "load_reward_model", "load_tokenizer"):
        monkeypatch.setattr(exact, load, lambda config: Path(config.path).parent.name)
    monkeypatch.setattr(exact, "enumerated_policy", enumerated)
    monkeypatch.setattr(exact, "reward_table", lambda model, tokenizer: tables[model])
    return tables


def test_the_numbers_are_those_of_the_policies(tmp_path: Path, tables: dict[str, torch.Tensor]):
    reference, gold = demonstrator_logps(), gold_scores()
    tables["a_sft"] = reference
    tables["b_best"] = optimal_policy(reference, gold, 0.5)
    tables["leaky"] = reference.clone()
    tables["d_reward"] = gold * 3 + 1  # orders every pair as gold does
    sft = tmp_path / "a_sft"
    make_run(sft, "SFT", None, POLICY)
    make_run(tmp_path / "b_best", "DPO", sft / "model", POLICY)
    make_run(tmp_path / "leaky", "DPO", sft / "model", POLICY)
    make_run(tmp_path / "d_reward", "RewardModel", sft / "model", REWARD)
    make_run(tmp_path / "e_unfinished", "PPO", sft / "model", None)
    make_run(tmp_path / "f_other", "DPO", sft / "model", POLICY, train="rows.jsonl")
    told: list[str] = []
    comparison = compare_exactly(sorted(read_group(tmp_path), key=lambda run: run.name), told.append)

    results = {result.name: result for result in comparison.results}
    gold_of_reference = expected_reward(reference, gold).mean().item()
    assert comparison.reference_gold == pytest.approx(gold_of_reference, abs=1e-9)
    assert (results["a_sft"].kl, results["a_sft"].win_rate) == (0.0, pytest.approx(0.5, abs=1e-9))
    assert results["a_sft"].gold == pytest.approx(gold_of_reference, abs=1e-9)
    assert results["a_sft"].frontier_gold == pytest.approx(gold_of_reference, abs=1e-9)
    assert results["a_sft"].efficiency is None

    best = results["b_best"]
    # The optimal policy, by definition: gold = best gold at its KL, and log Z(x) = E[gold] / beta - KL.
    log_z = (reference + gold / 0.5).logsumexp(1).mean().item()
    assert best.kl == pytest.approx(best.gold / 0.5 - log_z, abs=1e-6)
    assert best.gold == pytest.approx(best.frontier_gold, abs=1e-6)
    assert best.efficiency == pytest.approx(1.0, abs=1e-6)
    assert 0.9 < best.win_rate < 1

    assert set(comparison.win_rates) == {"a_sft", "b_best", "leaky"}
    assert comparison.win_rates["b_best"]["a_sft"] == pytest.approx(best.win_rate, abs=1e-9)
    assert comparison.win_rates["a_sft"]["b_best"] == pytest.approx(1 - best.win_rate, abs=1e-9)
    assert comparison.win_rates["leaky"]["a_sft"] == pytest.approx(0.5, abs=1e-9)
    # On pairs of two different draws, a reward model that orders as gold does is as good as any can be.
    assert results["d_reward"].accuracy == pytest.approx(comparison.best_accuracy, abs=1e-12)
    assert results["d_reward"].gold is None
    assert results["e_unfinished"] == exact.Result("e_unfinished", "PPO")
    assert results["f_other"] == exact.Result("f_other", "DPO")
    assert [remark.split()[0] for remark in comparison.remarks] == ["e_unfinished", "leaky:"]
    assert told == [f"enumerating every response of {name}" for name in ("a_sft", "b_best", "leaky")] + [
        "scoring every response with d_reward"
    ]

    written = json.loads(json.dumps(comparison.as_dict()))
    assert list(written) == ["reference", "frontier", "runs", "win_rates"]
    assert list(written["reference"]) == ["gold"]
    assert list(written["frontier"][0]) == ["beta", "kl", "gold"]
    fields = ["name", "method", "gold", "kl", "frontier_gold", "efficiency", "win_rate", "accuracy"]
    assert list(written["runs"][0]) == fields
    assert written["runs"][3]["efficiency"] is None


def test_the_reference_is_what_most_runs_start_from(tmp_path: Path, tables: dict[str, torch.Tensor]):
    for name in ("old_sft", "new_sft"):
        make_run(tmp_path / name, "SFT", None, POLICY)
    make_run(tmp_path / "dpo", "DPO", tmp_path / "new_sft" / "model", POLICY)
    assert exact.reference_model(read_group(tmp_path)) == tmp_path / "new_sft" / "model"


def test_a_moved_group_finds_its_reference_by_name(tmp_path: Path):
    make_run(tmp_path / "sft", "SFT", None, POLICY)
    make_run(tmp_path / "dpo", "DPO", Path("before/it/moved/sft/model"), POLICY)
    assert exact.reference_model(read_group(tmp_path)) == tmp_path / "sft" / "model"


def test_without_a_reference_it_is_a_sentence(tmp_path: Path):
    make_run(tmp_path / "dpo", "DPO", Path("gone/x/model"), POLICY)
    with pytest.raises(UserError, match=r"no reference to compare with.*configs/quickstart/sft\.yaml"):
        compare_exactly(read_group(tmp_path))
    make_run(tmp_path / "sft", "SFT", None, POLICY)
    assert exact.reference_model(read_group(tmp_path)) == tmp_path / "sft" / "model"


def test_reward_models_alone_need_no_reference(tmp_path: Path, tables: dict[str, torch.Tensor]):
    tables["reward"] = torch.zeros_like(gold_scores())
    make_run(tmp_path / "reward", "RewardModel", Path("gone/sft/model"), REWARD)
    comparison = compare_exactly(read_group(tmp_path))
    assert comparison.results[0].accuracy == pytest.approx(0.5, abs=1e-9)  # ties are half right
    assert comparison.frontier == []
    assert comparison.reference_gold is None


def test_runs_on_other_data_are_not_measured(tmp_path: Path):
    make_run(tmp_path / "dpo", "DPO", Path("gone/sft/model"), POLICY, train="rows.jsonl")
    comparison = compare_exactly(read_group(tmp_path))
    assert comparison.results == [exact.Result("dpo", "DPO")]
    assert comparison.best_accuracy is None


def test_a_reward_table_is_what_the_model_says_of_each_response_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact, "MAX_WORDS", 3)
    monkeypatch.setattr(exact, "CHUNK", 64)
    torch.manual_seed(0)
    config = ModelConfig(path="mini_instruct", init="random")
    model, tokenizer = load_reward_model(config).eval(), load_tokenizer(config)
    rewards = reward_table(model, tokenizer)
    words = word_table(len(WORDS), 3)
    assert rewards.shape == (8, len(words))
    assert rewards.std() > 1e-3
    for prompt, row in [(0, 0), (3, 7), (7, 15), (2, 100), (5, 239), (1, 240), (6, 1000), (4, 3614)]:
        text = [WORDS[word] for word in words[row].tolist() if word >= 0]
        ids = tokenizer(f"{PROMPTS[prompt]} {' '.join(text)}").input_ids
        ids = [token for token in ids if token != tokenizer.eos_token_id] + [tokenizer.eos_token_id]
        with torch.no_grad():
            alone = model(torch.tensor([ids])).logits.item()
        assert math.isclose(rewards[prompt, row].item(), alone, abs_tol=1e-5), (prompt, row)
