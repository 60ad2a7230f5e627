"""ResNet-18 and VGG-16 in plain PyTorch: what the JAX networks are compared with.

Written from He et al. (2016) and Simonyan and Zisserman (2015) with torchvision's parameter
names, for any width, head and image size. It needs PyTorch, which the library does not: run it
with an interpreter that has it. It prints the logits that stand as constants in the tests.

    python experiments/benchmarks/torch_reference.py

With ``train`` it is the PyTorch side of ``cpu_training.py`` and ``training_speed.py``, which
start it.

Weights and images come from ``np.random.RandomState(seed)``, whose streams are frozen, in this
order: the entries of the state dict sorted by name (the BatchNorm counters left out), then the
images ``[B, 3, H, W]`` from ``standard_normal``. An entry is

* ``standard_normal(shape) * sqrt(2 / fan_in)`` where it has two axes or more,
* ``uniform(0.5, 1.5, shape)`` for a running variance,
* ``uniform(0.4, 0.8, shape)`` for a BatchNorm's weight, which keeps eight residual blocks small,
* ``0.1 * standard_normal(shape)`` for a bias or a running mean,

drawn in float64 and rounded to float32.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

CASES = (
    # network, width, image height and width, seed
    ("resnet18", 8, (64, 48), 0),
    ("resnet18", 8, (109, 89), 1),
    ("vgg16", 4, (64, 48), 2),
    ("vgg16", 4, (256, 288), 3),
)
"""The second VGG case pools an 8x9 map to 7x7, the first blows a 2x1 map up."""
NUM_OUTPUTS = 6
BATCH_SIZE = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, C, H, W]`` to ``[B, outputs, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(nn.Module):
    """torchvision's ``resnet18`` at any width."""

    def __init__(self, width: int = 64, num_outputs: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, factor in enumerate((1, 2, 4, 8), start=1):
            outputs = width * factor
            stride = 1 if stage == 1 else 2
            blocks = nn.Sequential(
                BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)
            )
            setattr(self, f"layer{stage}", blocks)
            inputs = outputs
        self.fc = nn.Linear(inputs, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` to logits ``[B, num_outputs]``."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class VGG16(nn.Module):
    """torchvision's ``vgg16`` at any width; without dropout, which inference does not use."""

    def __init__(self, width: int = 64, num_outputs: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for factor, depth in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width * factor, 3, padding=1), nn.ReLU()]
                inputs = width * factor
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = 64 * width
        # Identities stand where torchvision has dropout, so that the numbering is the same.
        self.classifier = nn.Sequential(
            nn.Linear(inputs * 49, hidden),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(hidden, num_outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` to logits ``[B, num_outputs]``."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet18": ResNet18, "vgg16": VGG16}


def draw(stream: np.random.RandomState, name: str, shape: Sequence[int]) -> np.ndarray:
    """One entry of the state dict, as the module's docstring says."""
    if len(shape) > 1:
        value = stream.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = stream.uniform(0.5, 1.5, shape)
    elif name.endswith("weight"):
        value = stream.uniform(0.4, 0.8, shape)
    else:
        value = 0.1 * stream.standard_normal(shape)
    return value.astype(np.float32)


def reference_logits(
    network: str, width: int, image_size: tuple[int, int], seed: int
) -> np.ndarray:
    """Logits float32 ``[BATCH_SIZE, NUM_OUTPUTS]`` in inference mode."""
    stream = np.random.RandomState(seed)  # frozen streams are the point
    model = NETWORKS[network](width, NUM_OUTPUTS).eval()
    state = model.state_dict()
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.from_numpy(draw(stream, name, tuple(state[name].shape)))
    model.load_state_dict(state)
    images = stream.standard_normal((BATCH_SIZE, 3, *image_size)).astype(np.float32)
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


class Trainer:
    """ResNet-18 for 40 two-way attributes, trained as the JAX step trains it."""

    def __init__(
        self,
        layout: torch.memory_format,
        *,
        width: int = 64,
        device: str = "cpu",
        dtype: str = "float32",
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.layout, self.device, self.dtype = layout, device, dtype
        self.model = ResNet18(width, num_outputs=80).train().to(device, memory_format=layout)
        fused = device != "cpu"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 5e-4, weight_decay=1e-4, fused=fused
        )
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device).reshape(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device).reshape(1, 3, 1, 1)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _loss(
        self, images: torch.Tensor, attributes: torch.Tensor, mirrored: torch.Tensor
    ) -> torch.Tensor:
        x = ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=self.layout)
        x = torch.where(mirrored, x.flip(3), x)
        half = self.dtype != "float32"
        with torch.autocast(self.device, getattr(torch, self.dtype), enabled=half):
            logits = self.model(x).reshape(-1, 2)
        return nn.functional.cross_entropy(logits.float(), attributes.flatten())

    def step(self, images: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """One step on uint8 ``[B, 3, H, W]`` and int64 ``[B, 40]``; returns the loss."""
        mirrored = torch.rand(images.shape[0], 1, 1, 1, device=self.device) < 0.5
        loss = self.loss(images, attributes, mirrored)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


LAYOUTS = {"default": torch.contiguous_format, "channels_last": torch.channels_last}


def train_on_request(batch_size: int, image_size: Sequence[int], **options: Any) -> None:
    """Answers each line ``layout steps`` of standard input with the seconds that it took."""
    device = options["device"]
    shape = (batch_size, 3, *image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    attributes = torch.randint(0, 2, (batch_size, 40), device=device)
    # Channels last alone where the other layout would need memory for nothing.
    layouts = LAYOUTS if device == "cpu" else {"channels_last": torch.channels_last}
    trainers = {name: Trainer(layout, **options) for name, layout in layouts.items()}
    ready = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        layout, steps = line.split()
        start = time.perf_counter()
        for _ in range(int(steps)):
            loss = trainers[layout].step(images, attributes)
        value = float(loss)  # waits for the device
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": value}), flush=True)


def print_reference_logits() -> None:
    """Prints one JSON line per case."""
    print(f"# torch {torch.__version__}")
    for network, width, image_size, seed in CASES:
        logits = reference_logits(network, width, image_size, seed)
        print(f"# {network}, width {width}, {image_size}, seed {seed}")
        print(json.dumps([[round(float(value), 6) for value in row] for row in logits]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reference logits, or with ``train`` the PyTorch side of the speed comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train")
    train.add_argument("--batch-size", type=int, required=True)
    train.add_argument("--image-size", type=int, nargs=2, required=True)
    train.add_argument("--width", type=int, default=64)
    train.add_argument("--device", default="cpu")
    train.add_argument("--dtype", default="float32")
    train.add_argument("--compiled", action="store_true")
    options = parser.parse_args(arguments)
    if options.command == "train":
        train_on_request(
            options.batch_size,
            options.image_size,
            width=options.width,
            device=options.device,
            dtype=options.dtype,
            compiled=options.compiled,
        )
    else:
        print_reference_logits()


if __name__ == "__main__":
    main()
