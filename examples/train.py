"""What the example programs share: Algorithm 1 of arXiv 1704.00028, its checkpoints, its logs, its command line.

A training that is interrupted and resumed has, bit for bit on a CPU, the losses of one that was not: networks,
optimisers, random state and history travel together, are written to a temporary name, and are renamed.
"""

import math
import pickle
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from command_line import make_parser, parse
from logs import Log, Stop, renamed, write_history
from pictures import curves, save
from torch import nn
from tqdm import tqdm

import gpfast

__all__ = ["CheckpointError", "Trainer", "fit", "make_parser", "parse"]

READ_EVERY = 20  # steps between readings of the losses, each of which waits for the device


class CheckpointError(Exception):
    """A checkpoint that cannot be read, or is of another training; the message says which and why."""


class Trainer:
    """A generator and a critic with their optimisers, a random state of their own, and the history of their training.

    generator   (noise, *args) -> samples. Without parameters it is a fixed distribution: only the critic is trained.
    critic      (samples, *args) -> scores.
    method      A `methods.Method`.
    draw        count -> real samples (count, ...), or a tuple (samples, *args), args being labels or the like.
    noise       count -> what the generator is given. Like `draw`, from PyTorch's global random state.
    remedies    `remedies.Remedy` objects.
    identity    Plain data that a checkpoint must agree with, beside method, batch and the shape of every parameter.
    """

    def __init__(
        self, generator, critic, method, draw, noise, *, batch, engine="auto", device="cpu", remedies=(), identity=None
    ):
        self.method, self.draw, self.noise, self.batch = method, draw, noise, batch
        self.engine, self.device, self.remedies = engine, torch.device(device), list(remedies)
        for remedy in self.remedies:
            generator, critic = remedy.networks(generator, critic, draw, noise)
        self.generator = generator.to(self.device)
        self.critic = method.constrained(critic).to(self.device)
        self._trained = {"critic": _trained(self.critic), "generator": _trained(self.generator)}
        self._optimisers = {side: method.optimiser(found) for side, found in self._trained.items() if found}
        self.identity = {
            "method": _plain(method),
            "batch": batch,
            "remedies": [type(remedy).__name__ for remedy in self.remedies],
            "generator": _shapes(self.generator),
            "critic": _shapes(self.critic),
            **(identity or {}),
        }
        self.step_count, self.seconds, self.scores = 0, 0.0, []
        self._columns, self._unread = {}, []
        self._random = _random_state(self.device)

    # -- one step

    def step(self, progress=0.0, watch=None):
        """One step of Algorithm 1: `method.critic_steps` critic steps and one of the generator, where it is trained.

        progress is the share of the training that is behind, for what changes over it. watch(trainer) -> {name: float}
        is asked after the critic's last step, whose gradients its parameters then hold.
        """
        start = time.perf_counter()
        with self._random_state():
            for optimiser in self._optimisers.values():
                for group in optimiser.param_groups if self.method.decay else ():
                    group["lr"] = group.setdefault("initial_lr", group["lr"]) * (1 - progress)
            for _ in range(self.method.critic_steps):
                readings = self._critic_step(progress)
            if watch:
                readings |= watch(self)
            if "generator" in self._optimisers:
                readings["generator"] = self._generator_step(progress)
        self.step_count += 1
        self._unread.append(readings | {"seconds": self.seconds + time.perf_counter() - start})
        if len(self._unread) >= READ_EVERY:
            self._read()
        self.seconds += time.perf_counter() - start

    def _critic_step(self, progress):
        real, args = self._real()
        with torch.no_grad():
            fake = self.generator(self._noise(), *args)
        real, fake = self._seen(real, progress), self._seen(fake, progress)
        real_scores, fake_scores = self.critic(real, *args), self.critic(fake, *args)
        loss = self._replaced("critic_loss", self.method, real_scores, fake_scores)
        loss = self.method.critic_loss(real_scores, fake_scores) if loss is None else loss
        readings = {"wasserstein": (real_scores.mean() - fake_scores.mean()).detach()}
        if self.method.penalty is not None:
            penalty, stats = gpfast.gradient_penalty(
                self.critic, real, fake, args=args, engine=self.engine, return_stats=True, **self.method.penalty
            )
            loss = loss + penalty
            readings |= {"penalty": penalty.detach(), "norm": stats.mean}
        self._descend("critic", self.critic, loss)
        self.method.clipped(self.critic)
        return {"critic": loss.detach()} | readings

    def _generator_step(self, progress):
        real, args = self._real()
        for parameter in self._trained["critic"]:  # whose gradients are those of its own step, and are not needed here
            parameter.requires_grad_(False)
        fake = self._seen(self.generator(self._noise(), *args), progress)
        loss = self._replaced("generator_loss", self.method, self.critic, self._seen(real, progress), fake, args)
        loss = self.method.generator_loss(self.critic(fake, *args)) if loss is None else loss
        self._descend("generator", self.generator, loss)
        for parameter in self._trained["critic"]:
            parameter.requires_grad_(True)
        return loss.detach()

    def _descend(self, side, network, loss):
        for remedy in self.remedies:
            term = remedy.extra(side, network)
            loss = loss if term is None else loss + term
        self._optimisers[side].zero_grad()
        loss.backward()
        self._optimisers[side].step()
        for remedy in self.remedies:
            remedy.after(side, network)

    def _replaced(self, name, *arguments):
        """What the last remedy that replaces a loss makes of it, or None."""
        found = [getattr(remedy, name)(*arguments) for remedy in self.remedies]
        return next((loss for loss in reversed(found) if loss is not None), None)

    def _seen(self, x, progress):
        for remedy in self.remedies:
            x = remedy.seen(x, progress)
        return x

    def _real(self):
        real = self.draw(self.batch)
        real, *args = real if isinstance(real, tuple) else (real,)
        return real.to(self.device), tuple(a.to(self.device) for a in args)

    def _noise(self, count=None):
        return self.noise(count or self.batch).to(self.device)

    # -- what came of it

    @property
    def history(self):
        """{name: [a float each step]}: the last critic step's readings, "generator", and "seconds" since the start.

        "wasserstein" is the mean score of real samples minus that of generated ones: an estimate of W1 where the method
        holds the critic's slope to 1, and a gap of scores elsewhere.
        """
        self._read()
        return self._columns

    def _read(self):
        """Brings what was left on the device to the columns, one transfer for each."""
        for name in self._unread[0] if self._unread else ():
            values = [readings[name] for readings in self._unread]
            values = torch.stack(values).tolist() if isinstance(values[0], torch.Tensor) else values
            self._columns.setdefault(name, []).extend(values)
        self._unread = []

    @torch.no_grad()
    def samples(self, count, *args, seed=0):
        """`count` generated samples, in eval mode and of a seed: the training's own random state stays as it is."""
        training = self.generator.training
        with torch.random.fork_rng(_cuda(self.device)):
            torch.manual_seed(seed)
            found = self.generator.eval()(self._noise(count), *args)
        self.generator.train(training)
        return found

    @contextmanager
    def _random_state(self):
        outside = _random_state(self.device)
        _set_random_state(self.device, self._random)
        try:
            yield
        finally:
            self._random = _random_state(self.device)
            _set_random_state(self.device, outside)

    # -- checkpoints

    def save(self, path):
        """Writes all that `load` needs to go on as if nothing had happened: to a temporary name, then renamed."""
        state = {
            "identity": self.identity,
            "step": self.step_count,
            "seconds": self.seconds,
            "history": self.history,
            "scores": self.scores,
            "random": self._random,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimisers": {side: optimiser.state_dict() for side, optimiser in self._optimisers.items()},
            "remedies": [remedy.state() for remedy in self.remedies],
        }
        with renamed(path) as temporary:
            torch.save(state, temporary)

    def load(self, path):
        """Goes on where `save` was called. Raises CheckpointError, and changes nothing, where that cannot be."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            identity = state["identity"]
        except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is not a checkpoint that can be read: {error}") from error
        difference = _difference(identity, self.identity)
        if difference:
            raise CheckpointError(f"{path} is of another training: {difference}")
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        for side, optimiser in self._optimisers.items():
            optimiser.load_state_dict(state["optimisers"][side])
        for remedy, held in zip(self.remedies, state["remedies"], strict=True):
            remedy.load(held)
        self.step_count, self.seconds = state["step"], state["seconds"]
        self._columns, self._unread, self.scores = state["history"], [], state["scores"]
        self._random = {name: held.cpu() for name, held in state["random"].items()}


def fit(
    trainer, options, folder, *, title="training", steps=None, score=None, score_every=None, watch=None, picture=None
):
    """Trains to `steps`, and leaves in `folder` checkpoint.pt, history.csv, curves.png and tensorboard/.

    steps: by default `options.steps`. score(trainer) -> {name: float} is called at the start, every `score_every` steps
    and at the end; its time is not counted. picture(trainer, path) writes samples.png. Ctrl-C ends the step, saves, and
    exits with status 130; the same command with --resume goes on. What was finished before is read, not repeated.
    """
    folder, steps = Path(folder), steps or options.steps
    checkpoint = folder / "checkpoint.pt"
    trainer.identity["seed"] = options.seed
    if trainer.method.decay or trainer.remedies:  # which depend on how much of the training is behind
        trainer.identity["steps"] = steps
    if options.overwrite:
        _begin_anew(options)
    if options.resume and checkpoint.exists() and _resumed(trainer, checkpoint, steps, title):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curves.png").unlink(missing_ok=True)
    logged = trainer.step_count
    with Stop() as stop:
        bar = tqdm(total=steps, initial=min(logged, steps), desc=title, unit="step", leave=False, disable=None)
        with Log(folder / "tensorboard", logged + 1) as log, bar:
            while True:
                done = trainer.step_count >= steps
                if score and (done or trainer.step_count % (score_every or steps) == 0):
                    _check_finite(trainer)
                    _score(trainer, score, log)
                if done or stop.asked:
                    break
                trainer.step(trainer.step_count / steps, watch)
                bar.update()
                if trainer.step_count % READ_EVERY == 0:
                    logged = log.columns(trainer.history, logged)
                    _check_finite(trainer)
                    bar.set_postfix_str(f"real - fake {trainer.history['wasserstein'][-1]:.3f}", refresh=False)
                if trainer.step_count % options.save_every == 0 and trainer.step_count < steps:
                    _save(trainer, checkpoint)
            log.columns(trainer.history, logged)
        _save(trainer, checkpoint)
        write_history(folder / "history.csv", trainer.history)
        if picture:
            picture(trainer, folder / "samples.png")
        # the last of them: where it is, all are there
        save(curves(trainer.history, trainer.scores, f"{title}, {trainer.step_count:,} steps"), folder / "curves.png")
    if stop.asked:
        _leave(f"{title}: stopped at step {trainer.step_count:,} of {steps:,}; --resume goes on from there", 130)


def _resumed(trainer, checkpoint, steps, title):
    """Loads the checkpoint; whether that training is finished, with all that it leaves."""
    try:
        trainer.load(checkpoint)
    except CheckpointError as error:
        _leave(f"--resume: {error}", 2)
    if trainer.step_count > steps:
        print(f"{title}: has {trainer.step_count:,} steps, more than --steps {steps:,}", file=sys.stderr)
    return trainer.step_count >= steps and (checkpoint.parent / "curves.png").exists()


def _begin_anew(options):
    """Removes every training below --out, once: none of an earlier run may be resumed or read after this one."""
    for checkpoint in filter(_is_ours, sorted(options.out.rglob("checkpoint.pt"))):
        for name in ("checkpoint.pt", "history.csv", "curves.png", "samples.png"):
            (checkpoint.parent / name).unlink(missing_ok=True)
        shutil.rmtree(checkpoint.parent / "tensorboard", ignore_errors=True)
    options.overwrite = False


def _is_ours(path):
    """Whether `Trainer.save` wrote it: other programs have files of that name too."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what is no checkpoint can fail in any way
        return False
    return isinstance(state, dict) and {"identity", "step", "optimisers"} <= state.keys()


