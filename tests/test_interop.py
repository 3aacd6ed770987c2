"""Weights from PyTorch and back, whole nn.Sequentials, and safetensors files with PyTorch's names; most of it without torch."""

import importlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from helpers import assert_close
from safetensors.numpy import load_file, save_file

import clnn
from clnn.interop import files, pytorch
from clnn.interop.pairs import ours, pairs

ROUNDING = {np.float32: 1e-4, np.float64: 1e-10}


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    found.manual_seed(1)
    return found


def close(got, wanted, dtype, what=""):
    wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else wanted
    bound = ROUNDING[dtype] * max(1.0, float(np.abs(wanted).max(initial=0.0)))
    assert_close(np.asarray(got), wanted, bound, what)


def gradients_of(module, model):
    """(name, the gradient here, what PyTorch's is in clnn's form) of each parameter that learns."""
    units, _ = pytorch.units_of(module)
    theirs = dict(module.named_parameters())
    for unit, one, parts in pairs(units, ours(model), pytorch.layout, True):
        for part in parts:
            names = [unit.arrays[local].name for local in part.there]
            if all(name in theirs for name in names):
                both = 1 + (len(names) == 2)  # each of two biases has the gradient of their sum
                wanted = part.read(*[theirs[name].grad.numpy() / both for name in names])
                yield from zip(map(one.full, part.here), (one.parameters[a].grad for a in part.here), wanted)


# -- whole nn.Sequentials ---------------------------------------------------------------------------------------------
def convolution(nn):
    return [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=1e-3, momentum=0.3),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 6, (3, 2), padding="same", dilation=2, groups=2),
        nn.ELU(0.7),
        nn.Conv2d(6, 6, 3, padding=(1, 2), padding_mode="reflect"),
        nn.GELU(approximate="tanh"),
        nn.Flatten(),
        nn.Linear(6 * 4 * 8, 5),
        nn.LogSoftmax(dim=1),
    ]


def larger(nn):
    return [
        nn.ZeroPad2d((1, 2, 0, 3)),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Mish(),
        nn.InstanceNorm2d(6, affine=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(6, 4, 1, padding_mode="replicate", padding=1),
        nn.PReLU(4),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.GroupNorm(2, 4),
        nn.PReLU(),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.LocalResponseNorm(3, 0.1),
        nn.ReflectionPad2d(1),
        nn.AvgPool2d(2, ceil_mode=True, padding=1),
    ]


def over_time(nn):
    return [
        nn.Embedding(7, 4, padding_idx=0),
        nn.LayerNorm(4),
        nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True, norm_first=True, activation="gelu"),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), 2, nn.LayerNorm(4, eps=1e-3)),
        nn.Linear(4, 3, bias=False),
        nn.Softmax(-1),
    ]


def one_axis(nn):
    inside = [nn.Conv1d(3, 4, 2, padding="same"), nn.Sequential(nn.Mish(), nn.AvgPool1d(2)), nn.BatchNorm1d(4)]
    return [*inside, nn.ConvTranspose1d(4, 2, 3, 2), nn.Softsign(), nn.MaxPool1d(2), nn.Identity(), nn.Softplus()]


def three_axes(nn):
    return [
        nn.Conv3d(2, 4, 2),
        nn.BatchNorm3d(4),
        nn.Hardtanh(),
        nn.AvgPool3d(2, 1),
        nn.ConvTranspose3d(4, 2, (1, 2, 3)),
        nn.SiLU(),
        nn.AdaptiveMaxPool3d(2),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Unflatten(1, (4, 4)),
        nn.LayerNorm((4, 4)),
        nn.SELU(),
    ]


