"""The README's example: distillation and two kinds of domain alignment in one compiled step.

A large teacher has learned MNIST. A small student learns from MNIST's labels and from the teacher,
while its features are brought close to those of UCI digits, whose labels nobody sees. Run it with
``python examples/quickstart.py``; ``--eager`` leaves out the compilation, for a quick look.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import torch
from mnist_to_digits import Data, load
from torch import nn
from torch.nn import functional as F

import ttransfer as tt


def network(width: int) -> nn.Module:
    """Two convolutions with batch normalisation, dropout, ten classes."""
    body = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * width, 64), nn.ReLU()),
    )
    return nn.Sequential(OrderedDict(body=body, fc=nn.Linear(64, 10)))


def taught(data: Data, steps: int = 200) -> nn.Module:
    """Train the teacher on the source."""
    torch.manual_seed(0)
    teacher = network(32)
    learn = tt.step(
        {"teacher": tt.functional(teacher)},
        tt.optim.adamw(tt.schedules.cosine(1e-3, steps)),
        trainable=("teacher",),
        task=tt.term(F.cross_entropy, "teacher(source)", "source.y"),
    )
    loader = tt.domains(source=tt.loader(data.source, batch_size=64, last="drop"))
    state = learn.init(next(iter(loader)))
    tt.write_back(tt.fit(learn, state, loader, steps=steps).state, teacher)
    return teacher


def accuracy(model: nn.Module, part: dict[str, torch.Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        return (model(part["x"]).argmax(1) == part["y"]).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--eager", action="store_true", help="do not compile")
    eager = parser.parse_args().eager
    torch.set_num_threads(1)  # the nets are small: a second thread costs more than it brings
    data = load()
    teacher = taught(data)
    torch.manual_seed(1)
    student = network(8)
    loader = tt.domains(
        source=tt.loader(data.source, batch_size=64, last="drop"),
        target=tt.loader({"x": data.target["x"]}, batch_size=64, last="drop"),
    )
    example_batch = next(iter(loader))
    batches = (next(loader) for _ in range(400))

    # [README]
    nets = {"student": tt.functional(student), "teacher": tt.functional(teacher)}
    ramp = tt.schedules.ramp(400)
    train = tt.step(
        nets, tt.optim.adamw(tt.schedules.cosine(1e-3, 400)), trainable=("student",),
        task=tt.term(F.cross_entropy, "student(source)", "source.y"),
        kd=tt.term(tt.losses.kd, "student(source)", "teacher(source)", temperature=4.0, weight=0.5),
        mmd=tt.term(tt.align.mmd, "student(source).fc:in", "student(target).fc:in", weight=ramp),
        dann=tt.terms.dann("student(source).fc:in", "student(target).fc:in",
                           critic=tt.adapters.mlp(64), scale=ramp, weight=0.1),
    )  # fmt: skip
    state = train.init(example_batch, seed=0)
    train = train if eager else tt.compile(train, donate=True)
    for batch in batches:  # {"source": {"x", "y"}, "target": {"x"}}
        state, logs = train(state, batch)
    tt.write_back(state, student)
    # [/README]

    print(tt.describe(train, example_batch))
    print(
        "\nlast step:", ", ".join(f"{name} {logs[name].item():.3f}" for name in ("loss", "task", "kd", "mmd", "dann"))
    )
    for name, model in (("teacher", teacher), ("student", student)):
        print(
            f"{name}: {accuracy(model, data.source):.3f} on the source, {accuracy(model, data.test):.3f} on the target"
        )


if __name__ == "__main__":
    main()
