"""One trunk for four models: the reward model is an adapter and a head on the policy's own weights."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from lit_align.data import PreferenceData, PromptData, padded
from lit_align.data.mini_instruct import PROMPTS
from lit_align.errors import UserError
from lit_align.feedback import (
    AdapterReward,
    Answer,
    Clipped,
    MiniInstructGold,
    Normalised,
    RewardModelReward,
    WeightedSum,
)
from lit_align.losses import FixedKL
from lit_align.methods import PPO, SFT, RewardModel
from lit_align.models import (
    LoRAConfig,
    ModelConfig,
    load_policy,
    load_reward_model,
    load_tokenizer,
    reward_on_trunk,
    save_model,
)
from lit_align.rollout import RolloutConfig

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
ANSWERS = [
    Answer(PROMPTS[0], response, [3, 4], [5, 1], finished)
    for response, finished in [("cats are lovely", True), ("dogs", False), ("cats are nasty um", True), ("", True)]
]
LORA = LoRAConfig(rank=2, alpha=8)


def quiet(folder: Path, **settings: Any) -> Trainer:
    options: dict[str, Any] = {"enable_checkpointing": False, "logger": False, "max_epochs": 1} | settings
    return Trainer(
        accelerator="cpu", default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-2)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seed_everything(1, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    folder = tmp_path_factory.mktemp("trunk") / "start"
    module.export(folder)
    return folder


@pytest.fixture(scope="module")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a RewardModel run with an adapter to `start` leaves in `model/`; its validation sets a bias."""
    seed_everything(2, verbose=False)
    folder = tmp_path_factory.mktemp("reward_run")
    module = RewardModel(ModelConfig(str(start), lora=LORA), optimizer=adamw)
    data = PreferenceData(train="mini_instruct", val="mini_instruct", max_rows=64, batch_size=8)
    quiet(folder).fit(module, data)
    assert float(module.bias) != 0
    module.export(folder / "model")
    return folder / "model"


@pytest.fixture
def policy(start: Path) -> Any:
    """In the middle of its training: an adapter of its own that does something, in train mode."""
    torch.manual_seed(4)
    model = load_policy(ModelConfig(str(start), lora=LoRAConfig(rank=3)))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def attached(policy: Any, trained: Path, **settings: int) -> AdapterReward:
    reward = AdapterReward(str(trained / "adapter"), **settings)
    reward.attach(policy)
    return reward


