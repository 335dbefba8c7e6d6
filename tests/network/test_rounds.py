"""Rounds over shaped links: the seconds that they take beside those predicted, and a server that comes back after bad certificates."""

from __future__ import annotations

import signal
import sys
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from namespaces import PLAIN, Shape

from fibecfed.core.clock import Network, round_seconds
from fibecfed.core.records import RoundRecord

pytestmark = [pytest.mark.network, pytest.mark.slow]

LINKS = {
    "10/50 Mbit/s, 30 ms": Shape(10, 50, 30),
    "1 Mbit/s, 200 ms, 1 % loss": Shape(1, 1, 200, 0.01),
}
BEFORE, SHAPED = 5, {"10/50 Mbit/s, 30 ms": 5, "1 Mbit/s, 200 ms, 1 % loss": 8}
"""Rounds on cables without a limit, and then on each link."""


BAD = {
    "expired": ("IP:{}", -1, "has expired on"),
    "another name": ("DNS:another.example", 2, "is not for the name"),
}
"""Certificates of the server: for whom, for how many days from now, and what a site says."""


@pytest.fixture(scope="module")
def measured(sites: Any) -> tuple[Path, list[RoundRecord]]:
    """A run under way: its folder, and its rounds without a limit and then over each link."""
    from tiny_federation import NAMES, rounds_of

    completed = 1 + BEFORE  # in the first one Flower also brings the app and its run to each site
    out = sites.begun(completed)
    for label, link in LINKS.items():
        for seed, name in enumerate(NAMES):
            sites.network.shape(name, link, seed)
        completed += SHAPED[label]
        sites.until_round(out, completed)
    for name in NAMES:
        sites.network.shape(name, PLAIN)
    return out, rounds_of(out)[:completed]


@pytest.fixture(scope="module")
def resumed(measured: tuple[Path, list[RoundRecord]], sites: Any) -> tuple[Path, dict[str, str]]:
    """The same run, after its server was killed and started with bad certificates before a good one; and what each site said."""
    from machines import sign
    from tiny_federation import NAMES

    for name in ("link", "flwr"):
        sites.stop(name, signal.SIGKILL)
    certificates = sites.app / "certificates"
    for names, days, words in BAD.values():
        sign(certificates, sites.run, names.format(sites.host), days)
        sites.link()
        for name in NAMES:
            sites.until(f"client-{name}", words)
        sites.stop("link", signal.SIGKILL)
    sign(certificates, sites.run, f"DNS:localhost,IP:{sites.host}")
    sites.link()
    sites.run(sys.executable, "-m", "fibecfed", "resume", str(measured[0]))
    return measured[0], {name: sites.log(f"client-{name}") for name in NAMES}


def test_rounds_take_what_is_predicted_for_their_link(measured: tuple[Path, list[RoundRecord]], sites: Any) -> None:
    """What is predicted: the network's seconds, which `check` shows, on top of what rounds take without any limit; beside
    the rest between two questions that is what starting a process takes here."""
    from fibecfed.engine.flower.pace import ASKS_EVERY_S, FLOWER_S, network_seconds

    _, unshaped, *others = split(measured[1], [1, BEFORE, *SHAPED.values()])
    own, own_error = mean_and_error(unshaped)
    print(f"\nlinks shaped by {sites.network.shaped_by}; seconds a round, with standard errors")
    print(f"without limits {own:.1f} ± {own_error:.1f} in {len(unshaped)} rounds, of which `check` expects Flower to take {FLOWER_S:g}")
    print("| link | rounds | bytes down, up | network: report | network: check | predicted | measured | ratio |\n|" + "---|" * 8)
    misses = []
    for (label, link), rounds in zip(LINKS.items(), others, strict=True):
        network = Network(link.up_mbit, link.down_mbit, link.delay_ms, client_speed=1e9)  # computing is in what they take without limits
        report = mean(round_seconds(record, network) for record in rounds)
        down, up = max(rounds[0].bytes_down.values()), max(rounds[0].bytes_up.values())
        check = network_seconds(down, up, network, link.loss, len(rounds[0].cohort), own - ASKS_EVERY_S)
        seconds, error = mean_and_error(rounds)
        cells = (f"{down}, {up}", f"{report:.1f}", f"{check:.1f}", f"{own + check:.1f}", f"{seconds:.1f} ± {error:.1f}")
        print(f"| {label} | {len(rounds)} |", " | ".join(cells), f"| {seconds / (own + check):.2f} |")
        if abs(seconds - own - check) > 0.2 * (own + check) + 2 * (own_error**2 + error**2) ** 0.5:
            misses.append(label)
    assert not misses


def split(rounds: list[RoundRecord], sizes: list[int]) -> list[list[RoundRecord]]:
    rest = iter(rounds)
    return [list(islice(rest, size)) for size in sizes]


def mean_and_error(rounds: list[RoundRecord]) -> tuple[float, float]:
    """Seconds of a round: the mean, and its standard error, Flower asking only every few seconds."""
    seconds = [record.seconds for record in rounds]
    return mean(seconds), stdev(seconds) / len(seconds) ** 0.5


def test_no_answer_is_lost_and_the_bits_are_the_simulators(resumed: tuple[Path, dict[str, str]], sites: Any) -> None:
    from tiny_federation import facts, outcome

    sites.run(sys.executable, "-m", "fibecfed", "run", "sim.toml", "--out", "sim")
    assert facts(resumed[0]) == facts(sites.folder / "sim")
    assert outcome(resumed[0]) == outcome(sites.folder / "sim")


def test_a_site_says_what_is_wrong_with_a_certificate_and_is_back_once_it_is_right(resumed: tuple[Path, dict[str, str]]) -> None:
    for told in resumed[1].values():
        first, *_, last = (place for place in range(len(told)) if told.startswith("connected to", place))
        for _, _, words in BAD.values():
            assert first < told.index(words) < last