SEQUENTIALS = {
    "dense": (
        lambda nn: [nn.Linear(4, 6), nn.Sigmoid(), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3), nn.SELU()],
        (4,),
    ),
    "convolution": (convolution, (4, 7, 11)),
    "larger": (larger, (4, 5, 6)),
    "one axis": (one_axis, (3, 9)),
    "three axes": (three_axes, (2, 5, 5, 5)),
    "over time": (over_time, (6,)),
    "RNN": (lambda nn: [nn.Linear(4, 3), nn.RNN(3, 5, nonlinearity="relu", batch_first=True)], (6, 4)),
    "LSTM": (lambda nn: [nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True)], (6, 4)),
    "GRU": (lambda nn: [nn.GRU(4, 5, 2, batch_first=True, bias=False)], (6, 4)),
    "GRU with bias": (lambda nn: [nn.GRU(4, 5, bidirectional=True, batch_first=True)], (6, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", SEQUENTIALS)
def test_a_sequential_computes_what_pytorchs_does(device, dtype, rng, torch, name):
    """In training and where it does not train, its gradients, and what a step leaves of statistics."""
    modules, shape = SEQUENTIALS[name]
    there = torch.nn.Sequential(*modules(torch.nn)).to(torch.float32 if dtype is np.float32 else torch.float64)
    for p in there.parameters():
        p.data += 0.1 * torch.randn_like(p)
    if name == "over time":
        there[0].weight.data[0] = 0
    whole = name == "over time"
    x = rng.integers(0, 7, (3, *shape)) if whole else rng.standard_normal((3, *shape)).astype(dtype)
    net = clnn.interop.sequential(there, shape)
    assert net.dtype == dtype
    inputs = torch.tensor(x, requires_grad=not whole)
    wanted = there(inputs)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    seed = rng.standard_normal(tuple(wanted.shape)).astype(dtype)
    (wanted * torch.tensor(seed)).sum().backward()
    mine = clnn.tensor(x, np.int32 if whole else dtype, requires_grad=not whole)
    y = net(mine)
    (y * clnn.tensor(seed, dtype)).sum().backward()
    close(y.numpy(), wanted, dtype, "values in training")
    if not whole:
        close(mine.grad.numpy(), inputs.grad, dtype, "gradient by the input")
    for p, got, expected in gradients_of(there, net):
        close(got.numpy(), expected, dtype, f"gradient by {p}")
    there.eval()
    wanted = there(torch.tensor(x))
    close(net.predict(x), wanted[0] if isinstance(wanted, tuple) else wanted, dtype, "values")


def test_what_has_no_twin_is_listed_all_at_once(torch):
    nn = torch.nn

    class Mine(nn.Linear):
        pass

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    wrong = {
        "0 (Mine)": Mine(2, 2),
        "hooks": hooked,
        "padding_mode='circular'": nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        "return_indices": nn.MaxPool2d(2, return_indices=True),
        "divisor_override": nn.AvgPool2d(2, divisor_override=3),
        "dilation=2": nn.MaxPool1d(2, dilation=2),
        "track_running_stats": nn.BatchNorm1d(2, track_running_stats=False),
        "momentum=None": nn.BatchNorm1d(2, momentum=None),
        "InstanceNorm1d": nn.InstanceNorm1d(2, track_running_stats=True),
        "beta=2": nn.Softplus(beta=2),
        "dim=0": nn.Softmax(dim=0),
        "dim=None": nn.Softmax(),
        "(ReLU6)": nn.ReLU6(),
        "min_val": nn.Hardtanh(-2, 2),
        "start_dim=2": nn.Flatten(2),
        "align_corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "scale_factor=1.5": nn.Upsample(scale_factor=1.5),
        "batch_first=False": nn.GRU(2, 2),
        "tuple": nn.GRU(2, 2, batch_first=True),
        "proj_size": nn.LSTM(2, 3, proj_size=2, batch_first=True),
        "max_norm": nn.Embedding(3, 2, max_norm=1.0),
        "bias=False": nn.LayerNorm(2, bias=False),
        "threshold=0.5": nn.Softplus(threshold=0.5),
        "activation silu": nn.TransformerEncoderLayer(2, 1, 3, activation=nn.functional.silu, batch_first=True),
        "approximate='tanh'": nn.TransformerEncoderLayer(2, 1, 3, activation=nn.GELU("tanh"), batch_first=True),
        "(TransformerEncoderLayer): bias=False": nn.TransformerEncoderLayer(2, 1, 3, bias=False, batch_first=True),
        "several inputs": nn.MultiheadAttention(2, 1),
        "PixelShuffle": nn.PixelShuffle(2),
        "rate should be": nn.Dropout(1.0),
    }
    with pytest.raises(clnn.ConfigurationError) as error:
        clnn.interop.sequential(nn.Sequential(*wrong.values(), nn.Linear(2, 2)), 2)
    missing = [what for what in wrong if what not in str(error.value)]
    assert not missing and "Linear)" not in str(error.value).partition("hooks")[2]
    assert all(f"{i} (" in str(error.value) for i in range(len(wrong)))
    with pytest.raises(
        clnn.ConfigurationError, match=r"no twin of the module takes inputs of shape \(5,\).*weight \(3, 4\)"
    ):
        clnn.interop.sequential(nn.Sequential(nn.Linear(4, 3)), 5)
    with pytest.raises(clnn.ConfigurationError, match=r"0 \(Softmax\): dim=1 of an input of shape \(None, 3, 4\)"):
        clnn.interop.sequential(nn.Sequential(nn.Softmax(dim=1)), (3, 4))


@pytest.mark.parametrize("kind", ["GroupNorm", "BatchNorm2d", "InstanceNorm2d"])
def test_a_norm_with_a_weight_and_no_bias_has_no_twin(torch, kind):
    given = (2, 4) if kind == "GroupNorm" else (4,)
    norm = getattr(torch.nn, kind)(*given, affine=True)
    norm.bias = None  # as with bias=False, of PyTorch 2.13
    with pytest.raises(clnn.ConfigurationError, match=rf"0 \({kind}\): bias=False beside a weight"):
        clnn.interop.sequential(torch.nn.Sequential(norm), (4, 3, 3))


@pytest.mark.parametrize("activation", ["silu", "gelu with approximate='tanh'"])
def test_a_block_with_another_activation_is_an_error_and_copied_where_it_is_ignored(torch, activation):
    function = torch.nn.functional.silu if activation == "silu" else torch.nn.GELU("tanh")
    there = torch.nn.TransformerEncoderLayer(4, 2, 6, 0.0, function, batch_first=True)
    for module, name in ((there, ""), (torch.nn.Sequential(there), "0")):
        net = clnn.Sequential([clnn.TransformerEncoderLayer(2, 6, "gelu", norm_first=False)], (3, 4))
        before = net.state_dict()
        with pytest.raises(clnn.CheckpointError, match=rf"\(activation {activation}\).*ignore=\('{name}',\)"):
            clnn.interop.from_torch(module, net)
        assert all(np.array_equal(value, before[key]) for key, value in net.state_dict().items())
        clnn.interop.from_torch(module, net, ignore=(name, "activation"))
        close(net.layers[0].widen.w.numpy(), there.linear1.weight.T, np.float32, "copied")


def test_modules_that_share_a_parameter(torch):
    """Two layers with the same numbers would learn apart."""
    nn = torch.nn
    for first, second, name in (
        (nn.Linear(3, 3), nn.Linear(3, 3), "weight"),
        (nn.Linear(3, 3), nn.Linear(3, 3), "bias"),
        (nn.Linear(3, 3), nn.LayerNorm(3), "bias"),
    ):
        setattr(second, name, getattr(first, name))
        for module, place in (
            (nn.Sequential(first, nn.Tanh(), second), "2"),
            (nn.Sequential(first, nn.Sequential(second)), "1.0"),
        ):
            with pytest.raises(clnn.ConfigurationError, match=rf"0\.{name} and {place}\.{name} are one parameter"):
                clnn.interop.sequential(module, 3)


def test_modules_that_stand_in_several_places(device, dtype, rng, torch):
    """Activations and pools do their work in each of these, and one with weights has the same ones in each, here too."""
    nn, kind = torch.nn, torch.float32 if dtype is np.float32 else torch.float64
    act, pool, shared = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(3, 3)
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), act)
    modules = {
        "activation": ([nn.Linear(3, 4), act, nn.Linear(4, 2), act], (3,), 2),
        "pool": ([nn.Conv2d(1, 2, 3, padding=1), pool, act, nn.Conv2d(2, 2, 3, padding=1), pool], (1, 8, 8), 2),
        "shared": ([shared, nn.Tanh(), shared, act, shared], (3,), 1),
        "block": ([block, block, nn.Linear(3, 2)], (3,), 3),
    }
    for name, (inside, shape, layers) in modules.items():
        there = nn.Sequential(*inside).to(kind)
        net = clnn.interop.sequential(there, shape)
        assert len(ours(net)) == layers, name
        x = rng.standard_normal((3, *shape)).astype(dtype)
        inputs, mine = torch.tensor(x, requires_grad=True), clnn.tensor(x, dtype, requires_grad=True)
        wanted, got = there(inputs), net(mine)
        (wanted * wanted).sum().backward()
        (got * got).sum().backward()
        close(got.numpy(), wanted, dtype, name)
        close(mine.grad.numpy(), inputs.grad, dtype, f"gradient by the input of {name}")
        first = next(iter(there.parameters())).grad
        close(next(iter(net.parameters())).grad.numpy(), first.T if first.ndim == 2 else first, dtype, name)
        close(net.predict(x), there.eval()(torch.tensor(x)), dtype, f"{name}, not in training")
        report = clnn.interop.to_torch(net, there)
        assert (layers < 2 or name == "block") == ("tied" in str(report))


