"""A regression as an objective, and a training of it as a program that tests can kill."""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msa_plugin.backbone.adapter import AdapterConfig
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import ContentConfig, RoutingConfig
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.trainer import Losses, Trainer

ROUTING = RoutingConfig(layers=(1,), heads=1, kv_heads=1, head_dim=4, pooling=2)


class Regression:
    """Finds a linear map from noisy examples; dropout draws from the global generator, as layers do."""

    def __init__(self, *, nan_at=None, pause=0.0):
        self.nan_at, self.pause = nan_at, pause
        draw = torch.Generator().manual_seed(3)
        self.truth = torch.randn(4, 6, generator=draw)
        self.q = torch.randn(4, 6, generator=draw).requires_grad_()
        self.k = torch.zeros(4, 6, requires_grad=True)
        self.idle = torch.zeros(3, requires_grad=True)
        self.parameters = {"router.1.q_weight": self.q, "router.1.k_weight": self.k, "lora.1.idle": self.idle}
        self.seen = []

    def losses(self, batch):
        self.seen.append(batch)
        time.sleep(self.pause)
        draw = torch.Generator().manual_seed(batch)
        x = torch.nn.functional.dropout(torch.randn(8, 6, generator=draw), 0.1)
        fit = (x @ (self.q + 2 * self.k).T - x @ self.truth.T).square().mean()
        total = fit * (torch.nan if batch == self.nan_at else 1)
        return Losses(total, {"fit": float(fit.detach())}, tokens=48)

    def evaluate(self):
        return {"distance": float((self.q + 2 * self.k - self.truth).detach().norm())}

    def adapter(self, measured):
        router = Router(ROUTING, {1: RouterLayer(self.q.detach().clone(), self.k.detach().clone())})
        reading = ContentConfig(layers=(1,), pooling=2)
        config = AdapterConfig(
            name="toy", backbone="b", tokenizer="t", hidden=6, routing=ROUTING, reading=reading, measured=measured
        )
        from msa_plugin.backbone.adapter import Adapter

        return Adapter(config, router)


def config(**changes):
    given = {"steps": 12, "lr": 0.05, "warmup": 2, "schedule": "cosine", "checkpoint_every": 3, **changes}
    return TrainConfig(**given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--settings", type=json.loads, default={})
    args = parser.parse_args()
    torch.set_num_threads(1)
    done = Trainer(Regression(pause=args.pause), config(**args.settings), args.out).run()
    print(json.dumps({"step": done.step, "finished": done.finished}))  # noqa: T201
