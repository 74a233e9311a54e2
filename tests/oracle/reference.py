"""Losses, logits and importance scores from transformers and torch autograd.

The oracle of the program's numbers. Nothing here is shared with espalier but the definitions of docs/method.md:
whole-model autograd, hooks at the gates, plain loops over sequences and units.
"""

import contextlib
import sys

import h5py
import torch
import transformers

import obs_reference


def load(path, dtype):
    """The checkpoint in transformers; under float64 also its RMSNorm computes in float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    return widen(model) if dtype == torch.float64 else model


def widen(model):
    """Makes the RMSNorm of a float64 model compute in float64."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _wide_norm(module)
    return model


def _wide_norm(module):
    def forward(x):
        variance = x.pow(2).mean(-1, keepdim=True)
        return module.weight * (x * torch.rsqrt(variance + module.variance_epsilon))

    return forward


def read_tokens(path):
    with h5py.File(path) as file:
        tokens = torch.tensor(file["tokens"][:], dtype=torch.long)
        n, s = tokens.shape
        length = file["length"][:].tolist() if "length" in file else [s] * n
        mask = torch.tensor(file["loss_mask"][:], dtype=torch.bool) if "loss_mask" in file else None
    return tokens, length, mask


def sequence_loss(model, row, mask):
    """Mean negative log likelihood over the counted tokens of one sequence."""
    logits = model(row[None]).logits[0]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = torch.nn.functional.cross_entropy(wide[:-1], row[1:], reduction="none")
    counted = torch.ones_like(row[1:], dtype=torch.bool) if mask is None else mask[1:]
    return nll[counted].mean(), nll[counted].detach()


class Domain:
    """Rows with their counted tokens; `shares`, by which each row's loss counts in the domain's; `samples`, the rows that are
    one sample of the data: under margin the options of an item."""

    def __init__(self, path, weight=1.0, objective="causal_lm"):
        tokens, length, mask = read_tokens(path)
        use_mask = objective != "causal_lm"
        self.weight = weight
        self.rows = [(tokens[i, : length[i]], mask[i, : length[i]] if use_mask else None) for i in range(len(tokens))]
        self.shares = [1 / len(self.rows)] * len(self.rows)
        self.samples = [[i] for i in range(len(self.rows))]
        if objective == "margin":
            self._read_items(path)

    def _read_items(self, path):
        with h5py.File(path) as file:
            item, correct = file["item"][:].tolist(), file["correct"][:].tolist()
        right, wrong = correct.count(1), correct.count(0)
        self.shares = [1 / right if c else -1 / wrong for c in correct]
        self.samples = [[row for row, i in enumerate(item) if i == one] for one in dict.fromkeys(item)]


class Gates:
    """Keeps the input of every o_proj and down_proj, so that h . dL/dh can be formed per sequence."""

    def __init__(self, model, retain=True):
        self.tensors = {}
        self.handles = []
        self.retain = retain
        for index, layer in enumerate(model.model.layers):
            for kind, module in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
                self.handles.append(module.register_forward_pre_hook(self._keep(index, kind)))

    def _keep(self, index, kind):
        def hook(_, inputs):
            if self.retain:
                inputs[0].retain_grad()
            self.tensors[index, kind] = inputs[0]

        return hook

    def close(self):
        for handle in self.handles:
            handle.remove()


def shape_of(config):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads, config.num_key_value_heads, head_dim


def unit_sums(model, layer_index, values, unit):
    """Sums a function of each weight tensor over units: {kind: [units]}. `values(module)` has the weight's shape."""
    heads, kv_heads, dim = shape_of(model.config)
    layer = model.model.layers[layer_index]
    attention = layer.self_attn
    q = values(attention.q_proj).reshape(heads, -1).sum(1)
    k = values(attention.k_proj).reshape(kv_heads, -1).sum(1)
    v = values(attention.v_proj).reshape(kv_heads, -1).sum(1)
    o = values(attention.o_proj).sum(0).reshape(heads, dim).sum(1)
    channels = values(layer.mlp.gate_proj).sum(1) + values(layer.mlp.up_proj).sum(1) + values(layer.mlp.down_proj).sum(0)
    per_head = q + o
    if unit == "kv_group":
        per_unit = per_head.reshape(kv_heads, -1).sum(1) + k + v
    else:
        per_unit = per_head + (k + v if heads == kv_heads else 0)
    return {"attention": per_unit, "mlp": channels}


def gate_sums(model, gates, layer_index, unit):
    heads, kv_heads, dim = shape_of(model.config)
    h = gates.tensors[layer_index, "attention"]
    z = gates.tensors[layer_index, "mlp"]
    per_head = (h * h.grad).sum((0, 1)).reshape(heads, dim).sum(1)
    if unit == "kv_group":
        per_head = per_head.reshape(kv_heads, -1).sum(1)
    return {"attention": per_head.detach(), "mlp": (z * z.grad).sum((0, 1)).detach()}