def test_the_same_modules_stand_in_the_same_places(device, rng, torch):
    a, b, c = (torch.nn.Linear(3, 3) for _ in range(3))
    x = rng.standard_normal((2, 3)).astype(np.float32)
    for there, places, fits in (
        ((a, b, b, c), "pqqr", True),
        ((a, b, a), "pqp", True),
        ((a, b, a), "pqr", True),  # two that learn apart, with the same values
        ((a, b, b), "pqp", False),
        ((a, b, c), "pqp", False),
    ):
        mine = {place: clnn.Dense(3) for place in places}
        net, module = clnn.Sequential([mine[place] for place in places], 3), torch.nn.Sequential(*there)
        if fits:
            clnn.interop.from_torch(module, net)
            close(net.predict(x), module(torch.tensor(x)), np.float32, places)
        else:
            with pytest.raises(
                clnn.CheckpointError, match=r"the weights of an earlier step here|Left over in PyTorch: 2\."
            ):
                clnn.interop.from_torch(module, net)


def test_sequentials_that_do_more_than_their_modules(torch):
    nn = torch.nn

    class Sequential(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked, before, replaced, inside = (nn.Sequential(nn.Linear(3, 3)) for _ in range(4))
    hooked.register_forward_hook(lambda *_: None)
    before.register_forward_pre_hook(lambda *_: None)
    replaced.forward = inside[0].forward = lambda x: x
    block = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    block.linear1.register_forward_hook(lambda *_: None)
    wrong = (
        (hooked, r"(it|1) \(Sequential\): it has forward hooks"),
        (before, r"(it|1) \(Sequential\): it has forward hooks"),
        (replaced, r"(it|1) \(Sequential\): its forward was replaced"),
        (inside, r"0 \(Linear\): its forward was replaced"),
        (Sequential(nn.Linear(3, 3)), "no layer of clnn is its twin"),
        (nn.Sequential(block), "it has forward hooks"),
    )
    for module, said in wrong:
        for there in (module, nn.Sequential(nn.Linear(3, 3), module)):
            with pytest.raises(clnn.ConfigurationError, match=said):
                clnn.interop.sequential(there, 3)
    two = nn.Sequential(hooked, nn.Linear(3, 3))
    report = clnn.interop.from_torch(two, clnn.Sequential([clnn.Dense(3), clnn.Dense(3)], 3))
    assert "was not compared" in str(report)


# -- models of one's own ----------------------------------------------------------------------------------------------
class Decoding(clnn.Model):
    def __init__(self):
        self.block = clnn.TransformerDecoderLayer(2, 6, "relu", norm_first=False)
        self.scale = clnn.MultiHeadAttention(2)

    def forward(self, x, context):
        return self.scale(self.block(x, context), context)


def decoding(torch, dtype):
    class There(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torch.nn.TransformerDecoderLayer(4, 2, 6, 0.0, batch_first=True)
            self.scale = torch.nn.MultiheadAttention(4, 2, batch_first=True, kdim=4, vdim=4)

        def forward(self, x, context):
            mask = torch.ones(len(x[0]), len(x[0]), dtype=bool).triu(1)
            y = self.block(x, context, tgt_mask=mask)
            return self.scale(y, context, context, need_weights=False)[0]

    return There().to(torch.float32 if dtype is np.float32 else torch.float64)


def test_models_of_ones_own_there_and_back(device, dtype, rng, torch):
    """Layers whose orders differ, a recorded prediction that sees new weights, and the way back."""
    there = decoding(torch, dtype)
    x, context = (rng.standard_normal((2, t, 4)).astype(dtype) for t in (3, 5))
    net = Decoding()
    net.place(device, dtype)
    for _ in range(4):  # recorded
        before = net.predict((x, context))
    report = clnn.interop.from_torch(there, net)
    wanted = there(torch.tensor(x), torch.tensor(context))
    close(net.predict((x, context)), wanted, dtype)
    assert "block.self_attn.in_proj_weight" in str(report) and "causal" in str(report) and not report.left_there
    assert {c.there: c.here for c in report.copied}["block.linear1.weight"] == "block.widen.w"
    net.load_state_dict({name: a * 1.5 for name, a in net.state_dict().items()})
    clnn.interop.to_torch(net, there)
    close(net.predict((x, context)), there(torch.tensor(x), torch.tensor(context)), dtype)
    assert not np.allclose(before, net.predict((x, context)))


def test_cells_there_and_back(device, dtype, rng, torch):
    for kind, cell in (("RNNCell", clnn.SimpleRNNCell), ("LSTMCell", clnn.LSTMCell), ("GRUCell", clnn.GRUCell)):
        there = getattr(torch.nn, kind)(3, 5).to(torch.float32 if dtype is np.float32 else torch.float64)
        mine = cell(5)
        mine.place(device, dtype)
        mine.ensure_built((3,))
        x = rng.standard_normal((2, 3)).astype(dtype)

        def agree(there=there, mine=mine, x=x):
            wanted, got = there(torch.tensor(x)), mine(clnn.tensor(x, dtype))
            for a, b in zip(got, wanted) if isinstance(got, tuple) else [(got, wanted)]:
                close(a.numpy(), b, dtype)

        clnn.interop.from_torch(there, mine)
        agree()
        mine.load_state_dict({name: -2 * a for name, a in mine.state_dict().items()})
        clnn.interop.to_torch(mine, there)
        agree()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "strided", "state dict"])
