"""Published figures, re-measured: one file per system of the mission, named after it.

Each function under `@claim` returns the figure we measure for one published figure:

    from lightwork.claims import Lab, claim

    @claim(
        "sarathi",
        title="throughput within SLO over prefill-first, Mistral-7B on one A100",
        paper="up to 2.6x over vLLM (OSDI 2024, fig. 10)",
        expect=2.6,
        within=0.3,
        mode="simulated",
    )
    def throughput_over_prefill_first(lab: Lab) -> float:
        return goodput(Sarathi(chunk=512), lab.seed) / goodput(PrefillFirst(), lab.seed)

A line measured on this machine says `mode="real"`, one priced by the simulator `mode="simulated"`: the two
are never mixed. A function may return `Measured(value, note)` to say under which conditions (SLO, load) it
was taken. A missed claim stays listed as missed; loosening a tolerance needs a reason in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lightwork.errors import InvariantError, MissingExtraError, RangeError

Mode = Literal["real", "simulated"]
Bound = Literal["near", "at least", "at most"]
State = Literal["reproduced", "missed", "not built yet"]

__all__ = ["Claim", "Lab", "Measured", "Verdict", "built", "claim", "claims_of", "measure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """What a claim may depend on. seed: of every random choice."""

    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure and the conditions it was taken under."""

    value: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One published figure and how we re-measure it.

    expect: the published figure. within: relative tolerance. bound: whether a better figure also counts
    ("at least": larger is better; "at most": smaller is better) or only one near the published ("near").
    """

    system: str
    title: str
    paper: str
    expect: float
    within: float
    bound: Bound
    mode: Mode
    unit: str
    run: Callable[[Lab], float | Measured]

    def holds(self, value: float) -> bool:
        margin = abs(self.expect) * self.within
        above = value >= self.expect - margin
        below = value <= self.expect + margin
        return {"at least": above, "at most": below, "near": above and below}[self.bound]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one claim came to on this machine and version."""

    claim: Claim
    measured: float
    note: str = ""

    @property
    def state(self) -> State:
        return "reproduced" if self.claim.holds(self.measured) else "missed"

    def line(self) -> str:
        """The verdict in one line: title, published figure, measured figure, whether it holds."""
        c = self.claim
        word = "holds" if self.state == "reproduced" else "MISSED"
        here = f"here {self.measured:.3g}{c.unit} ({c.mode})"
        bound = f"{c.bound} {c.expect:g}{c.unit}, within {c.within:.0%}"
        note = f"  {self.note}" if self.note else ""
        return f"{c.title}   paper {c.paper}   {here}   {word} ({bound}){note}"

    def record(self) -> dict[str, str | float]:
        """The verdict as plain values. Real figures vary between runs and keep two significant digits."""
        digits = 2 if self.claim.mode == "real" else 4
        named = {f.name: getattr(self.claim, f.name) for f in fields(Claim) if f.name != "run"}
        measured = float(f"{self.measured:.{digits}g}")
        return named | {"measured": measured, "note": self.note, "state": self.state}


Figure = Callable[[Lab], "float | Measured"]
_CLAIMS: dict[str, list[Claim]] = {}


def claim(
    system: str,
    *,
    paper: str,
    expect: float,
    within: float,
    title: str = "",
    bound: Bound = "near",
    mode: Mode = "simulated",
    unit: str = "x",
) -> Callable[[Figure], Figure]:
    """Declare that the function below re-measures a published figure.

    system: a name of `lightwork claims`. paper: the figure and where it stands. expect, within: the figure as
    a number and its relative tolerance. title: what is measured; without one, the function's name in words.
    """
    from lightwork.claims.systems import system_named

    system_named(system)
    if not 0.0 <= within < 1.0:
        raise RangeError(f"claim tolerance {within}", expected="0 <= within < 1", fix="within=0.3")

    def declare(run: Figure) -> Figure:
        name = getattr(run, "__name__", system)
        words = title or name.replace("_", " ")
        one = Claim(
            system=system,
            title=words,
            paper=paper,
            expect=expect,
            within=within,
            bound=bound,
            mode=mode,
            unit=unit,
            run=run,
        )
        kept = _CLAIMS.setdefault(system, [])
        kept[:] = [c for c in kept if c.title != words] + [one]
        return run

    return declare


def claims_of(system: str) -> list[Claim]:
    """The claims of one system; none when it is not built yet. Raises SpecError for a name nobody knows."""
    from lightwork.claims.systems import system_named

    module = f"lightwork.claims.{system_named(system).name}"
    if find_spec(module) is None:
        return []
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root in ("torch", "numba"):
            raise MissingExtraError(root, "torch" if root == "torch" else "cpu") from error
        raise
    if system not in _CLAIMS:
        raise InvariantError(f"{module} declares no claim on {system}", fix=f"@claim({system!r}, ...)")
    return _CLAIMS[system]


def measure(system: str, lab: Lab | None = None) -> list[Verdict]:
    """Re-measure every claim of one system."""
    verdicts = []
    for one in claims_of(system):
        found = one.run(lab or Lab())
        taken = found if isinstance(found, Measured) else Measured(float(found))
        verdicts.append(Verdict(one, taken.value, taken.note))
    return verdicts


def built() -> list[str]:
    """Systems that have a claim file, found by listing."""
    from lightwork.claims.systems import SYSTEMS

    folder = Path(__file__).parent
    return [s.name for s in SYSTEMS if (folder / f"{s.name}.py").is_file()]
