"""The audit: does dropout in a network do what it should? Measured, not read off its code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from thinned.core.errors import RequestError
from thinned.core.types import Key
from thinned.dropout.audit.findings import Audit, AuditedSite, Check
from thinned.dropout.audit.measures import Draw, Measured, gathered
from thinned.dropout.audit.watch_linen import Recording, Visit, dropout_on, key_words, recording
from thinned.dropout.linen import LOSSES, RATES

_HINT = "derive the key from the step, as in jax.random.fold_in(key, step)"

_LEAST = 20
"""How many drops a site must be expected to show before its rate is judged."""

SIGMAS = 5.0
"""How far a measured rate or mean may lie from what it should be, in standard errors."""


def audit(
    module: nn.Module,
    *args: Any,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
    evaluation: nn.Module | None = None,
    variables: Mapping[str, Any] | None = None,
    rngs: Callable[[int], Mapping[str, Key]] | None = None,
    init_rngs: Key | Mapping[str, Key] | None = None,
    draws: int = 64,
) -> Audit:
    """Measure what dropout does in any Flax Linen module, of ours or not.

    Args:
        module: the module in training.
        args: positional arguments of its call, the first a batch of at least two examples.
        train: keyword arguments of its call in training; found out from its signature (``train``,
            ``training`` or ``deterministic``) when absent.
        evaluate: the same in evaluation.
        evaluation: the module in evaluation, where the mode is an attribute of the module.
        variables: its variables; initialised when absent.
        rngs: from the step to the ``rngs`` of ``apply``, just as the training loop makes them;
            fresh and unrelated keys when absent, which finds out less.
        init_rngs: what ``init`` was given, to see whether a key is used twice.
        draws: how many steps to measure, at least 8.

    Returns:
        An `Audit`: ``print`` it, or look at ``passed``, ``sites`` and ``checks``.

    Raises:
        RequestError: arguments are missing or make no sense.
    """
    _refuse_nonsense(module, draws, rngs)
    if not args or not np.shape(args[0]) or np.shape(args[0])[0] < 2:
        raise RequestError("the audit needs an example batch of at least two examples")
    training, evaluating = _modes(module, train, evaluate, evaluation)
    started = jax.random.key(0) if init_rngs is None else init_rngs
    roots = dict(started) if isinstance(started, Mapping) else {"params": started}
    if variables is None:
        first: Any = dict(started) if isinstance(started, Mapping) else started
        variables = (evaluation or module).init(first, *args, **evaluating)
    inspected = _Inspection(
        module=module,
        evaluation=evaluation or module,
        args=args,
        modes=(training, evaluating),
        variables=variables,
        rngs=_default_rngs if rngs is None else rngs,
        roots=roots if init_rngs is not None else {},
        draws=draws,
    )
    return inspected.report()


@dataclass
class _Inspection:
    module: nn.Module
    evaluation: nn.Module
    args: tuple[Any, ...]
    modes: tuple[Mapping[str, Any], Mapping[str, Any]]
    variables: Mapping[str, Any]
    rngs: Callable[[int], Mapping[str, Key]]
    roots: dict[str, Key]
    draws: int

    def report(self) -> Audit:
        checks = [*self._whole()]
        for name in self.visits:
            checks += self._site(name)
        return Audit(tuple(self._audited(name) for name in self.places), tuple(checks))

    # What the module does, found once.

    @cached_property
    def outline(self) -> Recording:
        """The sites, without computing anything."""
        seen: list[Recording] = []

        def watch(variables: Any, rngs: Any) -> None:
            with recording() as found:
                self._apply(self.module, self.modes[0])(variables, rngs)
            seen.append(found)

        jax.eval_shape(watch, self.variables, self.rngs(0))
        return seen[0]

    @cached_property
    def visits(self) -> dict[str, Visit]:
        return {
            name: visit
            for name, visit in self.outline.visits.items()
            if visit.leaf or visit.kind == "connect"
        }

    @property
    def places(self) -> list[str]:
        """All sites, and the other places that draw keys."""
        others = (name for name in self.outline.keys if name not in self.visits)
        return list(dict.fromkeys([*self.visits, *others, *sorted(self.outline.hidden)]))

    @property
    def unseen(self) -> list[str]:
        """The places that cannot be probed: what happens there shows in the outputs alone."""
        return [name for name in self.places if name not in self.visits]

    @cached_property
    def state(self) -> list[str]:
        return [name for name in self.variables if name not in ("params", RATES, LOSSES)]

    def _apply(self, module: nn.Module, mode: Mapping[str, Any]) -> Callable[..., Any]:
        def run(variables: Any, rngs: Any, *args: Any) -> Any:
            given = args or self.args
            return module.apply(variables, *given, **mode, rngs=rngs, mutable=self.state)

        return run

    @cached_property
    def _probed(self) -> Callable[..., Any]:
        run = self._apply(self.module, self.modes[0])

        def collect(variables: Any, rngs: Any, *args: Any) -> Any:
            with recording(frozenset(self.visits)) as found:
                run(variables, rngs, *args)
            rates = {
                name: jnp.asarray(visit.rate, jnp.float32)
                for name, visit in found.visits.items()
                if visit.rate is not None and name in self.visits
            }
            keys = {name: key for name, key in found.keys.items() if key is not None}
            return found.gates, keys, rates

        return jax.jit(collect)

    @cached_property
    def samples(self) -> tuple[dict[str, Measured], list[dict[str, Any]], dict[str, float]]:
        """Measurements by site, keys by step, configured rates."""
        raw: dict[str, list[Draw]] = {name: [] for name in self.visits}
        keys: list[dict[str, Any]] = []
        rates: dict[str, float] = {}
        for step in range(self.draws):
            gates, drawn, found = jax.device_get(self._probed(self.variables, self.rngs(step)))
            keys.append({name: tuple(words.ravel().tolist()) for name, words in drawn.items()})
            rates = {name: float(rate) for name, rate in found.items()}
            for name, values in gates.items():
                raw[name].append(Draw.of(self.visits[name].kind, np.asarray(values, np.float32)))
        return {name: gathered(draws) for name, draws in raw.items() if draws}, keys, rates

    def _audited(self, name: str) -> AuditedSite:
        visit = self.outline.visits.get(name)
        if name not in self.samples[0] or visit is None:
            kind = "in a transform" if name in self.outline.hidden else "draws a key"
            return AuditedSite(name, kind, visit.shape if visit else (), None, None, 0.0)
        effective, error = self.samples[0][name].effective
        return AuditedSite(
            name, visit.kind, visit.shape, self.samples[2].get(name), effective, error
        )

    # Questions about one site.

    def _site(self, name: str) -> Iterator[Check]:
        visit, measured, rate = self.visits[name], self.samples[0][name], self.samples[2].get(name)
        never = rate == 0 or (rate is None and not measured.active)
        frozen = self._frozen(name)
        yield self._acts(name, measured, rate)
        yield self._rate_holds(name, measured, rate, frozen)
        off = -measured.expected + np.nanmean(measured.means)
        spread = np.nanstd(measured.means, ddof=1) / np.sqrt(self.draws)
        # A hundredth is what bf16 may round the scale by.
        tolerance = SIGMAS * spread + 0.01
        passed = None if frozen or not measured.active else bool(abs(off) <= tolerance)
        why = "one mask says nothing" if frozen else "nothing is dropped"
        yield Check(
            "the mean is kept",
            name,
            None if rate == 1 else passed,
            f"the mean gate is {off + measured.expected:.4f}, not {measured.expected:g}"
            if passed is False
            else why,
        )
        yield Check(
            "masks change from step to step",
            name,
            None if never or rate == 1 else not frozen,
            f"the same key and mask at every step: {_HINT}" if frozen else "nothing is dropped",
        )
        alone = measured.one_mask and not visit.shared and measured.active and rate != 1
        yield Check(
            "each example has a mask of its own",
            name,
            None if never or visit.shared else not alone,
            "all examples of a batch share one mask"
            if alone
            else "examples share masks as asked"
            if visit.shared
            else "nothing is dropped",
        )

    def _acts(self, name: str, measured: Measured, rate: float | None) -> Check:
        drew = name in self.outline.keys
        detail = f"a rate of {rate:g} has no effect" if rate else "it changes nothing"
        if not drew:
            detail += ": it draws no key and lets everything pass, as if deterministic"
        passed = None if rate == 0 else measured.active
        if not rate:
            detail = "rate is 0" if rate == 0 else detail
        elif drew and not measured.active and self._is_rare(name, rate):
            passed, detail = None, "the rate is too small to be seen: ask for more draws"
        return Check("dropout is on in training", name, passed, detail)

    def _is_rare(self, name: str, rate: float) -> bool:
        chances = self.visits[name].chances * self.draws
        return 0 < rate < 1 and min(rate, 1 - rate) * chances < _LEAST

    def _rate_holds(self, name: str, measured: Measured, rate: float | None, frozen: bool) -> Check:
        question = "the effective rate is the configured one"
        if rate is None or frozen or not measured.active:
            why = "no rate is configured" if rate is None else "nothing changes"
            return Check(question, name, None, why)
        if self._is_rare(name, rate):
            return Check(question, name, None, "too few are dropped, or kept, to tell")
        effective, error = measured.effective
        # The spread found among few draws may be none at all.
        least = np.sqrt(rate * (1 - rate) / (self.visits[name].chances * self.draws))
        tolerance = SIGMAS * max(error, float(least)) + 1e-6
        if measured.of_variance and rate == 1:
            return Check(question, name, None, "the rate is 1")
        return Check(
            question,
            name,
            bool(abs(effective - rate) <= tolerance),
            f"{effective:.4f} is dropped, {rate:.4f} was asked for",
        )

    def _frozen(self, name: str) -> bool:
        measured, keys, rates = self.samples
        if not measured[name].active or rates.get(name) == 1:
            return False
        drawn = [step[name] for step in keys if name in step]
        if drawn:
            return len(set(drawn)) < len(drawn)
        prefixes = measured[name].prefixes
        return bool(np.all(prefixes == prefixes[0]))

    # Questions about the network as a whole.

    def _whole(self) -> Iterator[Check]:
        yield self._drops()
        for name in self.unseen:
            hidden = name in self.outline.hidden
            why = "is inside a lifted transform" if hidden else "draws a key outside such layers"
            yield Check("every site is a layer that can be measured", name, None, f"{name} {why}")
        yield from self._keys_change()
        yield from self._outputs_change()
        yield from self._streams()
        yield from self._separate_keys()
        yield from self._separate_sites()
        yield from self._off_in_evaluation()
        yield self._statistics_untouched()
        yield self._devices()

    def _drops(self) -> Check:
        question = "the network drops something in training"
        rates = self.outline.hidden.values()
        if not self.visits and rates and all(rate in (0, 1) for rate in rates):
            return Check(question, "", None, "the rates are 0 or 1")
        found = bool(self.visits) or (bool(self.unseen) and self._depends)
        hint = "nothing random happens in training: dropout is left off, or wired to nothing"
        if self.unseen:
            hint = "keys are drawn, but the outputs do not depend on them"
        return Check(question, "", found, hint)

    def _keys_change(self) -> Iterator[Check]:
        keys, roots = self.samples[1], [self.rngs(step) for step in range(self.draws)]
        for name in self.unseen:
            drawn = [step[name] for step in keys if name in step]
            stream = self.outline.streams.get(name, "")
            if not drawn and stream in roots[0]:
                drawn = [_words(step[stream]) for step in roots]
            passed = len(set(drawn)) == len(drawn) if drawn else None
            detail = f"the same key again: {_HINT}" if drawn else "its keys cannot be seen"
            yield Check("keys change from step to step", name, passed, detail)

    def _outputs_change(self) -> Iterator[Check]:
        if self.unseen:
            passed = self._differ(self.rngs) if self._depends else None
            why = "the same at every step, though they depend on the key: " + _HINT
            detail = "nothing random happens" if passed is None else why
            yield Check("outputs change from step to step", "", passed, detail)

    @cached_property
    def _depends(self) -> bool:
        """Whether other keys give other outputs in training."""
        first = self.rngs(0)
        return self._differ(
            lambda step: {name: jax.random.fold_in(key, step) for name, key in first.items()}
        )

    def _differ(self, rngs: Callable[[int], Mapping[str, Key]]) -> bool:
        """Whether outputs in training ever differ from those at step 0, all else being equal."""
        run = jax.jit(self._apply(self.module, self.modes[0]))
        # Noise on the parameters: behind an output layer of zeros nothing would show.
        variables = {**self.variables, "params": _stirred(self.variables.get("params", {}))}
        first = run(variables, rngs(0))[0]
        steps = (run(variables, rngs(step))[0] for step in range(1, self.draws))
        return any(not _equal(first, outputs) for outputs in steps)

    def _streams(self) -> Iterator[Check]:
        for name, stream in self.outline.streams.items():
            yield Check(
                "each site draws from a stream that was given",
                name,
                stream != "params",
                "no key was given for its stream, and Flax silently took that of params: "
                "pass rngs={'dropout': key}",
            )

    def _separate_keys(self) -> Iterator[Check]:
        question = "no key is shared with initialisation or between streams"
        first = {name: _words(key) for name, key in self.roots.items()}
        for step in range(self.draws):
            found = _shared({name: _words(key) for name, key in self.rngs(step).items()}, first)
            if found is not None:
                stream, other = found
                detail = f"the key of {stream} at step {step} is that of {other}: split it first"
                yield Check(question, "", False, detail)
                return
        yield Check(question, "", True if self.roots else None, "init_rngs was not given")

    def _separate_sites(self) -> Iterator[Check]:
        question = "sites differ from one another"
        measured, keys, _ = self.samples
        names = list(self.visits)
        for index, name in enumerate(names):
            twin = next((one for one in names[:index] if self._alike(one, name)), None)
            yield Check(question, name, twin is None, f"the same random stream as {twin}")
        others = [name for name in keys[0] if name not in measured]
        for name in others:
            twin = next((one for one in keys[0] if one != name and self._same_key(one, name)), None)
            yield Check(question, name, twin is None, f"the same key as {twin}")

    def _same_key(self, one: str, two: str) -> bool:
        first = self.samples[1][0]
        return one in first and two in first and first[one] == first[two]

    def _alike(self, one: str, two: str) -> bool:
        if self._same_key(one, two):
            return True
        a, b = (self.samples[0][name].prefixes for name in (one, two))
        size = min(a.shape[1], b.shape[1])
        a, b = a[:, :size].ravel(), b[:, :size].ravel()
        if a.size < 256 or a.std() == 0 or b.std() == 0:
            return False
        return bool(np.corrcoef(a, b)[0, 1] > 0.5)

    def _off_in_evaluation(self) -> Iterator[Check]:
        question = "dropout is off in evaluation"
        run = self._apply(self.evaluation, self.modes[1])
        try:
            with recording(frozenset(self.visits)) as found:
                run(self.variables, {})
        except flax_errors.InvalidRngError:
            with recording(frozenset(self.visits)) as found:
                run(self.variables, self.rngs(0))
        names = dict.fromkeys([*self.visits, *found.keys])
        for name in names:
            gates = found.gates.get(name)
            drew = name in found.keys
            changed = gates is not None and self._changes(name, np.asarray(gates, np.float32))
            detail = "it still draws masks" if changed else "it still draws a key"
            yield Check(question, name, not (drew or changed), detail)
        one, two = (jax.jit(run)(self.variables, self.rngs(step)) for step in (0, 1))
        detail = "the outputs depend on the key"
        yield Check("evaluation gives the same with every key", "", _equal(one, two), detail)

    def _changes(self, name: str, gates: np.ndarray) -> bool:
        # A probe of ones, or the normal numbers that alpha dropout gets, which are all different.
        if self.visits[name].kind == "alpha":
            return Draw.of("alpha", gates).statistic > 0
        return bool(np.any(gates != 1))

    def _statistics_untouched(self) -> Check:
        question = "sampling at prediction time leaves statistics alone"
        if not self.state:
            return Check(question, "", None, "the network keeps no statistics")
        run = self._apply(self.evaluation, self.modes[1])
        with dropout_on():
            _, after = jax.jit(run)(self.variables, self.rngs(0))
        for name in self.state:
            before = jax.tree.leaves(self.variables[name])
            if not all(map(np.array_equal, before, jax.tree.leaves(after[name]))):
                return Check(question, "", False, f"the collection {name} is updated in evaluation")
        return Check(question, "", True)

    def _devices(self) -> Check:
        question = "devices draw different parts of one and the same mask"
        count, batch = jax.device_count(), np.shape(self.args[0])[0]
        if count == 1 or not self.visits:
            return Check(question, "", None, "there is one device" if count == 1 else "no site")
        if batch % count:
            return Check(question, "", None, f"{batch} examples cannot be spread over {count}")
        spread = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec("batch"))
        args = [
            jax.device_put(arg, spread) if np.shape(arg)[:1] == (batch,) else arg
            for arg in self.args
        ]
        single = self._probed(self.variables, self.rngs(0))[0]
        many = self._probed(self.variables, self.rngs(0), *args)[0]
        for name, gates in single.items():
            both = (np.asarray(each, np.float32) for each in (gates, many[name]))
            if not np.allclose(*both, rtol=1e-3, atol=1e-3):
                return Check(question, name, False, "masks differ from those of a single device")
        return Check(question, "", True)


def _modes(
    module: nn.Module,
    train: Mapping[str, Any] | None,
    evaluate: Mapping[str, Any] | None,
    evaluation: nn.Module | None,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if train is not None and evaluate is not None:
        return train, evaluate
    if evaluation is not None:
        return train or {}, evaluate or {}
    known = inspect.signature(type(module).__call__).parameters
    for name, value in (("train", True), ("training", True), ("deterministic", False)):
        if name in known:
            return train or {name: value}, evaluate or {name: not value}
    raise RequestError(
        f"{type(module).__name__}.__call__ has no argument train, training or deterministic: "
        "say train={...} and evaluate={...}, or give evaluation=, the module in evaluation"
    )


def _refuse_nonsense(module: Any, draws: Any, rngs: Any) -> None:
    if not isinstance(module, nn.Module):
        raise RequestError(f"the audit needs a flax.linen.Module, not {type(module).__name__}")
    if not isinstance(draws, int) or draws < 8:
        raise RequestError(f"draws is {draws!r}: must be a whole number of at least 8")
    if rngs is not None and not callable(rngs):
        raise RequestError("rngs must be a function of the step: lambda step: {'dropout': ...}")


def _default_rngs(step: int) -> Mapping[str, Key]:
    return {"dropout": jax.random.fold_in(jax.random.key(1), step)}


def _words(key: Key) -> tuple[int, ...]:
    return tuple(np.asarray(key_words(key)).ravel().tolist())


def _shared(
    streams: Mapping[str, tuple[int, ...]], first: Mapping[str, tuple[int, ...]]
) -> tuple[str, str] | None:
    """A stream whose key is also another's, or one of those of initialisation, and whose."""
    for name, words in streams.items():
        for other, theirs in streams.items():
            if other != name and theirs == words:
                return name, other
        for other, theirs in first.items():
            if theirs == words and (other != name or other == "params"):
                return name, f"{other} at init"
    return None


def _equal(one: Any, two: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _stirred(params: Any) -> Any:
    random = np.random.default_rng(0)

    def stirred(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(stirred, params)
