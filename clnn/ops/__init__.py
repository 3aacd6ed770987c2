"""The ops: each is a function that returns its result and the closure that takes a gradient back.

An op takes and returns `Array`s and knows nothing of the tape. `y, backward = op(x, w, ...)`; `backward(dy)` yields
`(input, gradient)`, or `(input, input, ..., gradient)` where one launch serves several. A gradient is an `Array`, or a
function that writes it into a `Sink` per input. If `y.activation` is set, y = f(z), `backward` takes dz = dy f'(z): the op that
computes dy multiplies by f' in its own launch.
"""
