"""`lit-align plan`: what it says of a config, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_align.commands.plan import plan
from lit_align.errors import UserError
from lit_align.plan.memory import peak
from lit_align.plan.read import plan_of, read_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "dpo.yaml"
    given = {
        "trainer": {"accelerator": "cpu", "devices": 1, "precision": "32-true"},
        "model": {"class_path": "DPO", "init_args": {"policy": {"path": "mini_instruct", "init": "random"}}},
        "data": {
            "class_path": "PreferenceData",
            "init_args": {"train": "mini_instruct", "batch_size": 3, "max_length": 50},
        },
    }
    file.write_text(yaml.safe_dump(given))
    return file


def test_what_is_read_of_a_config(config: Path, tmp_path: Path):
    work = plan_of(read_config([config])).work
    assert (work.rows, work.columns, work.ranks, work.moments) == (6, 50, 1, 2)
    assert [model.name for model in work.held] == ["policy", "reference"]
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({
        "trainer": {"devices": 4, "num_nodes": 2, "strategy": "fsdp2", "accumulate_grad_batches": 2},
        "model": {"init_args": {"policy": {"lora": {"rank": 4}, "activation_checkpointing": True}}},
    }))  # fmt: skip
    merged = plan_of(read_config([config, more]))
    assert (merged.devices, merged.work.ranks, merged.work.accumulates) == (8, 8, True)
    assert (merged.work.held[0].rank, merged.work.held[0].recompute) == (4, True)
    assert not merged.work.held[1].shares
    assert peak(merged.work).total < peak(work).total


def test_the_table(config: Path, capsys: pytest.CaptureFixture[str]):
    plan([str(config)], memory=1)
    said = capsys.readouterr().out
    assert said.startswith(
        "DPO on 1 device: policy 0.00B, reference 0.00B\n85,056 weights are trained, on batches of 6 rows"
    )
    assert "It fits a device with 1 GB." in said


def test_what_does_not_fit_is_refused_with_what_helps(config: Path):
    with pytest.raises(UserError, match=r"It does not fit: .* What helps: .*half the batch"):
        plan([str(config)], memory=0.001)


def test_what_cannot_be_planned(config: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"name it with --config"):
        plan()
    with pytest.raises(UserError, match=r"There is no config .*missing\.yaml"):
        plan([str(tmp_path / "missing.yaml")])
    auto = tmp_path / "auto.yaml"
    auto.write_text("trainer: {devices: auto}\n")
    with pytest.raises(UserError, match=r"trainer\.devices is 'auto': say how many"):
        plan([str(config), str(auto)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer: {devices: [", r"more\.yaml, line 1: this is no YAML: "),
        ("plain words", r"more\.yaml holds no settings"),
        ("", r"more\.yaml holds no settings"),
        ("trainr: {devices: 2}", r"no key 'trainr'; did you mean 'trainer'\?"),
        (
            "trainer: {strategy: deepspeed_stage_2}",
            r"plan knows ddp, fsdp2 and fsdp2_offload, and not deepspeed_stage_2",
        ),
        (
            "model: {init_args: {policy: {path: runs/none/model, init: pretrained}}}",
            r"runs/none/model is not there yet\. Run",
        ),
    ],
)
def test_configs_that_are_none(config: Path, tmp_path: Path, text: str, said: str):
    more = tmp_path / "more.yaml"
    more.write_text(text)
    with pytest.raises(UserError, match=said):
        plan([str(config), str(more)])
    with pytest.raises(UserError, match=r"is a folder: name one of its configs"):
        plan([str(tmp_path)])


def test_several_devices_without_a_strategy_are_ddp(config: Path, tmp_path: Path):
    more = tmp_path / "more.yaml"
    more.write_text("trainer: {devices: 2}")
    assert plan_of(read_config([config, more])).work.buckets
    assert not plan_of(read_config([config])).work.buckets


@pytest.mark.parametrize(
    ("loss", "held"), [("lit_align.losses.DPO", ["policy", "reference"]), ("lit_align.losses.SimPO", ["policy"])]
)
def test_a_loss_without_a_reference_holds_none(config: Path, tmp_path: Path, loss: str, held: list[str]):
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"model": {"init_args": {"loss": {"class_path": loss}}}}))
    work = plan_of(read_config([config, more])).work
    assert [model.name for model in work.held] == held
    assert work.runs_frozen == (len(held) > 1)


def test_the_models_of_judges_and_callbacks_are_counted(tmp_path: Path):
    model = {"path": "mini_instruct", "init": "random"}
    judge = {"class_path": "LocalModel", "init_args": {"model": model | {"overrides": {"num_hidden_layers": 1}}}}
    reward = {
        "class_path": "lit_align.feedback.RewardModelReward",
        "init_args": {"model": model | {"dtype": "bfloat16"}},
    }
    given = {
        "trainer": {
            "accelerator": "cpu", "devices": 1,
            "callbacks": [{"class_path": "callbacks.RewardEval", "init_args": {
                "reward": reward, "prompts": "mini_instruct", "rollout": {"max_new_tokens": 4}, "every_n_steps": 5,
            }}],
        },
        "model": {"class_path": "OnlineDPO", "init_args": {
            "policy": model, "rollout": {"max_new_tokens": 4},
            "judge": {"class_path": "lit_align.feedback.LLMJudge", "init_args": {"model": judge}},
        }},
        "data": {"class_path": "PromptData", "init_args": {"train": "mini_instruct"}},
    }  # fmt: skip
    file = tmp_path / "online.yaml"
    file.write_text(yaml.safe_dump(given))
    policy, reference, local, scored = plan_of(read_config([file])).work.held
    assert [m.name for m in (policy, reference, local, scored)] == [
        "policy", "reference", "LocalModel", "RewardModelReward",
    ]  # fmt: skip
    assert policy.shape == reference.shape
    assert scored.shape.parameters == policy.shape.parameters
    assert (scored.width, scored.is_reward) == (2, True)
    assert local.parameters < policy.parameters
    assert not local.is_reward


def test_what_moves_has_an_adapter_of_its_own(config: Path, tmp_path: Path):
    more = tmp_path / "more.yaml"
    moving = {"class_path": "lit_align.models.MovingReference", "init_args": {"every": 3}}
    more.write_text(yaml.safe_dump({"model": {"init_args": {"policy": {"lora": {"rank": 4}}}}}))
    frozen = plan_of(read_config([config, more])).work.held[1]
    more.write_text(yaml.safe_dump({"model": {"init_args": {"policy": {"lora": {"rank": 4}}, "reference": moving}}}))
    policy, moved = plan_of(read_config([config, more])).work.held
    assert frozen.weights == 0
    assert moved.weights == policy.trained_bytes == 4 * policy.shape.linear * 4
