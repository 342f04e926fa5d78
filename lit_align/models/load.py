"""Building models and tokenizers from a `ModelConfig`, and writing them back in Hugging Face form."""

from __future__ import annotations

import difflib
import math
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_align.errors import UserError
from lit_align.models.adapters import is_adapted, merged_state, with_lora, without_weights
from lit_align.models.config import ModelConfig
from lit_align.models.logprobs import check_head
from lit_align.models.sharding import whole_state
from lit_align.models.shared_trunk import save_adapter


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a pad token and, where `config.chat_template` names one, that template.

    Raises:
        UserError: No tokenizer there, no EOS token, a `pad_token` that it does not know, or no template file.
    """
    tokenizer = _from_hub(AutoTokenizer, config.tokenizer_location, "tokenizer", config)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer at {config.tokenizer_location!r} names no EOS token, so no response could ever end. Add "
            '"eos_token" to its tokenizer_config.json.'
        )
    if config.pad_token is not None:
        if config.pad_token not in tokenizer.get_vocab():
            raise UserError(f"pad_token {config.pad_token!r} is not in the tokenizer's vocabulary.")
        tokenizer.pad_token = config.pad_token
    elif tokenizer.pad_token_id is None:
        # Harmless here, because masks come from lengths and never from comparing token ids.
        tokenizer.pad_token = tokenizer.eos_token
    if config.chat_template is not None:
        template = Path(config.chat_template)
        if not template.is_file():
            raise UserError(f"There is no chat template file {config.chat_template!r}.")
        tokenizer.chat_template = template.read_text()
    return tokenizer


def load_policy(config: ModelConfig) -> PreTrainedModel:
    """A causal language model, in train mode; with `config.lora` a peft model around it.

    Raises:
        UserError: No model there, weights that do not fit, weights that are not safetensors, a vocabulary smaller than the
            tokenizer's, or layers for an adapter that are not there.
    """
    if config.init == "random":
        model_config = pretrained_config(config)
        model = AutoModelForCausalLM.from_config(
            model_config, attn_implementation=config.attn_implementation, trust_remote_code=config.trust_remote_code
        ).to(config.torch_dtype)
    else:
        model = _from_hub(
            AutoModelForCausalLM,
            config.location,
            "model",
            config,
            config=pretrained_config(config),
            dtype=config.torch_dtype,
            attn_implementation=config.attn_implementation,
            use_safetensors=True,
        )
    _check_vocabulary(model, config)
    check_head(model)
    return _adapted(model, config).train()


def load_reward_model(config: ModelConfig) -> PreTrainedModel:
    """A trunk with one scalar head, in train mode; with `config.lora` a peft model around it.

    A head that the folder does not have is drawn from normal(0, 1/sqrt(d + 1)), d the width of the trunk (Huang et al. 2024,
    "The N+ Implementation Details of RLHF with PPO", detail 12).

    Raises:
        UserError: As `load_policy`; and an architecture without a sequence-classification head named `score`, or a
            tokenizer whose pad token is its EOS token.
    """
    tokenizer = load_tokenizer(config)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"The tokenizer at {config.tokenizer_location!r} pads with its EOS token, and transformers reads a reward model's "
            "score at the last token that is not padding, so an exported one would be read one token early. Set pad_token in "
            "the model's settings to a token that never occurs in your data, such as a reserved one."
        )
    model_config = pretrained_config(config)
    model_config.num_labels = 1
    model_config.pad_token_id = tokenizer.pad_token_id
    if config.init == "random":
        model = AutoModelForSequenceClassification.from_config(
            model_config, attn_implementation=config.attn_implementation, trust_remote_code=config.trust_remote_code
        ).to(config.torch_dtype)
        head_is_new = True
    else:
        model, found = _from_hub(
            AutoModelForSequenceClassification,
            config.location,
            "model",
            config,
            config=model_config,
            dtype=config.torch_dtype,
            attn_implementation=config.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
        head_is_new = "score.weight" in found["missing_keys"]
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"{type(model).__name__} has no linear head named `score`, so lit_align cannot read rewards from it. "
            "Use a decoder architecture such as Llama, Qwen or GPT-2."
        )
    if head_is_new:
        nn.init.normal_(head.weight, std=1 / math.sqrt(head.in_features + 1))
    _check_vocabulary(model, config)
    return _adapted(model, config).train()


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, *, write: bool = True
) -> None:
    """Writes a model and its tokenizer as a Hugging Face folder, whole or not at all.

    A trained adapter is merged into the weights, so that the folder loads like any other; by itself it is in `adapter/`, from
    where `reward_on_trunk` takes that of a reward model.

    Args:
        model: Any transformers model, or a peft model around one. Weights that are sharded over ranks (FSDP2) are gathered, so
            every rank has to call.
        tokenizer: Saved beside it, with its chat template.
        folder: Replaced if it is there.
        write: False on the ranks that only take part in the gathering.
    """
    state = whole_state(model)
    if not write:
        return
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if is_adapted(model):
        without_weights(model).save_pretrained(partial, state_dict=merged_state(model, state))
        save_adapter(model, state, tokenizer, partial / "adapter")
    else:
        model.save_pretrained(partial, state_dict=state)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def pretrained_config(config: ModelConfig) -> PretrainedConfig:
    """A model's configuration, with the settings that a `ModelConfig` replaces.

    Raises:
        UserError: There is none at its path, or `overrides` names a setting that it does not have.
    """
    model_config = _from_hub(AutoConfig, config.location, "model", config)
    for name, value in config.overrides.items():
        if not hasattr(model_config, name):
            near = difflib.get_close_matches(name, vars(model_config), 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UserError(f"overrides: {type(model_config).__name__} has no setting {name!r}{hint}")
        setattr(model_config, name, value)
    for name, value in vars(model_config).items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, (int, float)):
            setattr(model_config, name, config.dropout)
    return model_config


def _adapted(model: PreTrainedModel, config: ModelConfig) -> Any:
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model if config.lora is None else with_lora(model, config.lora)


def _from_hub(auto_class: Any, location: str, what: str, source: ModelConfig, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained`, with its errors as sentences."""
    try:
        return auto_class.from_pretrained(
            location, revision=source.revision, trust_remote_code=source.trust_remote_code, **kwargs
        )
    except (OSError, ValueError) as error:
        there = Path(location).exists()
        if not there and (location.startswith((".", "/", "~")) or location.count("/") > 1):
            run = ". The run that makes it writes it when it is through" if Path(location).name == "model" else ""
            raise UserError(f"No {what} could be loaded: there is no folder {location!r}{run}.") from error
        where = f"folder {location!r}" if there else f"{location!r} (no such folder, so it was looked up on the hub)"
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"No {what} could be loaded from {where}: {reason}") from error


def _check_vocabulary(model: PreTrainedModel, config: ModelConfig) -> None:
    size = len(load_tokenizer(config))
    rows = model.get_input_embeddings().num_embeddings
    if size > rows:
        raise UserError(
            f"The tokenizer at {config.tokenizer_location!r} has {size} tokens, the model at {config.location!r} has "
            f"embeddings for {rows}. Name the tokenizer the model was trained with, or, with init: random, set overrides: "
            f"{{vocab_size: {size}}}."
        )