def gate_inputs(model, domain):
    """{(layer, kind): [tokens, entries]} over all rows of a domain, without padding: what o_proj and down_proj read."""
    gates, kept = Gates(model, retain=False), {}
    with torch.no_grad():
        for row, _ in domain.rows:
            model(row[None])
            for place, tensor in gates.tensors.items():
                kept.setdefault(place, []).append(tensor[0].double())
    gates.close()
    return {place: torch.cat(rows) for place, rows in kept.items()}


def activation_scores(model, domains, criterion, unit="query_head"):
    """{kind: [L, units]} of wanda_sp and flap: every token with its domain's weight, 1 where these are equal."""
    heads, kv_heads, dim = shape_of(model.config)
    groups = kv_heads if unit == "kv_group" else heads
    mean_weight = sum(d.weight for d in domains) / len(domains)
    inputs = [gate_inputs(model, d) for d in domains]
    scores = {"attention": [], "mlp": []}
    for index, layer in enumerate(model.model.layers):
        for kind, module in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
            weight = module.weight.detach().double()
            times = torch.cat([torch.full((len(x[index, kind]), 1), d.weight / mean_weight, dtype=torch.float64)
                               for d, x in zip(domains, inputs)])
            x = torch.cat([one[index, kind] for one in inputs])
            if criterion == "wanda_sp":
                entries = weight.abs().sum(0) * (times * x * x).sum(0).sqrt()
            else:
                mean = (times * x).sum(0) / times.sum()
                variance = (times * (x - mean) ** 2).sum(0) / (times.sum() - 1)
                entries = variance * (weight * weight).sum(0)
                entries = (entries - entries.mean()) / entries.std()
            if kind == "attention":
                parts = entries.reshape(groups, -1)
                entries = parts.sum(1) if criterion == "wanda_sp" else parts.mean(1)
            scores[kind].append(entries)
    return {kind: torch.stack(rows) for kind, rows in scores.items()}


def raw_scores(model, domains, criterion, unit="query_head", pooled=True):
    """{kind: [L, units]} in float64 and the loss of each domain. With pooled=False the only domain counts alone."""
    layers = range(model.config.num_hidden_layers)
    if criterion in ("wanda_sp", "flap"):
        return activation_scores(model, domains, criterion, unit), [domain_loss(model, d) for d in domains]
    if criterion.startswith("obs"):
        curvature = "scalar" if criterion == "obs scalar" else "full"
        scores = obs_reference.scores(model, domains, sequence_loss, shape_of(model.config), unit, curvature=curvature)
        return scores, [domain_loss(model, d) for d in domains]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
    if criterion == "magnitude":
        sums = [unit_sums(model, l, lambda m: m.weight.detach().abs(), unit) for l in layers]
        return stack(sums), [domain_loss(model, d) for d in domains]
    total = sum(d.weight for d in domains)
    gates = Gates(model)
    signed, absolute, losses = None, None, []
    for domain in domains:
        losses.append(0.0)
        weight = domain.weight / total if pooled else 1.0
        for sample in domain.samples:
            one = None
            for number in sample:
                loss, _ = sequence_loss(model, *domain.rows[number])
                (loss * weight * domain.shares[number]).backward()
                losses[-1] += loss.item() * domain.shares[number]
                sums = stack([gate_sums(model, gates, l, unit) for l in layers])
                one = sums if one is None else {k: one[k] + sums[k] for k in sums}
            signed = one if signed is None else {k: signed[k] + one[k] for k in one}
            size = {k: one[k].abs() for k in one}
            absolute = size if absolute is None else {k: absolute[k] + size[k] for k in one}
    gates.close()
    if criterion == "taylor":
        return stack([unit_sums(model, l, lambda m: (m.weight * m.weight.grad).detach().abs(), unit) for l in layers]), losses
    if criterion == "taylor_gate":
        return {k: v.abs() for k, v in signed.items()}, losses
    return absolute, losses


def many_rows_scores(model, domain, unit="query_head", scale=1.0, at_once=64):
    """{criterion: {kind: [L, units]}} of the criteria with gradients, for a domain whose rows are equally long and count whole.

    Rows go through the model together, and gradients and gate sums are added in float64, so that all that is narrow is what
    the model computes. `scale`, a power of two, multiplies the loss and is taken out of the sums."""
    layers = range(model.config.num_hidden_layers)
    rows = torch.stack([row for row, _ in domain.rows])
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    gradients = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    gates, signed, absolute = Gates(model), None, None
    for begin in range(0, len(rows), at_once):
        batch = rows[begin : begin + at_once]
        logits = model(batch).logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        nll = torch.nn.functional.cross_entropy(wide[:, :-1].transpose(1, 2), batch[:, 1:], reduction="none")
        model.zero_grad()
        (nll.mean(1).sum() * (scale / len(rows))).backward()
        for total, parameter in zip(gradients, parameters):
            total += parameter.grad.double() / scale
        one = stack([row_gate_sums(model, gates, l, unit, scale) for l in layers])
        signed = {k: one[k].sum(1) + (signed[k] if signed else 0) for k in one}
        absolute = {k: one[k].abs().sum(1) + (absolute[k] if absolute else 0) for k in one}
    gates.close()
    of = {id(p): g for p, g in zip(parameters, gradients)}
    taylor = [unit_sums(model, l, lambda m: (m.weight.detach().double() * of[id(m.weight)]).abs(), unit) for l in layers]
    return {"taylor": stack(taylor), "taylor_gate": {k: v.abs() for k, v in signed.items()}, "taylor_gate_sample": absolute}