def test_forms_of_tensors(device, rng, torch, kind):
    there = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    net = clnn.Sequential([clnn.Dense(6), clnn.Dense(3)], 4)
    if kind == "strided":
        there[0].weight.data = torch.randn(4, 12).T[::2]
    elif kind != "state dict":
        there.to(getattr(torch, kind))
    given = there.state_dict() if kind == "state dict" else there
    report = clnn.interop.from_torch(given, net)
    assert ("float16" in kind) == (f"from {kind}" in str(report))
    x = rng.standard_normal((5, 4)).astype(np.float32)
    close(net.predict(x), there.float()(torch.tensor(x)), np.float32)
    there.to(torch.float32 if kind.startswith("st") else getattr(torch, kind))
    net.load_state_dict({name: np.round(a * 8) for name, a in net.state_dict().items()})
    report = clnn.interop.to_torch(net, given if kind == "state dict" else there)
    close(net.predict(x), there.float()(torch.tensor(x)), np.float32)


def test_numbers_beyond_the_type_there(device, torch):
    for kind, most, beyond in (
        ("float16", 65504.0, 7e4),
        ("bfloat16", 3.3895e38, 3.4e38),
        ("float32", 3.4e38, 1e39),
    ):
        there = torch.nn.Linear(2, 2).to(getattr(torch, kind))
        before = there.weight.detach().clone()
        net = clnn.Sequential([clnn.Dense(2)], 2, "float64")
        net.load_state_dict({**net.state_dict(), "0.w": np.full((2, 2), -beyond)})
        with pytest.raises(clnn.CheckpointError, match=f"beyond .* the most that weight .{kind}. holds"):
            clnn.interop.to_torch(net, there)
        assert (there.weight == before).all()
        net.load_state_dict({**net.state_dict(), "0.w": np.full((2, 2), most)})
        clnn.interop.to_torch(net, there)
        assert torch.isfinite(there.weight).all() and there.weight.max() > 0.99 * most


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
def test_layers_inside_that_have_no_parameters_yet(device, torch, kind):
    there = getattr(torch.nn, f"Transformer{kind}Layer")(4, 2, 6, batch_first=True)
    block = getattr(clnn, f"Transformer{kind}Layer")(2, 6, "relu", norm_first=False)
    shapes = [(5, 4)] * (1 + (kind == "Decoder"))
    block.ensure_built(*shapes)
    for copy in (lambda: clnn.interop.from_torch(there, block), lambda: clnn.interop.to_torch(block, there)):
        with pytest.raises(clnn.ConfigurationError, match="layers without parameters as yet .*widen.*call it once"):
            copy()
    block(*[np.zeros((1, *shape), np.float32) for shape in shapes])
    clnn.interop.from_torch(there, block)


def test_a_layer_that_no_pass_has_reached(device, torch):
    class Half(clnn.Model):
        def __init__(self):
            self.used, self.waiting = clnn.Dense(3), clnn.Dense(3)

        def forward(self, x):
            return self.used(x)

    half = Half()
    half.predict(np.zeros((1, 3), np.float32))
    clnn.interop.from_torch(torch.nn.Linear(3, 3), half)
    with pytest.raises(clnn.CheckpointError, match=r"The model has layers without parameters as yet \(waiting\)"):
        clnn.interop.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)), half)


def test_tied_weights(device, torch):
    nn = torch.nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    there, one = Tied(), clnn.Sequential([clnn.Embedding(7, 4)], 3)
    report = clnn.interop.from_torch(there, one)
    assert "head.weight is the same array as embedding.weight: tied" in str(report) and len(report.copied) == 1
    two = clnn.Sequential([clnn.Embedding(7, 4), clnn.Dense(7, bias=False)], 3)
    assert "two that learn apart" in str(clnn.interop.from_torch(there, two))
    clnn.interop.to_torch(two, there)
    two.layers[1].load_state_dict({"w": np.ones((4, 7))})
    before = there.head.weight.detach().clone()
    with pytest.raises(clnn.CheckpointError, match="one array there, tied"):
        clnn.interop.to_torch(two, there)
    assert (there.head.weight == before).all()


def test_copies_are_seen_by_a_training_that_goes_on(device, rng, torch):
    """Also with momentum, where a step's gradient is written straight into velocities."""
    x, y = rng.standard_normal((64, 4)).astype(np.float32), rng.integers(0, 3, 64)
    net = clnn.Sequential([clnn.Dense(6, "tanh"), clnn.Dense(3)], 4)
    there = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    for momentum in (0.0, 0.9):
        net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(0.1, momentum), batch_size=8, epochs=2, progress=False)
        clnn.interop.from_torch(there, net)
        close(net.predict(x), there(torch.tensor(x)), np.float32)
        net.fit(x, y, loss="cross_entropy", optimizer=clnn.SGD(1e-6), batch_size=64, epochs=1, progress=False)
        assert np.abs(net.predict(x) - there(torch.tensor(x)).detach().numpy()).max() < 1e-4


# -- what does not fit ------------------------------------------------------------------------------------------------
def dense(*sizes, **how):
    return lambda: clnn.Sequential([clnn.Dense(n) for n in sizes], **({"input_shape": 4} | how))


