"""A network trained in PyTorch, brought in, fine-tuned on clnn, and sent back: python examples/from_torch.py [epochs]

It knows digits 0 to 4 when it comes, and all ten when it goes. PyTorch has to be installed: pip install torch
"""

import sys

if "--help" in sys.argv:
    sys.exit(print(__doc__))

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("this example trains its first network in PyTorch, which is not here: pip install torch")

import clnn

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
(x, y), (x_test, y_test) = clnn.data.digits()
x, x_test = x.reshape(-1, 1, 8, 8), x_test.reshape(-1, 1, 8, 8)
torch.manual_seed(1)
module = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Dropout(0.3),
    nn.Linear(32 * 4 * 4, 10),
)


def accuracy():
    module.eval()
    with torch.no_grad():
        return float((module(torch.tensor(x_test)).argmax(1).numpy() == y_test).mean())


known = torch.tensor(x[y < 5]), torch.tensor(y[y < 5]).long()
optimizer = torch.optim.Adam(module.parameters(), 0.002)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(known[0]), known[1]).backward()
    optimizer.step()
print(f"PyTorch, digits 0 to 4: test accuracy {accuracy():.2%}")

net = clnn.interop.sequential(module.eval(), input_shape=(1, 8, 8))
print(net.summary())
print(f"the same in clnn: test accuracy {(net.predict_classes(x_test) == y_test).mean():.2%}")
net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), epochs=epochs, batch_size=32, seed=1, progress=False)
print(f"fine-tuned in clnn, all digits: test accuracy {(net.predict_classes(x_test) == y_test).mean():.2%}")

print(clnn.interop.to_torch(net, module))
print(f"back in PyTorch: test accuracy {accuracy():.2%}")
