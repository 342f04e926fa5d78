"""What `lit-align data` says of rows, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from lit_align.commands.data import data
from lit_align.data.overview import histogram, survey
from lit_align.errors import UserError

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal so wide that nothing is wrapped."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """The folder of a tokenizer with one token a letter."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def _file(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


PAIRS = [
    {"prompt": "a b c", "chosen": "d e", "rejected": "f", "margin": 0.5, "id": 1},
    {"prompt": "a b c", "chosen": "d e f g", "rejected": "h", "id": 2},
    {"prompt": "a b c", "chosen": "d e", "rejected": "f"},
    {"prompt": "i", "chosen": "j", "rejected": "j"},
    {"prompt": "k", "chosen": "", "rejected": "l"},
    {"prompt": "m"},
    {"prompt": "n", "responses": ["o", "p", "q"], "scores": [1, 1, 1]},
    {"prompt": "r", "completion": "s t", "label": True, "weights": [0.5, 1]},
]


def test_what_is_counted(tmp_path: Path, tokenizer: str) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    overview = survey(_file(tmp_path, PAIRS), tokenizer=fast, show=2)
    assert overview.kinds == {
        "preference: prompt + chosen + rejected + margin": 1,
        "preference: prompt + chosen + rejected": 3,
        "prompt alone: prompt": 1,
        "scored responses: prompt + responses + scores": 1,
        "completion: prompt + completion + label + weights": 1,
    }
    assert overview.unread == {"id": 2}
    assert overview.bad.bad == 1
    assert "row 5, column 'chosen'" in overview.bad.reasons[0]
    assert overview.sizes == {2: 4, 0: 1, 3: 1, 1: 1}
    assert overview.takes == {"PreferenceData": 4, "RankingData": 4, "LabelData": 5}
    assert overview.ties == {"RankingData": 1}
    assert overview.labels == {True: 1}
    assert overview.extras == {"margins": 1, "weights": 1}
    assert (overview.repeated, overview.echoes, len(overview.prompts)) == (1, 1, 5)
    # With EOS on every response.
    assert list(overview.prompt_lengths) == [3, 3, 3, 1, 1, 1, 1]
    assert [list(of_row) for of_row in overview.response_lengths] == [
        [3, 2], [5, 2], [3, 2], [2, 2], [], [2, 2, 2], [3],
    ]  # fmt: skip
    assert overview.longest == [6, 8, 6, 3, 1, 3, 4]
    assert len(overview.first) == 2


