"""Reference log-probs from disk: the run of a frozen copy; made once, found again, made anew when anything changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.data import GroupDataModule, LabelData, PreferenceData
from lit_align.errors import UserError
from lit_align.losses import SimPO
from lit_align.methods import DPO, KTO, SFT, reference_cache
from lit_align.models import CachedReference, FrozenReference, LoRAConfig, ModelConfig, load_policy, response_logps

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
METHODS = {"dpo": (DPO, PreferenceData), "kto": (KTO, LabelData)}


def trained_start(folder: Path, seed: int = 1) -> Path:
    seed_everything(seed, verbose=False)
    module = SFT(ModelConfig("mini_instruct", init="random"))
    module.configure_model()
    module.export(folder)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return trained_start(tmp_path_factory.mktemp("cached") / "start")


def run(
    name: str,
    start: Path,
    folder: Path,
    reference: FrozenReference | CachedReference,
    epochs: int = 1,
    data: GroupDataModule | None = None,
    lora: LoRAConfig | None = None,
    ckpt_path: Path | None = None,
    **trainer: object,
) -> LightningModule:
    """Shuffled batches of ragged rows, the last one smaller, and validation in between."""
    method, rows = METHODS[name]
    seed_everything(7, verbose=False)
    module = method(
        policy=ModelConfig(str(start), lora=lora),
        reference=reference,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )
    data = data or rows("mini_instruct", val="mini_instruct", max_rows=45, batch_size=8, val_batch_size=500)
    options = {"callbacks": [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)], **trainer}
    fit = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **options,
    )  # fmt: skip
    fit.fit(module, data, ckpt_path=ckpt_path)
    module.logged = {key: float(value) for key, value in fit.callback_metrics.items()}
    return module


def assert_same(actual: LightningModule, expected: LightningModule) -> None:
    theirs = actual.state_dict()
    assert [key for key, value in expected.state_dict().items() if not torch.equal(theirs[key], value)] == []


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_a_cached_run_is_the_run_with_a_frozen_copy(name, lora, start, tmp_path):
    frozen = run(name, start, tmp_path / "frozen", FrozenReference(), lora=lora)
    cached = run(name, start, tmp_path / "cached", CachedReference(str(tmp_path / "logps")), lora=lora)
    assert_same(cached, frozen)
    assert cached.logged["train/loss"] == frozen.logged["train/loss"]
    assert cached.logged["val/loss"] == pytest.approx(frozen.logged["val/loss"], abs=1e-6)
    assert len(list((tmp_path / "logps").iterdir())) == 2


@pytest.mark.parametrize("name", METHODS)
def test_later_epochs_are_the_same_up_to_rounding(name, start, tmp_path):
    frozen = run(name, start, tmp_path / "frozen", FrozenReference(), epochs=2)
    cached = run(name, start, tmp_path / "cached", CachedReference(str(tmp_path / "logps")), epochs=2)
    for a, b in zip(cached.parameters(), frozen.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The trained weights are in bfloat16")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
@pytest.mark.parametrize("kind", ["frozen", "cached"])
def test_before_the_first_step_policy_and_reference_are_one(precision, lora, kind, start, tmp_path):
    reference = FrozenReference() if kind == "frozen" else CachedReference(str(tmp_path / "logps"))
    settings = {"precision": precision, "max_steps": 1, "callbacks": [], "enable_checkpointing": False}
    module = run("dpo", start, tmp_path, reference, lora=lora, limit_val_batches=0, **settings)
    assert module.logged["train/loss"] == pytest.approx(0.69314718, abs=1e-7)
    assert module.logged["train/rewards/margin"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_the_next_run_reads_what_the_first_one_wrote(name, start, tmp_path, monkeypatch):
    reference = CachedReference(str(tmp_path / "logps"))
    first = run(name, start, tmp_path / "first", reference)
    monkeypatch.setattr(reference_cache, "response_logps", None)
    second = run(name, start, tmp_path / "second", reference)
    assert_same(second, first)


def test_no_reference_stays_in_memory_and_one_can_be_had(start, tmp_path):
    module = run("dpo", start, tmp_path, CachedReference(str(tmp_path / "logps")))
    assert not module._reference.in_memory
    expected = load_policy(ModelConfig(str(start))).state_dict()
    found = module.reference_model().state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not module.reference_model().training
    trained_start(start.parent / "moved", seed=2)
    module._reference.forget()
    module._reference._reload = lambda: load_policy(ModelConfig(str(start.parent / "moved")))
    with pytest.raises(UserError, match="another reference model"):
        module.reference_model()


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_those_of_the_reference(name, start, tmp_path):
    """Row by row and one at a time, against what the lookup gives for batches in another order."""
    rows = METHODS[name][1]
    data = rows("mini_instruct", val="mini_instruct", max_rows=20, batch_size=8, val_batch_size=500, seed=3)
    module = run(name, start, tmp_path, CachedReference(str(tmp_path / "logps")), data=data)
    model = load_policy(ModelConfig(str(start))).eval()
    table = module._reference_cache._tables["train"]
    loader = data._make_loader("train", 1, shuffle=False)
    for batch in loader:
        for part, of_part in module.reference_batches(batch).items():
            with torch.no_grad():
                expected = of_part.weighted_sums(response_logps(model, of_part))
            torch.testing.assert_close(table.look_up(of_part, part), expected, atol=1e-5, rtol=1e-5)
    assert len(table.sums) == (2 if name == "kto" else 1)


def test_what_changes_is_made_anew(start, tmp_path):
    folder = tmp_path / "logps"
    seen: set[str] = set()

    def new_files(start: Path, number: int, **options: object) -> None:
        data = PreferenceData("mini_instruct", batch_size=8, **{"max_rows": 16, **options.pop("data", {})})
        options |= {"callbacks": [], "enable_checkpointing": False}
        run("dpo", start, tmp_path / "run", CachedReference(str(folder)), data=data, **options)
        now = {file.name for file in folder.iterdir()}
        assert len(now - seen) == number
        seen.update(now)

    new_files(start, 1)
    new_files(start, 0)
    new_files(start, 0, max_steps=1)
    new_files(start, 1, data={"max_rows": 17})
    new_files(start, 1, data={"max_length": 4})
    new_files(start, 1, precision="bf16-mixed")
    new_files(trained_start(tmp_path / "other", seed=2), 1)
    # Another tokenizer: the ids of two words change places.
    swapped = trained_start(tmp_path / "swapped")
    text = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["cats"], vocabulary["dogs"] = vocabulary["dogs"], vocabulary["cats"]
    (swapped / "tokenizer.json").write_text(json.dumps(text))
    new_files(swapped, 1)


def test_a_damaged_file_is_made_anew(start, tmp_path):
    reference = CachedReference(str(tmp_path / "logps"))
    first = run("dpo", start, tmp_path / "first", reference)
    for file in (tmp_path / "logps").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert_same(run("dpo", start, tmp_path / "second", reference), first)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [True, False])
def test_a_resumed_run_ends_the_same_with_or_without_the_file(name, keep, start, tmp_path):
    reference = CachedReference(str(tmp_path / "logps"))
    whole = run(name, start, tmp_path / "whole", reference, epochs=2)
    checkpoint = tmp_path / "whole" / "step=8.ckpt"
    assert all(key.startswith("policy.") for key in torch.load(checkpoint, weights_only=True)["state_dict"])
    if not keep:
        for file in (tmp_path / "logps").iterdir():
            file.unlink()
    assert_same(run(name, start, tmp_path / "resumed", reference, epochs=2, ckpt_path=checkpoint), whole)


def test_validation_by_itself(start, tmp_path):
    data = PreferenceData("mini_instruct", val="mini_instruct", max_rows=8, val_batch_size=500)
    values = []
    for reference in (FrozenReference(), CachedReference(str(tmp_path / "logps"))):
        module = DPO(ModelConfig(str(start)), reference=reference)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        values.append(trainer.validate(module, data, verbose=False)[0]["val/loss"])
    assert values[0] == values[1] == pytest.approx(0.693147, abs=1e-6)


def test_a_dry_run_writes_nothing(start, tmp_path):
    run("dpo", start, tmp_path, CachedReference(str(tmp_path / "logps")), fast_dev_run=2, callbacks=[])
    assert not (tmp_path / "logps").exists()


def on_a_rank(start: Path, folder: Path) -> dict[str, dict]:
    """Every method with a frozen copy and with a cache, on this rank."""
    references = {"frozen": FrozenReference(), "cached": CachedReference(str(folder / "logps"))}
    trained = {}
    for name, (_, rows) in METHODS.items():
        for kind, reference in references.items():
            # 13 groups in batches of 3 on 2 ranks: of the last one the second rank gets a filler.
            data = rows("mini_instruct", max_rows=13, batch_size=3)
            options = {"devices": 2, "strategy": "ddp", "callbacks": [], "enable_checkpointing": False}
            module = run(name, start, folder / os.environ["RANK"], reference, data=data, **options)
            trained[f"{name} {kind}"] = {key: value.clone() for key, value in module.state_dict().items()}
    return trained


@pytest.mark.slow
def test_two_ranks_score_a_share_each(start, tmp_path, on_two_ranks):
    for trained in on_two_ranks(on_a_rank, start, tmp_path):
        for name in METHODS:
            frozen, cached = trained[f"{name} frozen"], trained[f"{name} cached"]
            assert all(torch.equal(cached[key], value) for key, value in frozen.items())
    assert len(list((tmp_path / "logps").iterdir())) == 2


def test_what_cannot_be_cached_is_refused(start, tmp_path):
    with pytest.raises(UserError, match=r"policy\.init is random"):
        DPO(ModelConfig("mini_instruct", init="random"), reference=CachedReference())
    with pytest.raises(UserError, match="SimPO compares with no reference"):
        DPO(ModelConfig(str(start)), loss=SimPO(), reference=CachedReference())
    module = DPO(ModelConfig(str(start)), reference=CachedReference(str(tmp_path)))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    with pytest.raises(UserError, match=r"DataModule of lit_align\.data"):
        trainer.fit(module, torch.utils.data.DataLoader([0], batch_size=None))