@pytest.mark.parametrize("padding", [None, 0, 6])
def test_the_row_of_a_padding_is_zero_where_it_is_read_as_it_is(device, rng, tmp_path, padding):
    """PyTorch looked up what clnn reads as 0."""
    net = clnn.Sequential([clnn.Embedding(7, 4, padding=padding)], 3)
    net.load_state_dict({"0.w": rng.standard_normal((7, 4))})
    clnn.interop.to_safetensors(net, tmp_path / "there.safetensors")
    there, tokens = load_file(tmp_path / "there.safetensors")["0.weight"], np.arange(6).reshape(2, 3) + (padding == 6)
    np.testing.assert_array_equal(there[tokens], net.predict(tokens))
    back = clnn.Sequential([clnn.Embedding(7, 4, padding=padding)], 3)
    clnn.interop.from_safetensors(tmp_path / "there.safetensors", back)
    np.testing.assert_array_equal(back.predict(tokens), net.predict(tokens))


def weight_norm(nn, old):
    return nn.utils.weight_norm(nn.Linear(4, 3)) if old else nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))


def buffered(nn, torch):
    there = nn.Linear(4, 3)
    there.register_buffer("scale", torch.ones(1))
    return there


def with_row(nn):
    there = nn.Embedding(7, 4, padding_idx=2)
    there.weight.data[2] = 1
    return there


def pruning():
    return importlib.import_module("torch.nn.utils.prune")


def nan_in(nn):
    there = nn.Linear(4, 3)
    there.weight.data[1, 1] = float("nan")
    return there


