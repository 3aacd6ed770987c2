"""What Keras and PyTorch call things that clnn has under another name: where one of these names is used, the error says so."""

from __future__ import annotations

import difflib
from typing import Any

from .checks import arguments
from .errors import ArgumentError

_FOUND = "leave it out: clnn finds it from the input"
# Arguments of layers and optimizers: the names here, of which the first that is taken is meant, or what to do
ARGUMENTS: dict[str, tuple[str, ...] | str] = {
    "units": ("size",),
    "out_features": ("size",),
    "in_features": _FOUND,
    "filters": ("channels",),
    "out_channels": ("channels",),
    "in_channels": _FOUND,
    "num_features": _FOUND,
    "num_channels": _FOUND,
    "input_size": _FOUND,
    "normalized_shape": ("axis",),
    "kernel_size": ("kernel", "size"),
    "pool_size": ("size",),
    "strides": ("stride",),
    "dilation_rate": ("dilation",),
    "num_groups": ("groups",),
    "scale_factor": ("factor",),
    "target_shape": ("shape",),
    "use_bias": ("bias",),
    "bias": ("use_bias",),
    "kernel_initializer": ("weight_init",),
    "embeddings_initializer": ("weight_init",),
    "bias_initializer": ("bias_init",),
    "recurrent_initializer": ("recurrent_init",),
    "kernel_regularizer": "give the optimizer weight_decay (L2) or l1",
    "bias_regularizer": "give the optimizer weight_decay (L2) or l1",
    "kernel_constraint": ("max_norm",),
    "nonlinearity": ("activation",),
    "hidden_size": ("units",),
    "num_layers": "put several layers into a Sequential",
    "batch_first": "leave it out: clnn takes (batch, time, features)",
    "bidirectional": "write clnn.Bidirectional(layer)",
    "eps": ("epsilon",),
    "affine_transform": ("affine",),
    "elementwise_affine": ("affine",),
    "center": ("affine",),
    "scale": ("affine",),
    "track_running_stats": "leave it out: running statistics are always kept",
    "p": ("rate",),
    "num_heads": ("heads",),
    "nhead": ("heads",),
    "embed_dim": _FOUND,
    "d_model": _FOUND,
    "key_dim": _FOUND,
    "dim_feedforward": ("hidden",),
    "is_causal": ("causal",),
    "use_causal_mask": ("causal",),
    "num_embeddings": ("tokens",),
    "input_dim": ("tokens",),
    "embedding_dim": ("size",),
    "output_dim": ("size",),
    "padding_idx": ("padding",),
    "learning_rate": ("lr",),
    "beta_1": ("beta1",),
    "beta_2": ("beta2",),
    "betas": "give beta1 and beta2",
    "rho": ("alpha",),
    "amsgrad": "take clnn.AMSGrad",
    "clipnorm": ("clip_norm",),
    "global_clipnorm": ("clip_norm",),
    "clipvalue": ("clip_value",),
    "use_ema": "give ema, such as ema=0.999",
    "params": "leave it out: fit and optimizer.step(net.parameters()) say what is trained",
    "restore_best_weights": ("restore_best",),
    "data_format": "clnn takes images as (channels, height, width)",
    "input_shape": "give it to Sequential: Sequential(layers, input_shape=...)",
    "trainable": "set layer.trainable = False",
    "name": "set layer.name",
    "dtype": "give it to Sequential, whose layers all have one type",
    "device": 'write "with clnn.use(device):" around it, or net.to(device)',
}  # fmt: skip
# Names of the package
NAMES: dict[str, str] = {
    "nn": "clnn itself: clnn.Dense, clnn.Conv2D, ...",
    "Module": "clnn.Model, or clnn.Layer for a part of one",
    "BatchNormalization": "clnn.BatchNorm",
    "LayerNormalization": "clnn.LayerNorm",
    "GroupNormalization": "clnn.GroupNorm",
    "LRN": "clnn.LocalResponseNorm",
    "ZeroPad": "clnn.Padding",
    "ZeroPadding": "clnn.Padding",
    "Upsample": "clnn.UpSampling",
    "MaxPooling": "clnn.MaxPool",
    "AveragePooling": "clnn.AvgPool",
    "GlobalAveragePooling": "clnn.GlobalAvgPool",
    "GlobalMaxPooling": "clnn.GlobalMaxPool",
    "AdaptiveAvgPool": "clnn.AdaptiveAvgPool",
    "AdaptiveMaxPool": "clnn.AdaptiveMaxPool",
    "BatchNorm": "clnn.BatchNorm",
    "InstanceNorm": "clnn.InstanceNorm",
    "Dropout": "clnn.SpatialDropout",
    "SpatialDropout": "clnn.SpatialDropout",
    "Conv": "clnn.Conv",
    "MaxPool": "clnn.MaxPool",
    "AvgPool": "clnn.AvgPool",
    "ConvTranspose": "clnn.ConvTranspose",
    "ReLU": 'clnn.Activation("relu"), or activation="relu" of the layer before',
    "Softmax": 'clnn.Activation("softmax")',
    "Sigmoid": 'clnn.Activation("sigmoid")',
    "Tanh": 'clnn.Activation("tanh")',
    "GELU": 'clnn.Activation("gelu")',
    "CrossEntropyLoss": 'loss="cross_entropy", clnn.losses.CrossEntropy',
    "CategoricalCrossentropy": 'loss="cross_entropy", clnn.losses.CrossEntropy',
    "SparseCategoricalCrossentropy": 'loss="cross_entropy", which takes class numbers',
    "NLLLoss": 'loss="log_likelihood"',
    "MSELoss": 'loss="mse"',
    "L1Loss": 'loss="mae"',
    "MeanSquaredError": 'loss="mse"',
    "BCELoss": 'loss="binary_cross_entropy"',
    "BCEWithLogitsLoss": 'loss="binary_cross_entropy", of a last layer without activation',
    "BinaryCrossentropy": 'loss="binary_cross_entropy"',
    "CosineAnnealingLR": "clnn.Cosine",
    "CosineDecay": "clnn.Cosine",
    "OneCycleLR": "clnn.OneCycle",
    "StepLR": "clnn.StepDecay",
    "ReduceLROnPlateau": "clnn.ReduceOnPlateau",
    "ModelCheckpoint": "clnn.Checkpoint",
    "CSVLogger": "clnn.CSVLog",
    "LearningRateScheduler": "clnn.LearningRate",
    "LambdaCallback": "clnn.Lambda",
    "manual_seed": "clnn.seed",
    "from_numpy": "clnn.tensor",
    "cat": "clnn.concatenate",
    "DataLoader": "fit itself, which shuffles and makes mini-batches, or clnn.data.Batches",
    "optimizers": "clnn.optim",
    "jit": "clnn.step",
}
# Methods of models
METHODS: dict[str, str] = {
    "compile": "give loss=, optimizer= and metrics= to fit",
    "add": "give Sequential all layers in one list",
    "train_on_batch": "write a step: @clnn.step, loss.backward(), optimizer.step(net.parameters())",
    "fit_generator": "give fit arrays, or call a @clnn.step for each batch",
    "save_weights": "net.save(path), or safetensors of net.state_dict()",
    "load_weights": "clnn.load(path), or net.load_state_dict(arrays)",
    "cuda": 'net.to("gpu")',
    "cpu": 'net.to("cpu")',
    "modules": "net.layers_inside()",
    "children": "net.layers",
    "count_params": "net.summary() says it",
}
PAGE = 'see "Coming from Keras or PyTorch" in clnn/README.md'