def test_scores_are_those_of_the_merged_model(policy: Any, trained: Path) -> None:
    expected = RewardModelReward(ModelConfig(str(trained)))(ANSWERS).total
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(attached(policy, trained)(ANSWERS).total, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(attached(policy, trained, batch_size=1)(ANSWERS).total, expected, atol=1e-4, rtol=0)


def test_every_architecture_keeps_its_trunk(architecture: PretrainedConfig, random_groups: Any, tmp_path: Path) -> None:
    """The plain model that peft itself merges is the other implementation; the folders are written by hand."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(architecture).save_pretrained(tmp_path / "start")
    tokenizer = load_tokenizer(ModelConfig("mini_instruct", init="random"))
    tokenizer.save_pretrained(tmp_path / "start")
    of_reward = load_reward_model(ModelConfig(str(tmp_path / "start"), lora=LORA)).eval()
    for parameter in of_reward.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    of_reward.config.reward_bias = 0.5
    save_model(of_reward, tokenizer, tmp_path / "reward")
    batch = padded(random_groups([2, 3], longest=5), pad_id=0)
    on_trunk = reward_on_trunk(
        load_policy(ModelConfig(str(tmp_path / "start"), lora=LORA)), tmp_path / "reward" / "adapter"
    )
    plain = of_reward.merge_and_unload()
    with torch.no_grad():
        hidden = [model.base_model(**batch.model_inputs).last_hidden_state for model in (plain, on_trunk.model.model)]
        expected, found = (model.score(h) for model, h in zip((plain, on_trunk.model.model), hidden, strict=True))
    keep = batch.model_inputs["attention_mask"].bool()
    torch.testing.assert_close(found[keep], expected[keep], atol=1e-4, rtol=1e-4)
    assert on_trunk.bias == 0.5


def test_the_weights_are_held_once(policy: Any, trained: Path) -> None:
    on_trunk = reward_on_trunk(policy, trained / "adapter")
    frozen = {parameter.data_ptr() for parameter in policy.parameters() if not parameter.requires_grad}
    own = {name: p for name, p in on_trunk.model.named_parameters() if p.data_ptr() not in frozen}
    assert all(".lora_" in name or ".score." in name for name in own)
    saved = load_file(trained / "adapter" / "adapter_model.safetensors")
    # peft has the head twice: as it was, and as it was trained.
    head = policy.config.hidden_size
    assert sum(p.numel() for p in own.values()) == sum(value.numel() for value in saved.values()) + head
    of_trunk = {p.data_ptr() for p in policy.get_base_model().base_model.parameters() if not p.requires_grad}
    assert of_trunk <= {p.data_ptr() for p in on_trunk.model.parameters()}
    mine = {p.data_ptr() for p in policy.parameters() if p.requires_grad}
    assert not mine & {p.data_ptr() for p in on_trunk.model.parameters()}


def test_scoring_leaves_the_policy_and_the_random_state_alone(policy: Any, trained: Path) -> None:
    def seen() -> tuple[object, ...]:
        return (
            list(policy.active_adapters),
            sorted(policy.peft_config),
            [name for name, _ in policy.named_modules()],
            [module.training for module in policy.modules()],
            [(name, p.requires_grad, p.grad is None, p.data_ptr()) for name, p in policy.named_parameters()],
            torch.get_rng_state().tolist(),
        )

    before, state = seen(), copy.deepcopy(policy.state_dict())
    scores = attached(policy, trained)(ANSWERS)
    assert not scores.total.requires_grad
    assert seen() == before
    after = policy.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], value) for name, value in state.items())


def test_the_policys_adapter_has_no_say(policy: Any, trained: Path) -> None:
    reward = attached(policy, trained)
    before = reward(ANSWERS).total
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 1.0
    assert torch.equal(reward(ANSWERS).total, before)


def test_validation_leaves_nothing_that_training_could_not_use(policy: Any, trained: Path) -> None:
    reward = attached(policy, trained)
    with torch.inference_mode():
        validated = reward(ANSWERS).total.tolist()
    assert reward.score_rollout(ANSWERS).total.tolist() == validated


def test_the_policys_precision_counts_and_autocast_does_not(policy: Any, trained: Path) -> None:
    reward = attached(policy, trained)
    expected = reward(ANSWERS).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(reward(ANSWERS).total, expected, rtol=0, atol=0)
    policy.to(torch.bfloat16)  # as Lightning does under `bf16-true`, and then around a step:
    torch.set_default_dtype(torch.bfloat16)
    try:
        scores = reward(ANSWERS).total
    finally:
        torch.set_default_dtype(torch.float32)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, expected)
    torch.testing.assert_close(scores, expected, rtol=0.05, atol=0.05)


def test_a_policy_without_an_adapter_is_refused(start: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"needs a policy with LoRA.*Set policy\.lora, or take RewardModelReward"):
        attached(load_policy(ModelConfig(str(start))), trained)


def test_another_base_is_refused(trained: Path) -> None:
    other = load_policy(ModelConfig("mini_instruct", init="random", lora=LORA))
    with pytest.raises(UserError, match="belongs to other weights"):
        attached(other, trained)


def test_weights_that_became_other_tensors_are_refused(policy: Any, trained: Path) -> None:
    reward = attached(policy, trained)
    norm = policy.get_base_model().model.norm
    norm.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
    with pytest.raises(UserError, match="no longer the tensors that AdapterReward was attached to"):
        reward(ANSWERS)


def test_what_is_no_reward_adapter_is_refused(policy: Any, trained: Path, tmp_path: Path) -> None:
    save_model(policy, load_tokenizer(ModelConfig("mini_instruct", init="random")), tmp_path / "model")
    with pytest.raises(UserError, match="holds the adapter of a policy, and no reward head"):
        attached(policy, tmp_path / "model")
    with pytest.raises(UserError, match=r"no lit_align\.json in .*Name the folder model/adapter of a RewardModel run"):
        attached(policy, trained.parent)


def test_without_a_policy_it_says_what_to_take(trained: Path) -> None:
    with pytest.raises(UserError, match=r"none was attached to it\. Elsewhere take RewardModelReward"):
        AdapterReward(str(trained / "adapter"))(ANSWERS)


def test_the_adapter_needs_nothing_beside_it(policy: Any, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "adapter", tmp_path / "alone")
    reward = AdapterReward(str(tmp_path / "alone"))
    reward.attach(policy)
    assert torch.equal(reward(ANSWERS).total, attached(policy, trained)(ANSWERS).total)
    facts = json.loads((tmp_path / "alone" / "lit_align.json").read_text())
    assert facts["reward_bias"] == json.loads((trained / "config.json").read_text())["reward_bias"]


WRAPPERS: dict[str, Callable[[AdapterReward], Any]] = {
    "sum": lambda reward: WeightedSum({"model": reward, "gold": MiniInstructGold()}, {"model": 1.0, "gold": 0.0}),
    "clipped": lambda reward: Clipped(reward, low=-1e3),
    "normalised": Normalised,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_pass_the_policy_on(wrapper: str, policy: Any, trained: Path) -> None:
    reward = WRAPPERS[wrapper](AdapterReward(str(trained / "adapter")))
    reward.attach(policy)
    torch.testing.assert_close(reward(ANSWERS).total, attached(policy, trained)(ANSWERS).total)


@pytest.mark.parametrize("lora", [LoRAConfig(), LORA])
def test_an_adapter_that_nothing_would_train_is_refused(lora: LoRAConfig, trained: Path) -> None:
    with pytest.raises(UserError, match=r"model\.lora would have no effect.*AdapterReward"):
        RewardModelReward(ModelConfig(str(trained), lora=lora))


def ppo(start: Path, trained: Path, folder: Path, ckpt_path: Path | None = None) -> tuple[PPO, list[Path]]:
    """Two rollouts of two minibatches, with a checkpoint at every step."""
    seed_everything(7 if ckpt_path is None else 99, verbose=False)
    module = PPO(
        ModelConfig(str(start), lora=LORA),
        AdapterReward(str(trained / "adapter")),
        RolloutConfig(max_new_tokens=5),
        kl=FixedKL(0.1),
        minibatches=2,
        optimizer=adamw,
    )
    folder /= "resumed" if ckpt_path else "whole"
    checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    data = PromptData(train="mini_instruct", val="mini_instruct", max_rows=16, batch_size=8)
    trainer = quiet(folder, callbacks=[checkpoints], enable_checkpointing=True)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    assert trainer.global_step == 4
    return module, sorted(folder.glob("*.ckpt"))


def test_ppo_trains_its_own_adapter_alone_and_resumes(start: Path, trained: Path, tmp_path: Path) -> None:
    module, checkpoints = ppo(start, trained, tmp_path)
    merged = RewardModelReward(ModelConfig(str(trained)))(ANSWERS).total
    torch.testing.assert_close(module.reward(ANSWERS).total, merged, atol=1e-4, rtol=0)

    (optimizer,) = module.trainer.optimizers
    of_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained_by_policy = {id(p) for p in [*module.policy.parameters(), *module.value_head.parameters()]}
    assert of_optimizer <= trained_by_policy
    assert {id(p) for p in module.parameters()} == trained_by_policy
    kept = torch.load(checkpoints[1], weights_only=True)
    assert kept["ppo"]["reward"] == {}
    adapter_of_policy = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    saved = {name: value for name, value in kept["state_dict"].items() if ".lora_" in name}
    assert sum(value.numel() for value in saved.values()) == adapter_of_policy
    assert not [name for name in kept["state_dict"] if "score" in name]

    resumed, _ = ppo(start, trained, tmp_path, checkpoints[1])
    before, after = module.state_dict(), resumed.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_ppo_without_lora_is_refused_before_it_starts(start: Path, trained: Path) -> None:
    module = PPO(ModelConfig(str(start)), AdapterReward(str(trained / "adapter")), RolloutConfig(max_new_tokens=5))
    with pytest.raises(UserError, match="needs a policy with LoRA"):
        module.configure_model()
    assert isinstance(module.policy, nn.Module)