def test_cuts_are_those_that_training_makes(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Half of the tokens are the response's: prompts of 3 and responses of more than 2 lose some where there are 4, of which
    # the first three rows have one each.
    data(_file(tmp_path, PAIRS), tokenizer, max_length=4)
    shown = " ".join(capsys.readouterr().out.split())
    assert "With max_length 4: cut on the left: 3 prompts; on the right: 3 responses. Instead," in shown
    assert "too_long: drop would leave out 3 rows." in shown
    data(_file(tmp_path, PAIRS), tokenizer, max_length=5, max_prompt_length=2)
    shown = " ".join(capsys.readouterr().out.split())
    assert "and max_prompt_length 2: cut on the left: 3 prompts; on the right: 1 response." in shown
    data(_file(tmp_path, PAIRS), tokenizer, max_length=8)
    assert "With max_length 8: nothing is cut." in " ".join(capsys.readouterr().out.split())


def test_rows_are_shown_as_the_model_sees_them(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    data(_file(tmp_path, PAIRS[-1:]), tokenizer, show=1)
    shown = capsys.readouterr().out
    assert "response 1, desirable, 3 tokens" in shown
    # s: green and underlined for its weight; t: the brighter green of every other token; EOS: green again.
    assert "\x1b[4;32ms\x1b[0m\x1b[92m t\x1b[0m\x1b[32m <eos>\x1b[0m" in shown


def test_long_texts_show_their_ends(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, [{"prompt": "a", "completion": "b " * 150}])
    data(path, tokenizer)
    expected = " ".join("b" * 60) + " [... 31 tokens ...] " + " ".join("b" * 59) + " <eos>"
    assert expected in capsys.readouterr().out
    path = _file(tmp_path, [{"prompt": "a", "completion": "x" * 650}])
    data(path)
    assert "x [... 50 characters ...] x" in capsys.readouterr().out.replace("\n", "")


def test_a_character_of_several_tokens_is_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = Tokenizer(BPE())
    letters.pre_tokenizer = ByteLevel(add_prefix_space=False)
    letters.decoder = ByteLevelDecoder()
    alphabet = BpeTrainer(special_tokens=["<eos>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    letters.train_from_iterator([], alphabet)
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>").save_pretrained(tmp_path / "bytes")
    data(_file(tmp_path, [{"prompt": "a", "completion": "so 😊"}]), str(tmp_path / "bytes"))
    shown = capsys.readouterr().out
    assert "response 1, 8 tokens" in shown
    assert "so 😊<eos>" in shown


def test_without_a_tokenizer_lengths_are_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    data(_file(tmp_path, [{"messages": chat}]))
    shown = capsys.readouterr().out
    assert "Lengths in characters" in shown
    assert "Name a --tokenizer" in shown
    assert "user: why?" in shown
    assert "1 of the kind chat: messages" in shown
    assert "SFTData (1 row), PromptData (1 different prompt)" in shown


def test_a_chat_template_of_ones_own(tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = _file(tmp_path, [{"messages": chat}])
    with pytest.raises(UserError, match=r"row 1 is a chat, and the tokenizer .* has no chat template"):
        data(rows, tokenizer)
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for turn in messages %} {{ turn.role[0] }} {{ turn.content }}{% endfor %}{{ ' a' if add_generation_prompt }}"
    )
    capsys.readouterr()
    data(rows, tokenizer, chat_template=str(template))
    assert capsys.readouterr().out.endswith("row 1\nu a a\n-- response 1, 2 tokens\nb <eos>\n")


def test_columns_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, [{"question": "q", "answer": "a"}])
    data(path, columns={"prompt": "question", "completion": "answer"})
    assert "1 of the kind completion: prompt + completion" in capsys.readouterr().out
    data(path, columns={"prompt": "question"})
    assert "1 of the kind prompt alone: prompt" in capsys.readouterr().out


def test_a_chat_template_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chat_template is a tokenizer's: name a --tokenizer"):
        data(_file(tmp_path, PAIRS), chat_template="chat.jinja")


def test_what_cannot_be_shown_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, [{"question": "q"}])
    with pytest.raises(UserError, match=r"No row of .* can be used"):
        data(path)
    assert "the columns question make no known kind" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="count tokens: name a --tokenizer"):
        data(path, max_length=100)
    with pytest.raises(UserError, match="mini_instruct is drawn when training starts"):
        data("mini_instruct")


def test_a_histogram_by_hand() -> None:
    # Steps of 2: four values in [0, 2), two in [2, 4), none in [4, 6), one in [6, 8].
    assert histogram([0, 0, 1, 1, 2, 3, 8], bins=4) == "█▄ ▂"
    assert histogram([5, 5], bins=2) == " █"
    assert histogram([0], bins=2) == "█ "


@pytest.mark.parametrize(
    ("name", "kind", "taker"),
    [
        ("dpo_en_demo.json", "300 of the kind preference after turns", "PreferenceData (300 rows)"),
        ("kto_en_demo.json", "300 of the kind chat: messages + label", "LabelData (300 rows)"),
        ("alpaca_en_demo.json", "999 of the kind instruction: instruction + output + input", "SFTData (999 rows)"),
    ],
)
def test_real_rows(shared_data: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str, taker: str) -> None:
    data(str(shared_data / name))
    shown = " ".join(capsys.readouterr().out.split())
    assert kind in shown
    assert taker in shown
    assert "bad rows" not in shown
