"""What a user of several of these tools writes alike; counted for each way that calls it."""

from __future__ import annotations

from pathlib import Path

import torch
from benchmarks.peers._given import Given
from torch import nn
from torch.utils.data import DataLoader


def export_onnx(given: Given, model: nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        given.example,
        path,
        input_names=list(given.names),
        dynamic_shapes=tuple({0: "batch"} for _ in given.example),
        dynamo=True,
        external_data=False,
    )


def save_program(model: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(model, example)
    torch.export.save(program, path)


def fine_tune(given: Given, model: nn.Module) -> None:
    loader = DataLoader(given.train, batch_size=128, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.rate, weight_decay=1e-2)
    steps = given.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.rate, total_steps=steps)
    model.train()
    for _ in range(given.epochs):
        for *inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(*inputs), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()
