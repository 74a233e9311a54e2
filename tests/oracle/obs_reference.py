"""Scores of criterion obs by plain loops in numpy: one unit falls at a time, and after it all of W, G W and P are written anew.

The formulas are those of docs/method.md. Activations and gradients come from transformers and autograd, row by row.
"""

import numpy
import torch


class Outputs:
    """Input, and gradient of the output, of every o_proj and down_proj, of one row at a time."""

    def __init__(self, model):
        self.inputs, self.outputs, self.handles = {}, {}, []
        for index, layer in enumerate(model.model.layers):
            for kind, module in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
                self.handles.append(module.register_forward_hook(self._keep(index, kind)))

    def _keep(self, index, kind):
        def hook(_, inputs, output):
            output.retain_grad()
            self.inputs[index, kind], self.outputs[index, kind] = inputs[0], output

        return hook

    def close(self):
        for handle in self.handles:
            handle.remove()


def moments(model, domains, sequence_loss):
    """{(layer, kind): (A, G)}: A the mean of x x^T, G the sum of g g^T, g of the summed loss of a row. With T tokens in all and
    T_d of domain d, a token of domain d counts (weight share) T / T_d."""
    watch, sums = Outputs(model), {}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    tokens = [sum(len(row) for row, _ in d.rows) for d in domains]
    total = sum(d.weight for d in domains)
    for domain, count in zip(domains, tokens):
        weight = domain.weight / total * sum(tokens) / count
        for row, mask in domain.rows:
            mean, each = sequence_loss(model, row, mask)
            (mean * len(each)).backward()
            for place, x in watch.inputs.items():
                x, g = x[0].detach().double().numpy(), watch.outputs[place].grad[0].double().numpy()
                a, b = sums.setdefault(place, [0.0, 0.0])
                sums[place] = [a + weight * x.T @ x / sum(tokens), b + weight * g.T @ g]
    watch.close()
    return sums


def order(gram, curvature, weight, units, damping=0.01):
    """Scores of the units, each a list of columns of the weight [D, K]."""
    gram, weight = gram.copy(), weight.copy()
    power = gram.diagonal().copy()
    gram[numpy.diag_indices_from(gram)] = numpy.where(power > 0, power * (1 + damping), 1.0)
    weight[:, power == 0] = 0
    inverse = numpy.linalg.inv(gram)
    times = curvature @ weight
    scores, left, highest = numpy.full(len(units), numpy.inf), list(range(len(units))), 0.0
    while len(left) > 1:
        costs = [numpy.trace(numpy.linalg.inv(inverse[numpy.ix_(units[u], units[u])]) @ weight[:, units[u]].T @ times[:, units[u]])
                 for u in left]
        u = left.pop(int(numpy.argmin(costs)))
        highest = max(highest, min(costs))
        scores[u] = highest
        block = units[u]
        rows = numpy.linalg.inv(inverse[numpy.ix_(block, block)]) @ inverse[block]
        weight -= weight[:, block] @ rows
        times -= times[:, block] @ rows
        inverse -= inverse[:, block] @ rows
        weight[:, block], times[:, block] = 0, 0
        inverse[block], inverse[:, block] = 0, 0
    return scores


def scores(model, domains, sequence_loss, shape, unit="query_head", damping=0.01, curvature="full"):
    """{kind: [L, units]}; the last unit of every half has infinity."""
    heads, kv_heads, dim = shape
    found = {"attention": [], "mlp": []}
    for (index, kind), (gram, gradients) in sorted(moments(model, domains, sequence_loss).items()):
        layer = model.model.layers[index]
        module = layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj
        weight = module.weight.detach().double().numpy()
        if curvature == "scalar":
            gradients = numpy.trace(gradients) / len(gradients) * numpy.eye(len(gradients))
        count = weight.shape[1] if kind == "mlp" else (kv_heads if unit == "kv_group" else heads)
        columns = numpy.arange(weight.shape[1]).reshape(count, -1).tolist()
        found[kind].append(torch.tensor(order(gram, gradients, weight, columns, damping)))
    return {kind: torch.stack(rows) for kind, rows in found.items()}
