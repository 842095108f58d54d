"""Each check fails when what it checks is broken, and passes when a known deviation is mended."""

from __future__ import annotations

import pytest

from pykcm.selftest import deviations, runner, versions
from pykcm.selftest.check import every
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.environment import survey
from tests.mutations import MUTATIONS, REPAIRS, Mutation

pytestmark = pytest.mark.timeout(600)

CHECKS = every(GROUPS)
PARALLEL = 8
PATIENCE = 2.0

Outcomes = dict[tuple[str, str], runner.Outcome]


def pairs(mutations: tuple[Mutation, ...]) -> list[tuple[Mutation, str]]:
    return [(mutation, check) for mutation in mutations for check in mutation.checks]


def run(mutations: tuple[Mutation, ...], patience: float) -> Outcomes:
    todo = pairs(mutations)
    jobs = (runner.Job(CHECKS[check], mutation.calls(), patience) for mutation, check in todo)
    outcomes = runner.run(jobs, survey(), PARALLEL)
    return {
        (mutation.what, check): outcome
        for (mutation, check), outcome in zip(todo, outcomes, strict=True)
    }


@pytest.fixture(scope="module")
def mutated() -> Outcomes:
    return run(MUTATIONS, PATIENCE)


@pytest.fixture(scope="module")
def repaired() -> Outcomes:
    return run(REPAIRS, 10.0)


@pytest.mark.parametrize(
    ("mutation", "check"), [pytest.param(*pair, id=pair[1]) for pair in pairs(MUTATIONS)]
)
def test_check_fails(mutation: Mutation, check: str, mutated: Outcomes) -> None:
    outcome = mutated[mutation.what, check]
    if outcome.status == "skip":
        pytest.skip(" ".join(outcome.lines))
    assert outcome.status == "fail", f"{mutation.what}: {outcome}"


@pytest.mark.parametrize(
    ("mutation", "check"), [pytest.param(*pair, id=pair[1]) for pair in pairs(REPAIRS)]
)
def test_check_passes_on_a_repaired_kernel(
    mutation: Mutation, check: str, repaired: Outcomes
) -> None:
    if not deviations.known(check, versions.running()):
        pytest.skip("this kernel does not deviate")
    outcome = repaired[mutation.what, check]
    assert outcome.status == "pass", f"{mutation.what}: {outcome}"