EMBEDDING = lambda **how: lambda: clnn.Sequential([clnn.Embedding(7, 4, **how)], 3)  # noqa: E731
IMAGES = lambda *made: lambda: clnn.Sequential([one() for one in made], (4, 6, 6))  # noqa: E731
OVER_TIME = lambda made: lambda: clnn.Sequential([made()], (6, 4))  # noqa: E731
WRONG = {
    "a layer too many there": (
        lambda nn, _: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)),
        dense(3),
        r"Left over in PyTorch: 1\.weight \(2, 3\), 1\.bias",
    ),
    "a layer too many here": (lambda nn, _: nn.Linear(4, 3), dense(3, 2), r"Left over in clnn: 1\.w \(3, 2\), 1\.b"),
    "another size": (
        lambda nn, _: nn.Linear(4, 5),
        dense(3),
        r"weight \(5, 4\) is not of the shape that 0\.w \(4, 3\) takes",
    ),
    "no bias": (lambda nn, _: nn.Linear(4, 3, bias=False), dense(3), r"Left over in clnn: 0\.b \(3,\)"),
    "another class": (lambda nn, _: nn.Conv1d(4, 3, 1), dense(3), r"Left over in PyTorch: weight \(3, 4, 1\)"),
    "a square of another class": (
        lambda nn, _: nn.Embedding(4, 4),
        lambda: clnn.Sequential([clnn.Dense(4, bias=False)], 4),
        r"the whole \(Embedding\)",
    ),
    "not finite": (lambda nn, _: nan_in(nn), dense(3), r"^weight holds NaN"),
    "weight_norm": (lambda nn, _: weight_norm(nn, False), dense(3), "remove_parametrizations"),
    "weight_norm of old": (lambda nn, _: weight_norm(nn, True), dense(3), "remove_weight_norm"),
    "pruned": (lambda nn, _: pruning().random_unstructured(nn.Linear(4, 3), "weight", 0.5), dense(3), "prune.remove"),
    "lazy": (lambda nn, _: nn.LazyLinear(3), dense(3), "weight holds no values yet"),
    "meta": (lambda nn, _: nn.Linear(4, 3, device="meta"), dense(3), "weight is on the device meta"),
    "a buffer": (lambda nn, torch: buffered(nn, torch), dense(3), r"Left over in PyTorch: scale \(1,\)"),
    "too large": (
        lambda nn, torch: (
            nn.Linear(4, 3, dtype=torch.float64).requires_grad_(False).apply(lambda m: m.weight.fill_(1e40))
        ),
        dense(3),
        "beyond 3.4e",
    ),
    "sparse": (
        lambda nn, torch: {"weight": torch.ones(3, 4).to_sparse(), "bias": torch.ones(3)},
        dense(3),
        "weight cannot be read",
    ),
    "complex": (lambda nn, torch: nn.Linear(4, 3, dtype=torch.complex64), dense(3), "weight is of complex64"),
    "not built": (lambda nn, _: nn.Linear(4, 3), lambda: clnn.Sequential([clnn.Dense(3)]), "is not built"),
    "no model": (lambda nn, _: nn.Linear(4, 3), lambda: "net", "str is none"),
    "no module": (lambda nn, _: 3, dense(3), "int is neither"),
    "a checkpoint with more": (lambda nn, _: {"epoch": 3}, dense(3), r"'epoch' is a int: of a checkpoint"),
    "a path": (lambda nn, _: "model.pt", dense(3), "pickles"),
    "eps": (
        lambda nn, _: nn.BatchNorm2d(4, eps=1e-3),
        IMAGES(clnn.BatchNorm),
        r"has epsilon 0\.001, and 0 \(BatchNorm\) 1e-05",
    ),
    "momentum": (
        lambda nn, _: nn.BatchNorm2d(4, momentum=0.01),
        IMAGES(clnn.BatchNorm),
        r"BatchNorm\(momentum=0\.99\).*ignore=\('momentum',\)",
    ),
    "no statistics": (
        lambda nn, _: nn.BatchNorm2d(4, track_running_stats=False),
        IMAGES(clnn.BatchNorm),
        "keeps no statistics",
    ),
    "eps of LayerNorm": (lambda nn, _: nn.LayerNorm(4, eps=1e-6), OVER_TIME(clnn.LayerNorm), "epsilon"),
    "same is another": (
        lambda nn, _: nn.Conv2d(4, 3, 3, 2, 1),
        IMAGES(lambda: clnn.Conv2D(3, 3, stride=2, padding="same")),
        "padding",
    ),
    "stride": (lambda nn, _: nn.Conv2d(4, 3, 3, 2), IMAGES(lambda: clnn.Conv2D(3, 3)), r"has stride \(2, 2\)"),
    "padding mode": (
        lambda nn, _: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"),
        IMAGES(lambda: clnn.Conv2D(3, 3, padding=1)),
        "padding",
    ),
    "a padding that is not here": (
        lambda nn, _: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
        IMAGES(lambda: clnn.Conv2D(3, 3)),
        "circular.*ignore=",
    ),
    "another activation": (
        lambda nn, _: nn.Sequential(nn.Linear(4, 3), nn.GELU()),
        lambda: clnn.Sequential([clnn.Dense(3, "gelu_tanh")], 4),
        "step 2 .* is gelu in PyTorch, and gelu_tanh here.*between",
    ),
    "a slope": (
        lambda nn, _: nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.2)),
        lambda: clnn.Sequential([clnn.Dense(3, "leaky_relu")], 4),
        r"leaky_relu\(0.2\)",
    ),
    "another pool": (
        lambda nn, _: nn.Sequential(nn.AvgPool2d(3, padding=1), nn.Conv2d(4, 3, 1)),
        IMAGES(lambda: clnn.AvgPool2D(3, padding=1, count_include_pad=False), lambda: clnn.Conv2D(3, 1)),
        "count_include_pad",
    ),
    "a step more": (
        lambda nn, _: nn.Sequential(nn.Linear(4, 3)),
        lambda: clnn.Sequential([clnn.Dense(3, "softmax")], 4),
        "is nothing in PyTorch, and softmax here",
    ),
    "groups": (lambda nn, _: nn.Conv2d(2, 4, 3), IMAGES(lambda: clnn.Conv2D(4, 3, groups=2)), "groups"),
    "relu for tanh": (
        lambda nn, _: nn.RNN(4, 3, nonlinearity="relu"),
        OVER_TIME(lambda: clnn.SimpleRNN(3)),
        "activation 'relu'",
    ),
    "relu for tanh, both ways": (
        lambda nn, _: nn.RNN(4, 3, nonlinearity="relu", bidirectional=True),
        OVER_TIME(lambda: clnn.Bidirectional(clnn.SimpleRNN(3))),
        "activation 'relu'",
    ),
    "both ways, summed": (
        lambda nn, _: nn.GRU(4, 3, bidirectional=True),
        OVER_TIME(lambda: clnn.Bidirectional(clnn.GRU(3), "sum")),
        "merge_mode 'concat'",
    ),
    "reset before": (
        lambda nn, _: nn.GRU(4, 3, bias=False),
        OVER_TIME(lambda: clnn.GRU(3, use_bias=False, reset_after=False)),
        "reset_after",
    ),
    "projection": (lambda nn, _: nn.LSTM(4, 5, proj_size=3), OVER_TIME(lambda: clnn.LSTM(3)), "projects the state"),
    "heads": (lambda nn, _: nn.MultiheadAttention(4, 2), OVER_TIME(lambda: clnn.MultiHeadAttention(4)), "has heads 2"),
    "a learned key": (
        lambda nn, _: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        OVER_TIME(lambda: clnn.MultiHeadAttention(2)),
        "add_bias_kv",
    ),
    "norm_first": (
        lambda nn, _: nn.TransformerEncoderLayer(4, 2, 6),
        OVER_TIME(lambda: clnn.TransformerEncoderLayer(2, 6, "relu")),
        "norm_first False",
    ),
    "activation of a block": (
        lambda nn, _: nn.TransformerEncoderLayer(4, 2, 6, norm_first=True),
        OVER_TIME(lambda: clnn.TransformerEncoderLayer(2, 6)),
        "activation 'relu'",
    ),
    "a row of padding": (lambda nn, _: with_row(nn), EMBEDDING(padding=2), "row of padding_idx=2 is not zero"),
    "padding of one side": (lambda nn, _: nn.Embedding(7, 4), EMBEDDING(padding=2), "padding None"),
    "max_norm": (lambda nn, _: nn.Embedding(7, 4, max_norm=1.0), EMBEDDING(), "max_norm"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:Lazy modules")
@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_an_error_and_changes_nothing(device, torch, what):
    made, here, said = WRONG[what]
    there, net = made(torch.nn, torch), here()
    before = net.state_dict() if what not in ("not built", "no model") else {}
    with pytest.raises(clnn.ClnnError, match=said):
        clnn.interop.from_torch(there, net)
    if before:
        after = net.state_dict()
        assert all((after[name] == before[name]).all() for name in before)
    if what not in ("not finite", "too large", "sparse", "lazy", "meta", "complex", "a row of padding", "a path"):
        with pytest.raises(clnn.ClnnError, match=said):
            clnn.interop.to_torch(net, there)


def test_sequentials_that_compute_the_same_in_other_words(device, rng, torch):
    nn, x = torch.nn, rng.standard_normal((2, 36 * 4)).astype(np.float32)
    modules = [nn.Conv2d(4, 6, 3, groups=2), nn.ELU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()]
    there = nn.Sequential(*modules, nn.Linear(6, 3), nn.LeakyReLU()).eval()
    inside = clnn.Sequential([clnn.GlobalAvgPool(), clnn.Dense(3), clnn.Activation("leaky_relu", slope=0.01)])
    net = clnn.Sequential([clnn.Reshape((4, 6, 6)), clnn.Conv2D(6, 3, "elu", groups=2), inside], 36 * 4)
    clnn.interop.from_torch(there, net)
    close(net.predict(x), there(torch.tensor(x.reshape(2, 4, 6, 6))), np.float32)
    other = clnn.Sequential([clnn.Conv2D(6, 3, groups=2), clnn.GlobalMaxPool(), clnn.Dense(3)], (4, 6, 6))
    clnn.interop.from_torch(there, other, ignore="between")
    assert (other.state_dict()["0.w"] == net.state_dict()["1.w"]).all()


def test_as_much_as_fits(device, torch):
    """A network of more classes than the one whose weights it starts from."""
    there = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6, eps=1e-3), torch.nn.Linear(6, 10))
    net = clnn.Sequential([clnn.Dense(6), clnn.BatchNorm(), clnn.Dense(3)], 4)
    before = net.state_dict()
    report = clnn.interop.from_torch(there, net, strict=False, ignore=("epsilon",))
    after = net.state_dict()
    assert report.left_there == ["2.weight (10, 6)", "2.bias (10,)"] and report.left_here == ["2.w (6, 3)", "2.b (3,)"]
    assert (after["0.w"] == there[0].weight.detach().numpy().T).all() and (after["2.w"] == before["2.w"]).all()
    assert "left in PyTorch: 2.weight (10, 6)" in str(report)


