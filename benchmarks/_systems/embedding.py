"""Sentences to vectors, through the engine on the facade, and with torch alone.

Both use the same weights, layers and tokenizer, in float32. By hand the device, the moves and the size of a batch are
written out for a processor, and nothing is kept ready for memory that runs out.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from _systems import Pair

COUNT = 40


def pair() -> Pair:
    """The pair; docs/examples is on the path. The model is loaded before, and is not part of the work."""
    from embedding.engine import Engine

    lines = resources.files("devicekit.demo").joinpath("sentences.txt").read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][:COUNT]
    engine = Engine.load(device="cpu", dtype=torch.float32)
    tokenizer, network, longest = engine.model.tokenizer, engine.model.network, engine.model.max_tokens
    device = torch.device("cpu")
    size = 512 * torch.get_num_threads()

    @torch.no_grad()
    def by_hand() -> np.ndarray:
        tokens = tokenizer(
            texts, truncation=True, max_length=longest, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        order = sorted(range(len(tokens)), key=lambda position: len(tokens[position]), reverse=True)
        long = [len(tokens[position]) for position in order]
        vectors, done = np.empty((len(tokens), network.config.hidden_size), np.float32), 0
        while done < len(order):
            width, end = long[done], done + 1
            while end < len(order) and (end - done + 1) * width <= size and long[end] >= 0.75 * width:
                end += 1
            chosen = order[done:end]
            lengths = torch.tensor([len(tokens[position]) for position in chosen])
            padded = [tokens[position] + [0] * (width - len(tokens[position])) for position in chosen]
            ids = torch.tensor(padded).to(device)
            even = bool((lengths == width).all())
            mask = None if even else (torch.arange(width) < lengths[:, None]).long().to(device)
            lengths = lengths.to(device)
            hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            total = hidden.sum(1) if mask is None else (hidden * mask[:, :, None]).sum(1)
            vectors[chosen] = torch.nn.functional.normalize(total / lengths[:, None], dim=1).cpu().numpy()
            done += len(chosen)
        return vectors

    return Pair(f"{len(texts)} sentences to vectors", lambda: engine.encode(texts), by_hand, np.array_equal)
