"""Sequence layers beside PyTorch's, with copied weights: values and gradients, eager and replayed; where torch is installed."""

import numpy as np
import pytest
from helpers import assert_close

import clnn
from clnn.interop.pytorch import attention_parts, recurrent_parts

torch = pytest.importorskip("torch")
nn = torch.nn
BATCH, STEPS, FEATURES, UNITS = 4, 6, 3, 5
LENGTHS = np.array([6, 2, 5, 1])
LAYERS = {"RNN": clnn.SimpleRNN, "LSTM": clnn.LSTM, "GRU": clnn.GRU}
TYPES = ["float32", "float64"]
WAYS = {  # layers, both ways, sequences of several lengths, first states given
    "plain": (1, False, False, False),
    "states": (1, False, False, True),
    "packed": (1, False, True, True),
    "both ways": (1, True, True, False),
    "stacked": (3, False, False, False),
    "all": (2, True, True, True),
}


def close(got, wanted, dtype, what=""):
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else wanted
    bound = (1e-10 if dtype == "float64" else 2e-5) * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    assert_close(np.asarray(got), wanted, bound, what)


def given_as(dtype, array):
    """A tensor of that type: a step takes arrays as float32."""
    return clnn.tensor(array, dtype)


def read(parts, of):
    """What PyTorch's arrays are here; `of(name)` is a weight, or its gradient."""
    return {
        name: a
        for part in parts
        for name, a in zip(part.here, part.read(*[of(theirs) for theirs in part.there]), strict=True)
    }


def converted(kind, of, layer, back):
    """One of PyTorch's layers as clnn has it."""
    end = f"l{layer}{'_reverse' if back else ''}"
    return read(recurrent_parts(kind), lambda name: of(f"{name}_{end}"))


def ways_of(layer):
    """A layer, or both of a Bidirectional."""
    return (layer.layer, layer.back) if isinstance(layer, clnn.Bidirectional) else (layer,)


def values(model):
    return lambda name: getattr(model, name).detach().numpy()


def slopes(kind):
    """Gradients; PyTorch's two biases of an RNN and an LSTM have the same one, which is their sum's."""

    def of(model):
        halves = 1.0 if kind == "GRU" else 0.5
        return lambda name: getattr(model, name).grad.numpy() * (halves if name.startswith("bias") else 1.0)

    return of


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers(device, rng, kind, way, dtype):
    if dtype == "float64" and not device.has_fp64:
        pytest.skip("no float64 here")
    layers, both, packed, given = WAYS[way]
    other = getattr(nn, kind)(
        FEATURES, UNITS, layers, batch_first=True, bidirectional=both, dtype=getattr(torch, dtype)
    )
    ways, kinds_of_state = 1 + both, 2 if kind == "LSTM" else 1
    x, seed = (rng.standard_normal(s).astype(dtype) for s in ((BATCH, STEPS, FEATURES), (BATCH, STEPS, ways * UNITS)))
    states = [rng.standard_normal((layers * ways, BATCH, UNITS)).astype(dtype) for _ in range(kinds_of_state)]
    last = [rng.standard_normal((layers * ways, BATCH, UNITS)).astype(dtype) for _ in range(kinds_of_state)]
    if packed:
        seed[np.arange(STEPS) >= LENGTHS[:, None]] = 0  # PyTorch gives zeros there, clnn the states
    inputs = [torch.tensor(a, requires_grad=True) for a in (x, *(states if given else ()))]
    sequences = inputs[0]
    if packed:
        sequences = nn.utils.rnn.pack_padded_sequence(sequences, LENGTHS, batch_first=True, enforce_sorted=False)
    first = (tuple(inputs[1:]) if kind == "LSTM" else inputs[1],) if given else ()
    wanted, ends = other(sequences, *first)
    ends = ends if kind == "LSTM" else (ends,)
    if packed:
        wanted, _ = nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)
    loss = (wanted * torch.tensor(seed)).sum() + sum((a * torch.tensor(b)).sum() for a, b in zip(ends, last))
    loss.backward()

    net = [LAYERS[kind](UNITS, return_sequences=True, return_state=True) for _ in range(layers)]
    net = [clnn.Bidirectional(one) for one in net] if both else net
    parameters = []
    for number, layer in enumerate(net):
        layer.place(device, dtype)
        layer.ensure_built((STEPS, FEATURES if number == 0 else ways * UNITS))
        for back, one in enumerate(ways_of(layer)):
            one.load_state_dict(converted(kind, values(other), number, back))
        parameters += layer.parameters()
    mine = [clnn.tensor(a, dtype, requires_grad=True) for a in (x, *(states if given else ()))]

    @clnn.step
    def step(seed, lengths, *last):
        for p in (*mine, *parameters):
            p.zero_grad()
        y, found = mine[0], []
        for number, layer in enumerate(net):
            at = range(number * ways, (number + 1) * ways)
            before = [state[i] for i in at for state in mine[1:]]
            y, *after = layer(y, *before, *(() if lengths is None else (lengths,)))
            found += after
        ends = [clnn.stack(found[i::kinds_of_state], 0) for i in range(kinds_of_state)]
        ((y * seed).sum() + sum(((a * b).sum() for a, b in zip(ends, last)), 0.0)).backward()
        return [y, *ends], [p.grad for p in mine], [p.grad for p in parameters]

    live = (np.arange(STEPS) < (LENGTHS if packed else np.full(BATCH, STEPS))[:, None])[:, :, None]
    for call in range(4):  # the last one is a replay
        (y, *found), by_inputs, by_parameters = step(
            given_as(dtype, seed), LENGTHS if packed else None, *[given_as(dtype, a) for a in last]
        )
        close(np.where(live, y.numpy(), 0.0), wanted, dtype, f"values of call {call}")
        for name, got, end in zip("hc"[:kinds_of_state], found, ends, strict=True):
            close(got.numpy(), end, dtype, f"last {name}")
        for i, (got, source) in enumerate(zip(by_inputs, inputs, strict=True)):
            close(got.numpy(), source.grad, dtype, f"gradient by input {i}")
    expected = {}
    for number, layer in enumerate(net):
        for back, one in enumerate(ways_of(layer)):
            found = converted(kind, slopes(kind)(other), number, back)
            expected |= {id(p): found[name] for name, p in one.named_parameters()}
    for p, got in zip(parameters, by_parameters, strict=True):
        close(got.numpy(), expected[id(p)], dtype, f"gradient by {p.name}")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("masked", ["nothing", "keys", "causal", "context"])