# -- without torch ----------------------------------------------------------------------------------------------------
class Module:
    """A stand-in for a module of PyTorch: its class's name, arguments, arrays, and modules inside."""

    def __init__(self, arrays=(), children=(), **arguments):
        self.arrays, self._modules = dict(arrays), dict(children)
        vars(self).update(arguments)

    def named_modules(self, prefix="", remove_duplicate=True):
        yield prefix, self
        for name, child in self._modules.items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def state_dict(self):
        found = dict(self.arrays)
        for name, child in self._modules.items():
            found |= {f"{name}.{inner}": a for inner, a in child.state_dict().items()}
        return found


class Linear(Module):
    def __init__(self, rng, inputs, outputs):
        arrays = {"weight": rng.standard_normal((outputs, inputs)), "bias": rng.standard_normal(outputs)}
        super().__init__(arrays, out_features=outputs, **arrays)


class ReLU(Module):
    pass


class Sequential(Module):
    def __init__(self, *modules):
        super().__init__(children={str(i): one for i, one in enumerate(modules)})


def test_stand_ins(device, dtype, rng):
    there = Sequential(Linear(rng, 4, 6), ReLU(), Linear(rng, 6, 3))
    a, b = there._modules["0"].arrays, there._modules["2"].arrays
    x = rng.standard_normal((5, 4)).astype(dtype)
    net = clnn.interop.sequential(there, 4, dtype)
    assert [repr(one) for one in net.layers] == ["Dense(6, activation='relu')", "Dense(3)"]

    def wanted():
        return np.maximum(x @ a["weight"].T + a["bias"], 0) @ b["weight"].T + b["bias"]

    close(net.predict(x), wanted(), dtype)
    net.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
    report = clnn.interop.to_torch(net, there)
    close(net.predict(x), wanted(), dtype)
    assert str(report).splitlines()[1].split() == ["0.w", "0.weight", "(6,", "4)", "transposed"]


def test_a_write_that_fails_leaves_what_was_there(device, rng):
    there, net = Sequential(Linear(rng, 4, 6), Linear(rng, 6, 3)), clnn.Sequential([clnn.Dense(6), clnn.Dense(3)], 4)
    there._modules["1"].arrays["weight"].flags.writeable = False
    before = {name: a.copy() for name, a in there.state_dict().items()}
    with pytest.raises(clnn.CheckpointError, match=r"1\.weight cannot be written"):
        clnn.interop.to_torch(net, there)
    assert all((a == before[name]).all() for name, a in there.state_dict().items())


