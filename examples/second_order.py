"""Second order against first: a small network on all digits at once, by SGD, L-BFGS and Hessian-free.

python examples/second_order.py [evaluations]

An evaluation is a forward and a backward pass over all the data; Hessian-free spends most of them on products H v.
"""

import sys

import clnn

if "--help" in sys.argv:
    sys.exit(print(__doc__))

most = int(sys.argv[1]) if len(sys.argv) > 1 else 300

(x, y), (x_test, y_test) = clnn.data.digits()
x, y = clnn.tensor(x), clnn.tensor(y)


def network():
    """The same network for each, and its loss with a penalty on weights; recorded, so it takes its gradients itself."""
    net = clnn.Sequential([clnn.Dense(30, "tanh"), clnn.Dense(10)], input_shape=64, seed=1)
    weights = [p for p in net.parameters() if p.decays]

    @clnn.step
    def closure():
        loss = clnn.losses.cross_entropy(net(x), y) + 0.001 * sum((w * w).sum() for w in weights)
        loss.backward()
        return loss

    return net, closure


def show(name, evaluations, loss):
    accuracy = (net.predict_classes(x_test) == y_test).mean()
    print(f"{name:12} {evaluations:5} evaluations: loss {loss:.6f}, test accuracy {accuracy:.2%}")


net, closure = network()
sgd = clnn.SGD(0.5, momentum=0.9)
for evaluation in range(1, most + 1):
    loss = closure()
    sgd.step(net.parameters())
    if evaluation % (most // 3) == 0:
        show("SGD", evaluation, float(loss))

for name, optimizer, steps in (("L-BFGS", clnn.LBFGS(), 25), ("Hessian-free", clnn.HessianFree(iterations=10), 4)):
    net, closure = network()
    reached = None
    while optimizer.evaluations < most and (reached is None or reached.why == "steps"):
        reached = optimizer.minimize(closure, net.parameters(), steps)
        show(name, optimizer.evaluations, reached.loss)