def test_multi_head_attention(device, rng, masked, dtype):
    if dtype == "float64" and not device.has_fp64:
        pytest.skip("no float64 here")
    size, heads = 8, 2
    other = nn.MultiheadAttention(size, heads, batch_first=True, dtype=getattr(torch, dtype))
    x, seed = (rng.standard_normal((BATCH, STEPS, size)).astype(dtype) for _ in range(2))
    context = rng.standard_normal((BATCH, 4, size)).astype(dtype) if masked == "context" else x
    padded = np.arange(context.shape[1]) >= np.minimum(LENGTHS, 4)[:, None]  # True = ignore, there
    q = torch.tensor(x, requires_grad=True)
    k = torch.tensor(context, requires_grad=True) if masked == "context" else q
    how = {}
    if masked in ("keys", "context"):
        how["key_padding_mask"] = torch.tensor(padded)
    if masked == "causal":
        how["attn_mask"] = torch.ones(STEPS, STEPS, dtype=bool).triu(1)
    wanted, _ = other(q, k, k, need_weights=False, **how)
    (wanted * torch.tensor(seed)).sum().backward()

    named = dict(other.named_parameters())
    layer = clnn.MultiHeadAttention(heads, causal=masked == "causal")
    layer.place(device, dtype)
    layer.ensure_built((STEPS, size), *[context.shape[1:]] * (masked == "context"))
    clnn.interop.from_torch(other, layer)
    mine = [clnn.tensor(a, dtype, requires_grad=True) for a in ((x, context) if masked == "context" else (x,))]

    @clnn.step
    def step(seed, mask):
        for p in (*mine, *layer.parameters()):
            p.zero_grad()
        y = layer(*mine) if mask is None else layer(mine[0], mine[-1], mask)
        (y * seed).sum().backward()
        return y, [p.grad for p in mine], {name: p.grad for name, p in layer.named_parameters()}

    for _ in range(4):
        mask = ~padded[:, None, None, :] if "key_padding_mask" in how else None  # True = attend, here
        y, by_inputs, by_parameters = step(given_as(dtype, seed), mask)
        close(y.numpy(), wanted, dtype)
        for got, source in zip(by_inputs, (q, k) if masked == "context" else (q,), strict=True):
            close(got.numpy(), source.grad, dtype)
        for name, gradient in read(attention_parts(True), lambda name: named[name].grad.numpy()).items():
            close(by_parameters[name].numpy(), gradient, dtype, name)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("padding", [None, 2])
def test_embedding(device, rng, padding, dtype):
    if dtype == "float64" and not device.has_fp64:
        pytest.skip("no float64 here")
    other = nn.Embedding(7, 3, padding_idx=padding, dtype=getattr(torch, dtype))
    tokens, seed = rng.integers(0, 7, (BATCH, STEPS)), rng.standard_normal((BATCH, STEPS, 3)).astype(dtype)
    tokens[0] = 2
    wanted = other(torch.tensor(tokens))
    (wanted * torch.tensor(seed)).sum().backward()
    layer = clnn.Embedding(7, 3, padding=padding)
    layer.place(device, dtype)
    layer.ensure_built((STEPS,))
    clnn.interop.from_torch(other, layer)

    @clnn.step
    def step(tokens, seed):
        layer.zero_grad()
        y = layer(tokens)
        (y * seed).sum().backward()
        return y, layer.w.grad

    for _ in range(4):
        y, gradient = step(tokens, given_as(dtype, seed))
        close(y.numpy(), wanted, dtype)
        close(gradient.numpy(), other.weight.grad, dtype)