def test_torch_is_not_imported(tmp_path):
    code = (
        "import sys, numpy as np, clnn; net = clnn.Sequential([clnn.Dense(3)], 4); "
        "clnn.interop.from_torch({'weight': np.ones((3, 4)), 'bias': np.ones(3)}, net); "
        f"clnn.interop.to_safetensors(net, {str(tmp_path / 'a.safetensors')!r}); "
        "print({'torch', 'keras', 'tensorflow', 'jax'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300)
    assert done.stdout.strip() == "set()", done.stderr


# -- files ------------------------------------------------------------------------------------------------------------
def written(path, arrays):
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    return path


def test_files_by_numbers_by_name_and_by_shape(device, rng, tmp_path):
    made = lambda: clnn.Sequential([clnn.Dense(4) for _ in range(12)], 4)  # noqa: E731
    arrays = {
        f"net.{3 * i}.{name}": rng.standard_normal((4, 4)[: 2 - (name == "bias")])
        for i in range(12)
        for name in ("weight", "bias")
    }
    path, net = written(tmp_path / "a.safetensors", arrays), made()
    report = clnn.interop.from_safetensors(path, net)
    state = net.state_dict()
    assert {c.there: c.here for c in report.copied}["net.30.weight"] == "10.w"  # not in the order of the alphabet
    assert all((state[f"{i}.w"] == arrays[f"net.{3 * i}.weight"].T.astype(np.float32)).all() for i in range(12))
    again = made()
    clnn.interop.to_safetensors(net, tmp_path / "b.safetensors", like=path)
    assert load_file(tmp_path / "b.safetensors").keys() == arrays.keys()
    clnn.interop.from_safetensors(tmp_path / "b.safetensors", again)
    assert all((a == state[name]).all() for name, a in again.state_dict().items())
    clnn.interop.to_safetensors(again, tmp_path / "c.safetensors")
    assert {*load_file(tmp_path / "c.safetensors")} == {f"{i}.{name}" for i in range(12) for name in ("weight", "bias")}

    shapes = {"stem": (6, 4), "b": (5, 6), "head": (3, 5)}
    arrays = {f"{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    net = clnn.Sequential([clnn.Dense(n, bias=False) for n in (6, 5, 3)], 4)
    report = clnn.interop.from_safetensors(written(path, arrays), net)
    assert [c.there for c in report.copied] == ["stem.weight", "b.weight", "head.weight"]


def test_a_file_whose_order_nobody_knows_asks_for_it(device, rng, tmp_path):
    arrays = {f"{name}.weight": rng.standard_normal((4, 4)) for name in ("query", "key", "value")}
    path, net = (
        written(tmp_path / "a.safetensors", arrays),
        clnn.Sequential([clnn.Dense(4, bias=False) for _ in "qkv"], 4),
    )
    with pytest.raises(clnn.CheckpointError, match=r"0 \(Dense\) could be any of key, query, value.*order="):
        clnn.interop.from_safetensors(path, net)
    with pytest.raises(clnn.CheckpointError, match="unknown are 'kee', missing are key"):
        clnn.interop.from_safetensors(path, net, order=["query", "kee", "value"])
    clnn.interop.from_safetensors(path, net, order=["query", "key", "value"])
    assert (net.state_dict()["1.w"] == arrays["key.weight"].T.astype(np.float32)).all()
    with pytest.raises(clnn.ConfigurationError, match="order"):
        clnn.interop.to_safetensors(net, path, order=["query"])


EVERY = {
    "recurrent": (
        [
            lambda: clnn.Bidirectional(clnn.LSTM(5, return_sequences=True)),
            lambda: clnn.GRU(3, return_sequences=True),
            lambda: clnn.SimpleRNN(2),
        ],
        (6, 4),
    ),
    "attention": (
        [lambda: clnn.TransformerEncoderLayer(2, 6), lambda: clnn.MultiHeadAttention(2), lambda: clnn.RMSNorm()],
        (6, 4),
    ),
    "images": (
        [
            lambda: clnn.Conv2D(6, 3, groups=2),
            clnn.BatchNorm,
            clnn.PReLU,
            lambda: clnn.DepthwiseConv2D(2),
            lambda: clnn.Conv2DTranspose(4, 2),
            clnn.InstanceNorm,
        ],
        (4, 6, 6),
    ),
    "tokens": ([lambda: clnn.Embedding(7, 4), lambda: clnn.PositionalEmbedding(6), lambda: clnn.LayerNorm()], (6,)),
}


@pytest.mark.parametrize("what", EVERY)
def test_files_of_every_layer(device, dtype, tmp_path, what):
    made, shape = EVERY[what]
    nets = [clnn.Sequential([one() for one in made], shape, np.dtype(dtype).name, seed=i) for i in (1, 2)]
    clnn.interop.to_safetensors(nets[0], tmp_path / "a.safetensors")
    names = load_file(tmp_path / "a.safetensors")
    if what == "recurrent":
        assert names["0.weight_ih_l0_reverse"].shape == (20, 4) and names["1.bias_hh_l0"].shape == (9,)
    if what == "attention":
        assert names["0.self_attn.in_proj_weight"].shape == (12, 4) and "0.norm1.weight" in names
    order = None
    if what != "recurrent":
        order = [unit.name for unit in pytorch.canonical(nets[0])[1]]
        order = [".".join(pytorch.IN_BLOCK.get(part, part) for part in name.split(".")) for name in order]
    clnn.interop.from_safetensors(tmp_path / "a.safetensors", nets[1], order=order)
    first, second = (net.state_dict() for net in nets)
    assert all((first[name] == second[name]).all() for name in first)


def test_pytorch_reads_what_is_written(device, rng, torch, tmp_path):
    reader = pytest.importorskip("safetensors.torch")
    there = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    net = clnn.Sequential([clnn.Dense(6), clnn.BatchNorm(), clnn.Dense(3)], 4)
    clnn.interop.to_safetensors(net, tmp_path / "a.safetensors")
    there.load_state_dict(reader.load_file(tmp_path / "a.safetensors"))
    x = rng.standard_normal((5, 4)).astype(np.float32)
    close(net.predict(x), there.eval()(torch.tensor(x)), np.float32)
    there.train()(torch.randn(9, 4))
    reader.save_file(there.half().state_dict(), tmp_path / "b.safetensors")
    report = clnn.interop.from_safetensors(tmp_path / "b.safetensors", net)
    assert "from float16" in str(report)
    close(net.predict(x), there.float().eval()(torch.tensor(x)), np.float32)


def test_bfloat16_in_files(device, tmp_path):
    values = np.array([[1.5, -2.0, 3.25, 0.0]], np.float32)
    raw = (values.view("<u4") >> 16).astype("<u2").tobytes()
    header = b'{"weight":{"dtype":"BF16","shape":[1,4],"data_offsets":[0,8]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    net = clnn.Sequential([clnn.Dense(1, bias=False)], 4)
    clnn.interop.from_safetensors(tmp_path / "a.safetensors", net)
    assert (net.state_dict()["0.w"] == values.T).all()


def test_files_that_are_refused(device, tmp_path):
    net = clnn.Sequential([clnn.Dense(1)], 4)
    before = net.state_dict()
    for name in ("a.pt", "a.pth", "a.bin", "a.ckpt", "a.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        for read in (clnn.interop.from_safetensors, lambda path, net: clnn.interop.from_torch(path, net)):
            with pytest.raises(clnn.CheckpointError, match=r'save_file\(module.state_dict\(\), "model.safetensors"\)'):
                read(tmp_path / name, net)
        with pytest.raises(clnn.CheckpointError, match="safetensors"):
            clnn.interop.to_safetensors(net, tmp_path / name)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF")
    (tmp_path / "zip.safetensors").write_bytes(b"PK\x03\x04")
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", 100) + b"{}")
    header = b'{"weight":{"dtype":"F8_E4M3","shape":[1,4],"data_offsets":[0,4]}}'
    (tmp_path / "f8.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    for name, said in {
        "a.h5": "load_model",
        "zip.safetensors": "pickles",
        "cut.safetensors": "damaged",
        "f8.safetensors": "F8",
        "none.safetensors": "no file",
        "a.safetensors.index.json": "one file",
    }.items():
        with pytest.raises(clnn.CheckpointError, match=said):
            clnn.interop.from_safetensors(tmp_path / name, net)
    net.save(tmp_path / "whole.safetensors")
    with pytest.raises(clnn.CheckpointError, match="clnn.load"):
        clnn.interop.from_safetensors(tmp_path / "whole.safetensors", net)
    with pytest.raises(clnn.CheckpointError, match="from_safetensors"):
        clnn.interop.from_torch(written(tmp_path / "a.safetensors", before), net)
    assert all((a == before[name]).all() for name, a in net.state_dict().items())


@pytest.mark.two_devices
def test_a_model_on_another_device(device, other_device, rng, tmp_path):
    net = clnn.Sequential([clnn.Dense(3)], 4).to(other_device)
    weights = {"weight": rng.standard_normal((3, 4)).astype(np.float32), "bias": np.ones(3, np.float32)}
    clnn.interop.from_torch(weights, net)
    assert (net.state_dict()["0.w"] == weights["weight"].T).all() and net.layers[0].w.device is other_device
    assert files.read(written(tmp_path / "a.safetensors", weights)).keys() == weights.keys()
