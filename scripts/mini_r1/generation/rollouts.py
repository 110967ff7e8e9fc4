"""Sampling on the CPU that does not drag finished completions along.

transformers' loop keeps every row in the batch until the longest completion ends, and copies all keys and values for
each token. Of lengths like a policy's, where one completion in a hundred takes the whole budget, most of that is waste.
Here finished rows leave the batch, and keys and values are written into buffers with some room to grow. The
same processors shape the same distribution; the random numbers are other ones.

On GPUs transformers' own loop stays: there vLLM is what is fast.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 32  # tokens to come in a buffer: attention is bound by memory, and gaps between its rows cost a third
_LEAVE_AT = 0.9  # rows leave the batch when this share or less is unfinished: each departure copies the cache once


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer, (B, heads, T, width), in buffers with room for more tokens."""

    keys: Any
    values: Any
    _room: tuple[torch.Tensor, torch.Tensor]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        begin = self.get_seq_length()
        end = begin + keys.size(-2)
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self._grow(keys, values, end)
        elif end > self._room[0].size(-2):
            self._grow(self.keys, self.values, end)
        for room, new in zip(self._room, (keys, values), strict=True):
            room[:, :, begin:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        def buffer(held: torch.Tensor) -> torch.Tensor:
            room = held.new_empty(*held.shape[:2], length + _ROOM, held.size(-1))
            room[:, :, : held.size(-2)] = held
            return room

        self._room = buffer(keys), buffer(values)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.keys.size(-2)
        self._grow(self.keys[indices], self.values[indices], length)
        self.keys, self.values = (room[:, :, :length] for room in self._room)


def decoding(model: Any) -> dict[str, Any]:
    """What to give `model.generate` besides: `sample`, where it knows the model, on the CPU; else nothing."""
    layers = DynamicCache(config=model.config).layers
    forward = (model.get_base_model() if hasattr(model, "get_base_model") else model).forward
    knows = {"position_ids", "logits_to_keep"} <= inspect.signature(forward).parameters.keys()
    knows &= bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return {"custom_generate": sample} if knows and model.device.type == "cpu" else {}


def sample(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """A decoding loop for `model.generate(..., custom_generate=sample)`.

    Args:
        model: keeps keys and values of all tokens in every layer, as `decoding` makes sure.
        input_ids: (B, T_p), padded left, as the attention mask in `kwargs`.
        logits_processor, stopping_criteria: temperature, top-k, ..., and what ends a row, as transformers made them.
        generation_config: `generate`'s, with lengths and special tokens settled.
        kwargs: what `generate` passes to the model. It passes no streamer to a loop that it does not know.

    Returns:
        (B, T) token ids: prompt, completion with its end token, padding.
    """
    cache, length = Cache(layer_class_to_replicate=GrowingLayer), input_ids.size(1)
    room = generation_config.max_length - length
    output = torch.nn.functional.pad(input_ids, (0, room), value=int(generation_config._pad_token_tensor))
    mask = torch.nn.functional.pad(kwargs["attention_mask"], (0, room), value=1)
    rows = torch.arange(len(output))  # where the rows of the batch stand in the output
    unfinished = torch.ones(len(output), dtype=torch.bool)
    token, positions = input_ids, (mask[:, :length].cumsum(-1) - 1).clamp(min=0)
    for end in range(length, length + room):
        logits = model(
            input_ids=token,
            attention_mask=mask[:, :end],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        scores = logits_processor(output[rows, :end], logits.float())
        drawn = scores.softmax(-1).multinomial(1)[:, 0] if generation_config.do_sample else scores.argmax(-1)
        output[rows[unfinished], end] = drawn[unfinished]
        unfinished &= ~stopping_criteria(output[rows, : end + 1], None)
        left = int(unfinished.sum())
        if left == 0:
            break
        if left <= _LEAVE_AT * len(rows):
            stay = unfinished.nonzero()[:, 0]
            cache.batch_select_indices(stay)
            rows, mask, drawn, positions = rows[stay], mask[stay], drawn[stay], positions[stay]
            unfinished = unfinished[stay]
        token, positions = drawn[:, None], positions[:, -1:] + 1
    return output[:, : end + 1]
