"""GISP's own way to prune (arXiv 2510.18030), with transformers and autograd: weight gradients on a model of full size whose removed
units are zero, |w g| summed over each unit, one list over all layers. It shares no code with espalier; cheapest.py times both.
"""

import math

import numpy
import torch

KINDS = ("attention", "mlp")


class Masked:
    """A Llama-like decoder with grouped queries, its weights, and which units are left."""

    def __init__(self, model, first_kept, last_kept):
        self.model, c = model, model.config
        self.heads, self.kv_heads = c.num_attention_heads, c.num_key_value_heads
        self.head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.hidden, self.channels = c.hidden_size, c.intermediate_size
        self.layers = model.model.layers
        self.kept = {"attention": torch.ones(len(self.layers), self.heads, dtype=torch.bool),
                     "mlp": torch.ones(len(self.layers), self.channels, dtype=torch.bool)}
        self.free = range(first_kept, len(self.layers) - last_kept)
        self.whole = sum(p.numel() for p in self.layers.parameters())
        if self.heads == self.kv_heads:
            raise ValueError("keys and values of single heads are not handled: every head has its own")

    def products(self, layer):
        """|w g| of every weight, summed over each query head's q rows and o columns, and over each channel."""
        a, m = self.layers[layer].self_attn, self.layers[layer].mlp
        rows = lambda linear: (linear.weight * linear.weight.grad).abs().sum(1)  # noqa: E731
        columns = lambda linear: (linear.weight * linear.weight.grad).abs().sum(0)  # noqa: E731
        head = (rows(a.q_proj) + columns(a.o_proj)).view(self.heads, self.head_dim).sum(1)
        return {"attention": head / (4 * self.head_dim * self.hidden),
                "mlp": (rows(m.gate_proj) + rows(m.up_proj) + columns(m.down_proj)) / (3 * self.channels)}

    def cost(self, kind, layer, kept_heads):
        """Parameters that fall with a unit: k and v rows with the last query head that reads them."""
        if kind == "mlp":
            return 3 * self.hidden
        bias = self.layers[layer].self_attn.q_proj.bias is not None
        own = self.head_dim * (2 * self.hidden + bias)
        return own + 2 * self.head_dim * (self.hidden + bias) * (kept_heads == 1)

    def remove(self, kind, layer, unit):
        self.kept[kind][layer, unit] = False
        with torch.no_grad():
            if kind == "mlp":
                m = self.layers[layer].mlp
                m.gate_proj.weight[unit], m.up_proj.weight[unit], m.down_proj.weight[:, unit] = 0, 0, 0
            else:
                a, part = self.layers[layer].self_attn, slice(unit * self.head_dim, (unit + 1) * self.head_dim)
                a.q_proj.weight[part], a.o_proj.weight[:, part] = 0, 0


def gradients(model, rows, micro_batch):
    """Of the mean over rows of their mean loss, at all weights."""
    model.zero_grad(set_to_none=True)
    for begin in range(0, len(rows), micro_batch):
        batch = rows[begin : begin + micro_batch]
        loss = model(input_ids=batch, labels=batch).loss
        (loss * (len(batch) / len(rows))).backward()


def prune(model, rows, target, iterations, micro_batch, first_kept, last_kept):
    """Removes `target` of the decoder's parameters in equal steps; returns (share removed, Masked). `rows`: int64 [N, S], all domains."""
    masked, gone = Masked(model, first_kept, last_kept), 0
    for iteration in range(1, iterations + 1):
        gradients(model, rows, micro_batch)
        scores = {layer: masked.products(layer) for layer in masked.free}
        order = sorted((scores[layer][kind][unit].item(), layer, k, unit) for layer in masked.free for k, kind in enumerate(KINDS)
                       for unit in torch.nonzero(masked.kept[kind][layer]).flatten().tolist())
        for _, layer, k, unit in order:
            kind, kept = KINDS[k], masked.kept[KINDS[k]][layer]
            if kept.sum() == 1:  # every layer keeps a head and a channel
                continue
            group = masked.heads // masked.kv_heads
            readers = int(kept[unit // group * group : (unit // group + 1) * group].sum()) if kind == "attention" else 0
            cost = masked.cost(kind, layer, readers)
            if gone + cost > target * iteration / iterations * masked.whole:
                break
            masked.remove(kind, layer, unit)
            gone += cost
    return gone / masked.whole, masked


@torch.no_grad()
def perplexity(model, rows, micro_batch=8):
    """exp of the mean negative log likelihood of every token but each row's first."""
    total = sum(model(input_ids=b, labels=b).loss.item() * len(b) for b in rows.split(micro_batch))
    return math.exp(total / len(rows))


def read_rows(path):
    import h5py

    with h5py.File(path) as file:
        return torch.from_numpy(file["tokens"][:].astype(numpy.int64))
