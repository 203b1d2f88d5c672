"""The agent of the published HAQ search in torch; see `haq_torch.py`."""

import random
from typing import Any

import numpy as np

from qnas_jax.haq import env
from qnas_jax.haq.ddpg import DDPG


class Agent:
    """DDPG as published: a Python loop over the steps of an episode, and over its updates."""

    def __init__(self, how: DDPG, layers: env.Layers, cost: np.ndarray, budget: float, place: str):
        """Fresh networks, and the costs float64[layers, w_bits, a_bits] of its world."""
        import torch  # pyright: ignore[reportMissingImports]  # an extra: bench

        if (np.asarray(layers.lead) != np.arange(len(layers.lead))).any():
            raise ValueError("the peer's layers each read a tensor of their own")
        self._torch, self._how, self._budget, self._place = torch, how, budget, place
        self._features = np.asarray(layers.features, np.float64)
        self._least, self._most = np.asarray(layers.least), np.asarray(layers.most)
        self._cost = cost.tolist()
        self._episode, self._average = 0, None
        self._steps: list[Any] = []
        self._memory: list[Any] = []
        torch.manual_seed(0)
        self._draw, self._pick = np.random.default_rng(0), random.Random(0)
        self._actor, self._critic = _actor(torch, how).to(place), _critic(torch, how).to(place)
        self._targets = _actor(torch, how).to(place), _critic(torch, how).to(place)
        for target, source in zip(self._targets, (self._actor, self._critic), strict=True):
            target.load_state_dict(source.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), how.actor_lr)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), how.critic_lr)

    def propose(self) -> np.ndarray:
        """Walks over the layers, then takes off bits until the budget is met."""
        low, high = int(self._least.min()), int(self._most.max())
        last, self._steps, bits = 1.0, [], []
        for row in self._features:
            pair = []
            for kind in (0, 1):
                state = np.concatenate([row, [last, kind]])
                action = self._act(state)
                found = int(np.clip(np.round(low - 0.5 + action * (high - low + 1)), low, high))
                pair.append(found)
                last = found / high
                self._steps.append((state, action))
            bits.append(pair)
        least, most = self._least.tolist(), self._most.tolist()
        for layer, pair in enumerate(bits):
            bits[layer] = [max(least[layer][k], min(most[layer][k], pair[k])) for k in (0, 1)]
        self._within_budget(bits, least)
        return np.array(bits)

    def _act(self, state: np.ndarray) -> float:
        if self._episode < self._how.warmup:
            return float(self._draw.uniform())
        from scipy import stats

        torch, how = self._torch, self._how
        with torch.no_grad():
            mean = float(self._actor(torch.from_numpy(state[None]).float().to(self._place)))
        sigma = how.sigma * how.decay ** (self._episode - how.warmup)
        ends = -mean / sigma, (1 - mean) / sigma
        drawn = stats.truncnorm.rvs(*ends, loc=mean, scale=sigma, random_state=self._draw)
        return float(np.clip(drawn, 0.0, 1.0))

    def _within_budget(self, bits, least) -> None:
        while self._sum(bits) > self._budget and bits != least:
            for layer in reversed(range(len(bits))):
                for kind in (1, 0):
                    if bits[layer][kind] > least[layer][kind]:
                        bits[layer][kind] -= 1
                        if self._sum(bits) <= self._budget:
                            return

    def _sum(self, bits) -> float:
        return sum(self._cost[i][w][a] for i, (w, a) in enumerate(bits))

    def learn(self, reward: float) -> None:
        """Stores the steps of the proposal, and updates once after each of them."""
        self._episode += 1
        limit = self._how.memory * len(self._steps)
        for place, (state, action) in enumerate(self._steps):
            last = place == len(self._steps) - 1
            after = state if last else self._steps[place + 1][0]
            self._memory.append((state, action, reward, after, 0.0 if last else 1.0))
            if len(self._memory) > limit:
                del self._memory[0]
            if self._episode > self._how.warmup:
                self._update()

    def _update(self) -> None:
        torch, how = self._torch, self._how
        chosen = self._pick.sample(self._memory, how.batch)
        states, actions, rewards, after, goes_on = (
            np.array([step[i] for step in chosen], np.float64).reshape(how.batch, -1)
            for i in range(5)
        )
        mean = rewards.mean()
        old = mean if self._average is None else self._average
        self._average = old + how.baseline * (mean - old)
        given = (states, actions, rewards - self._average, after, goes_on)
        states, actions, rewards, after, goes_on = (
            torch.from_numpy(x).float().to(self._place) for x in given
        )
        actor_target, critic_target = self._targets
        with torch.no_grad():
            later = critic_target(after, actor_target(after))
        target = rewards + how.gamma * goes_on * later

        self._critic.zero_grad()
        torch.nn.functional.mse_loss(self._critic(states, actions), target).backward()
        self._critic_optimizer.step()
        self._actor.zero_grad()
        (-self._critic(states, self._actor(states))).mean().backward()
        self._actor_optimizer.step()
        for slow, source in zip(self._targets, (self._actor, self._critic), strict=True):
            for old, new in zip(slow.parameters(), source.parameters(), strict=True):
                old.data.copy_(old.data * (1 - how.tau) + new.data * how.tau)


def _actor(torch, how: DDPG) -> Any:
    nn, (one, two) = torch.nn, how.hidden
    shape = nn.Linear(env.FEATURES, one), nn.ReLU(), nn.Linear(one, two), nn.ReLU()
    return nn.Sequential(*shape, nn.Linear(two, 1), nn.Sigmoid())


def _critic(torch, how: DDPG) -> Any:
    nn = torch.nn

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            one, two = how.hidden
            self.state, self.action = nn.Linear(env.FEATURES, one), nn.Linear(1, one)
            self.rest = nn.Sequential(nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 1))

        def forward(self, states, actions):
            return self.rest(self.state(states) + self.action(actions))

    return Critic()