def check_arguments(kind: Any, options: dict[str, Any]) -> None:
    """ArgumentError for an option that a class of clnn's does not take, with the name it has here."""
    known = arguments(kind)
    wrong = next((name for name in options if known and name not in known), None)
    if wrong is None:
        return
    told = ARGUMENTS.get(wrong, ())
    if isinstance(told, str):
        raise ArgumentError(f"{kind.__name__} takes no {wrong}: {told}; {PAGE}")
    meant = next((name for name in told if name in known), None)
    if meant is not None:
        raise ArgumentError(f"{kind.__name__} takes {meant}, not {wrong}; {PAGE}")
    close = difflib.get_close_matches(wrong, known, 1)
    raise ArgumentError(
        f"{kind.__name__} takes no {wrong}{f', perhaps {close[0]}' if close else ''}; it takes {', '.join(sorted(known))}"
    )


def meant_by(name: str, known: Any) -> str:
    """What to say of a name that the package does not have, or nothing."""
    if name in NAMES:
        return f": that is {NAMES[name]}; {PAGE}"
    stem, axes = (name[:-2], name[-2]) if name[-2:].lower() in ("1d", "2d", "3d") else (name, "")
    if axes and stem in NAMES:  # Conv2d, MaxPooling2D, BatchNorm2d
        own = next((own for own in (f"{NAMES[stem]}{axes}D", NAMES[stem]) if own.removeprefix("clnn.") in known), "")
        transposed = f"clnn.Conv{axes}DTranspose" if stem == "ConvTranspose" else own
        return f": that is {transposed}; {PAGE}"
    close = difflib.get_close_matches(name, known, 1)
    return f": did you mean clnn.{close[0]}?" if close else ""
