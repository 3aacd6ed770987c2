"""Floor 3, the ops: each is a function that returns its result and the closure that takes a gradient back.

An op takes and returns `Array`s and knows nothing of the tape. `y, backward = op(x, w, ...)`; `backward(dy)` yields
`(input, gradient)`, or `(input, input, ..., gradient)` where one launch serves several. A gradient is an `Array`, or a
function that writes it into a `Sink` per input. Where `y.activation` is set, `backward` takes dz, the gradient by the
activation's input, instead of dy: whoever computes that gradient multiplies by f' in the same launch.
"""