def row_gate_sums(model, gates, layer_index, unit, scale):
    """{kind: [rows, units]}: sum over a row's tokens of h . dL/dh, products and sums in float64."""
    heads, kv_heads, dim = shape_of(model.config)
    sums = {}
    for kind in ("attention", "mlp"):
        h = gates.tensors[layer_index, kind]
        sums[kind] = (h.detach().double() * h.grad.double()).sum(1) / scale
    groups = kv_heads if unit == "kv_group" else heads
    sums["attention"] = sums["attention"].reshape(len(sums["attention"]), groups, -1).sum(2)
    return sums


def domain_loss(model, domain):
    with torch.no_grad():
        return sum(sequence_loss(model, *row)[0].item() * share for row, share in zip(domain.rows, domain.shares))


def combined(rows, weights, combine):
    """One score per unit from {kind: [L, units]} of every domain, already normalised: the plainest loops."""
    shapes = {kind: values.shape for kind, values in rows[0].items()}
    flat = [torch.cat([row[kind].flatten() for kind in shapes]).tolist() for row in rows]
    result = []
    for u in range(len(flat[0])):
        column = [row[u] for row in flat]
        if combine == "max":
            result.append(max(column))
        elif combine == "worst_domain":
            finite = [[v for v in row if v != float("inf")] for row in flat]
            result.append(max(value / (sum(row) / len(row)) for value, row in zip(column, finite)))
        elif combine == "rank_mean":
            ranks = [sum(v < value for v in row) + (sum(v == value for v in row) + 1) / 2 for value, row in zip(column, flat)]
            result.append(sum(w * r for w, r in zip(weights, ranks)) / sum(weights))
        else:
            result.append(sum(w * v for w, v in zip(weights, column)) / sum(weights))
    values, begin, out = torch.tensor(result, dtype=torch.float64), 0, {}
    for kind, shape in shapes.items():
        out[kind] = values[begin : begin + shape.numel()].reshape(shape)
        begin += shape.numel()
    return out


def stack(per_layer):
    return {k: torch.stack([layer[k] for layer in per_layer]).double() for k in per_layer[0]}


def token_losses(model, path):
    """Nats of every counted token of a token file, in float64; their mean is what an evaluation reports."""
    tokens, length, mask = read_tokens(path)
    with torch.no_grad():
        return torch.cat([
            sequence_loss(model, tokens[i, : length[i]], None if mask is None else mask[i, : length[i]])[1].double()
            for i in range(len(tokens))
        ])


def logits(model, path, rows):
    tokens, length, _ = read_tokens(path)
    width = max(length[:rows])
    with torch.no_grad():
        return model(tokens[:rows, :width]).logits.double()


def normalised(raw, config, normalization, unit):
    """Block-wise normalisation of {kind: [L, units]} (docs/method.md)."""
    heads, kv_heads, dim = shape_of(config)
    hidden, channels = config.hidden_size, config.intermediate_size
    result = {}
    for kind, values in raw.items():
        if normalization == "none":
            result[kind] = values
        elif normalization == "gisp":
            result[kind] = values / (4 * dim * hidden if kind == "attention" else 3 * channels)
        elif normalization == "param_mean":
            per_head = 4 if heads == kv_heads else 2
            group = 2 * (heads // kv_heads) + 2
            divisor = (group if unit == "kv_group" else per_head) * dim * hidden if kind == "attention" else 3 * hidden
            result[kind] = values / divisor
        elif normalization == "cost":
            biases = 1 if getattr(config, "attention_bias", config.model_type == "qwen2") else 0
            head, group = dim * (2 * hidden + biases), dim * (2 * hidden + 2 * biases)
            whole = heads // kv_heads * head + group
            divisor = (whole if unit == "kv_group" else head + group * kv_heads / heads) if kind == "attention" else 3 * hidden
            result[kind] = values / divisor
        elif normalization == "block_mean":
            result[kind] = values / values.mean(1, keepdim=True)
        elif normalization == "block_l2":
            result[kind] = values / values.norm(dim=1, keepdim=True)
        elif normalization == "block_standardize":
            result[kind] = (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)
    return result


@contextlib.contextmanager
def quiet():
    """transformers reports every load on stderr."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield


def main():
    sys.exit("reference.py is imported by compare.py and by the tests")


if __name__ == "__main__":
    main()
