"""Chapter 3: a network that learns its first 1,000 images by heart, and what regularization does about it.

The book: 82.27% on the test data without, where the cost there begins to rise after about 15 epochs; 87.1% with lambda .1.

python examples/book/chapter_3_overfitting.py [epochs [curves.png]]
"""

import sys

import network2

if "--help" in sys.argv:
    sys.exit(print(__doc__))

training_data, _, test_data = network2.load_data()
few = training_data[0][:1000], training_data[1][:1000]
epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
curves = {}
for lmbda in (0.0, 0.1):
    net = network2.Network([few[0].shape[1], 30, 10])
    net.large_weight_initializer()
    costs, found, learnt, trained = net.SGD(
        few, epochs, 10, 0.5, lmbda=lmbda, evaluation_data=test_data, monitor_evaluation_cost=True,
        monitor_evaluation_accuracy=True, monitor_training_cost=True, monitor_training_accuracy=True, every=100,
    )  # fmt: skip
    accuracies = [100 * n / len(test_data[0]) for n in found], [100 * n / len(few[0]) for n in trained]
    curves[lmbda] = (costs, learnt), accuracies
    print(
        f"lambda {lmbda}: {trained[-1]} / {len(few[0])} in training, {max(found)} / {len(test_data[0])} at best on new images,"
    )
    print(f"cost there {min(costs):.3f} at best (epoch {costs.index(min(costs))}) and {costs[-1]:.3f} at last")

if len(sys.argv) > 2:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
    for lmbda, both in curves.items():
        for axis, (test, training), name in zip(axes, both, ("cost", "accuracy, %")):
            (line,) = axis.plot(test, label=f"lambda {lmbda}, test images")
            axis.plot(training, "--", color=line.get_color(), label=f"lambda {lmbda}, training images")
            axis.set_xlabel("epoch")
            axis.set_ylabel(name)
            axis.legend()
    figure.tight_layout()
    figure.savefig(sys.argv[2])

# Exercises
# 1. Where does the test cost begin to rise, and where the test accuracy stop? Why are these not the same epoch?
# 2. Try lambda 0.01 and 1.0. Which overfits, and which does not learn its training images?
# 3. Give early_stopping_n=10: at which epoch does each network stop, and how much accuracy does that cost?
