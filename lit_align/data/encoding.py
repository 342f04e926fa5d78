"""`Group`s to `TokenGroup`s: the boundary between prompt and response, EOS, and the one truncation policy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lit_align.data.counts import Counts
from lit_align.data.row_reader import RowError
from lit_align.data.spans import token_weights
from lit_align.errors import UserError
from lit_align.groups import Group, Message, TokenGroup

log = logging.getLogger(__name__)

TooLong = Literal["cut", "drop", "raise"]


@dataclass(frozen=True)
class Lengths:
    """How long a prompt and a response may be, in tokens, and what happens to longer ones.

    Args:
        max_length: Of a prompt and any one of its responses together.
        max_prompt_length: Of a prompt. None cuts a prompt only where it and its longest response exceed `max_length`
            together, and leaves it at least half of that.
        too_long: `cut` takes away the beginning of a prompt (a BOS stays) and the end of a response (which then has no EOS),
            `drop` leaves out the whole group, `raise` stops with an error.
    """

    max_length: int = 1024
    max_prompt_length: int | None = None
    too_long: TooLong = "cut"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UserError(f"max_length must leave room for a prompt and a response, got {self.max_length}.")
        if self.max_prompt_length is not None and not 0 < self.max_prompt_length < self.max_length:
            raise UserError(
                f"max_prompt_length ({self.max_prompt_length}) must be at least 1 and smaller than max_length "
                f"({self.max_length}), or nothing is left for the response."
            )

    @property
    def limits(self) -> str:
        """As the arguments say them."""
        prompt = "" if self.max_prompt_length is None else f" with max_prompt_length {self.max_prompt_length}"
        return f"max_length {self.max_length}{prompt}"

    def room(self, prompt: int, longest_response: int) -> tuple[int, int]:
        """The tokens that a prompt of this length may keep, and those that each of its responses then may."""
        for_prompt = self.max_prompt_length or self.max_length - min(longest_response, self.max_length // 2)
        return for_prompt, self.max_length - min(prompt, for_prompt)


class Encoder:
    """Encodes groups with one tokenizer.

    Plain text: prompt and responses are tokenised separately, the prompt begins with BOS if the tokenizer adds one, a
    response ends with EOS. Chats: the prompt is the templated chat with the generation prompt, a response is what the
    template of the whole chat adds to it, up to where it closes the assistant's turn. So a response is made of the tokens
    that the policy would have to generate after the prompt's, and no token straddles the boundary.

    Args:
        tokenizer: With a chat template if there are chats among the groups.
        lengths: What may be how long.
        counts: Where cut and dropped rows are counted; says what happens to rows that cannot be encoded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, lengths: Lengths, counts: Counts) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"The tokenizer {tokenizer.name_or_path!r} has no EOS token, so no response could ever end."
            )
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.counts = counts
        first = tokenizer("a")["input_ids"][:1]
        self.bos: list[int] = first if first == [tokenizer.bos_token_id] else []
        self.eos: list[int] = [tokenizer.eos_token_id]
        added = tokenizer.added_tokens_decoder
        self.special = {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}
        self._warned_of_turn_end = False

    def encode(self, groups: Iterable[Group]) -> Iterator[tuple[Group, TokenGroup]]:
        """Each group with its token ids, in order; without those dropped or skipped. `TokenGroup.row` counts from 0.

        Raises:
            RowError: A row that the template cannot take or does not extend, unless bad rows are skipped; one that is too
                long where that is an error.
            UserError: Chats, and a tokenizer without a chat template.
        """
        groups = iter(groups)
        row = 0
        while chunk := list(islice(groups, 1000)):
            for group, ids in zip(*self._tokenise(chunk), strict=True):
                try:
                    prompt, responses = self._split(group, ids)
                    tokens = self._fit(group, prompt, responses, self._weigh(group, len(prompt), responses))
                except RowError as error:
                    self.counts.bad_row(error)
                    continue
                if tokens is not None:
                    yield group, tokens._replace(row=row)
                    row += 1

    def _tokenise(self, groups: Sequence[Group]) -> tuple[list[Group], list[list[list[int]]]]:
        """The groups that could be written as text, and the token ids of each one's `_texts`."""
        kept, texts = [], []
        for group in groups:
            try:
                texts.append(self._texts(group))
                kept.append(group)
            except RowError as error:
                self.counts.bad_row(error)
        flat = [text for of_group in texts for text in of_group]
        # One call for all, because fast tokenizers work on a batch in parallel. BOS is added by `_split`: some tokenizers
        # would add a closing token too, and templates bring their own BOS.
        ids = iter(self.tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else [])
        return kept, [list(islice(ids, len(of_group))) for of_group in texts]

    def _texts(self, group: Group) -> list[str]:
        """The prompt, then each response: as it stands for plain text, as the whole templated chat for chats."""
        if isinstance(group.prompt, str):
            return [group.prompt, *group.responses]
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{group.source} is a chat, and the tokenizer {self.tokenizer.name_or_path!r} has no chat template. Use an "
                "instruction-tuned model's tokenizer, set chat_template in the model's settings, or give plain text."
            )
        chats = [[*group.prompt, Message(role="assistant", content=response)] for response in group.responses]
        try:
            return [self._templated(group.prompt, True), *(self._templated(chat, False) for chat in chats)]
        except TemplateError as error:
            raise RowError(f"{group.source}: the {self._template} refuses the chat: {error}.") from error

    def _templated(self, chat: list[Message], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
        return cast("str", text)

    def _split(self, group: Group, ids: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """Prompt and responses, uncut, from what `_tokenise` made of the group's texts."""
        prompt, *rest = ids
        if isinstance(group.prompt, str):
            # Plain text without a prompt begins as a document does: behind BOS, or else behind the EOS of another.
            prompt = self.bos + prompt or (self.eos if rest else [])
            responses = [ids if ids[-1:] == self.eos or not group.finished else ids + self.eos for ids in rest]
        else:
            responses = [self._turn(self._after(group, prompt, whole), group.finished) for whole in rest]
        if not prompt:
            raise RowError(f"{group.source}: the prompt has no token.")
        if not all(responses):
            raise RowError(f"{group.source}: the response has no token.")
        return prompt, responses

    def _after(self, group: Group, prompt: list[int], whole: list[int]) -> list[int]:
        """What the whole chat has after the prompt."""
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        here = slice(max(same - 3, 0), same + 5)
        raise RowError(
            f"{group.source}: the {self._template} does not extend the prompt by the response, so there is no telling where "
            f"the response begins. At token {same} the prompt with generation prompt goes on "
            f"{self.tokenizer.decode(prompt[here])!r}, the whole chat {self.tokenizer.decode(whole[here])!r}. Set "
            "chat_template to one whose generation prompt is what stands before the assistant's content."
        )

    def _weigh(self, group: Group, prompt_length: int, responses: list[list[int]]) -> list[list[float]] | None:
        """What each token of each response weighs, by the spans of text that the group weighs."""
        if group.weights is None:
            return None
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{group.source} has weights for parts of its text, and {type(self.tokenizer).__name__} cannot say which "
                "token is where in a text. Take a tokenizer with a tokenizer.json, or rows without weights."
            )
        is_chat = not isinstance(group.prompt, str)
        prompt, *texts = self._texts(group)
        weights = []
        for text, response, spans, ids in zip(texts, group.responses, group.weights, responses, strict=True):
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            offsets = encoded["offset_mapping"][prompt_length if is_chat else 0 :]
            begin = self._begin(group, response, text, len(prompt)) if is_chat else 0
            places = [(first - begin, last - begin) for first, last in offsets[: len(ids)]]
            # What closes the response, where no text stands for it.
            places += [(len(response), len(response))] * (len(ids) - len(places))
            weights.append(token_weights(response, spans, places))
        return weights

    def _begin(self, group: Group, response: str, text: str, after: int) -> int:
        """Where a response would begin in a templated chat if the template had not stripped it."""
        found = text.find(response.strip(), after)
        if found < 0:
            raise RowError(
                f"{group.source}: the {self._template} changes the text of the response, so there is no telling which of its "
                "parts the weights are meant for."
            )
        return found - (len(response) - len(response.lstrip()))

    def _turn(self, response: list[int], finished: bool) -> list[int]:
        """A templated response up to the special token that closes the turn; EOS where the template closes with none.

        Without what closes it where it was not finished.
        """
        end = len(response)
        while end and self.tokenizer.decode(response[end - 1 : end]).isspace():
            end -= 1
        closing = response[end - 1 : end]
        if not finished:
            return response[: end - 1] if closing and self.special.issuperset(closing) else response
        if not self.special.issuperset(closing) or not closing:
            return response + self.eos
        if closing != self.eos and not self._warned_of_turn_end:
            self._warned_of_turn_end = True
            log.warning(
                "The %s closes a turn with %r and not with the EOS token %r: sampling has to stop there too.",
                self._template,
                self.tokenizer.decode(closing),
                self.tokenizer.eos_token,
            )
        return response[:end]

    def _fit(
        self, group: Group, prompt: list[int], responses: list[list[int]], weights: list[list[float]] | None
    ) -> TokenGroup | None:
        """The group within the lengths, or None if it is dropped."""
        longest = max(map(len, responses), default=0)
        room, left = self.lengths.room(len(prompt), longest)
        prompt_cut, responses_cut = len(prompt) > room, sum(len(response) > left for response in responses)
        if prompt_cut or responses_cut:
            if self.lengths.too_long == "raise":
                raise UserError(
                    f"{group.source}: {len(prompt)} tokens of prompt and up to {longest} of response exceed "
                    f"{self.lengths.limits}. Raise the lengths, or set too_long to cut or drop."
                )
            # The end of a response that was stopped is all that is known of it.
            if self.lengths.too_long == "drop" or (responses_cut and not group.finished):
                self.counts.too_long += 1
                return None
            self.counts.prompts_cut += prompt_cut
            self.counts.responses_cut += responses_cut
        if prompt_cut:
            # Models attend to BOS from everywhere and were never trained without it.
            head = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
            prompt = head + prompt[len(prompt) - room + len(head) :]
        responses = [response[:left] for response in responses]
        weights = None if weights is None else [of_response[:left] for of_response in weights]
        self.counts.groups += 1
        self.counts.responses += len(responses)
        self.counts.tokens += len(prompt) + sum(map(len, responses))
        return TokenGroup(prompt, responses, group.scores, group.labels, group.margin, weights=weights)

    @property
    def _template(self) -> str:
        return f"chat template of {self.tokenizer.name_or_path!r}"