def _score(trainer, score, log):
    if trainer.scores and trainer.scores[-1]["step"] == trainer.step_count:
        return
    with torch.random.fork_rng(_cuda(trainer.device)):
        torch.manual_seed(trainer.step_count)
        found = {name: float(value) for name, value in score(trainer).items()}
    trainer.scores.append({"step": trainer.step_count, "seconds": trainer.seconds, **found})
    log.scores(found, trainer.step_count)


def _save(trainer, checkpoint):
    _check_finite(trainer)
    try:
        trainer.save(checkpoint)
    except (OSError, RuntimeError) as error:  # PyTorch says the latter of a full disk
        reason = str(error).splitlines()[0]
        _leave(f"{checkpoint} could not be written ({reason}); an earlier checkpoint is kept as it was", 1)


def _check_finite(trainer):
    """Ends the program, before what is not finite is saved or scored."""
    value = trainer.history.get("critic", [0.0])[-1]
    broken = [] if math.isfinite(value) else [f"the critic's loss is {value}"]
    for side in ("critic", "generator"):
        parameters = list(getattr(trainer, side).parameters())
        if parameters and not torch.stack([p.isfinite().all() for p in parameters]).all():
            broken.append(f"a weight of the {side} is not finite")
    if broken:
        _leave(f"{broken[0]} at step {trainer.step_count:,}; an earlier checkpoint is kept as it was", 1)


def _leave(message, status):
    print(message, file=sys.stderr)
    raise SystemExit(status)


def _trained(network: nn.Module):
    return [p for p in network.parameters() if p.requires_grad]


def _shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def _plain(method):
    fields = ("name", "critic_steps", "penalty", "clip", "spectral", "decay")
    return {name: getattr(method, name) for name in fields}


def _difference(theirs, ours, name=""):
    """The first entry in which two nested dicts differ, in words; None where there is none."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in [*theirs, *(k for k in ours if k not in theirs)]:
            found = _difference(theirs.get(key), ours.get(key), f"{name} {key}".strip())
            if found:
                return found
        return None
    return None if theirs == ours else f"{name} is {theirs} there and {ours} here"


def _cuda(device):
    return [device] if device.type == "cuda" else []


def _random_state(device):
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(device, state):
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
