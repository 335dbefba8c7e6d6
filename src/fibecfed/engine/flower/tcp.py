"""Seconds that TCP needs for a message over a link with a delay, on which segments may be lost. Modelled by round trips, as in Cardwell,
Savage and Anderson (2000), "Modeling TCP latency", with the window of CUBIC (RFC 9438), which nearly every host uses."""

from __future__ import annotations

import math

import numpy as np

SEGMENT, FRAME = 1448, 1514
"""Bytes of a segment that are the message's, and of its frame on the way (Ethernet, IP, TCP with time stamps)."""

FIRST_WINDOW = 10.0
"""Segments that are sent before the first is acknowledged (RFC 6928), by a connection that is new or was idle."""

DECREASE, CUBIC, RENO = 0.7, 0.4, 3 * (1 - 0.7) / (1 + 0.7)
"""RFC 9438: beta, by which a loss multiplies the window; C, by which it grows again; and at least so many segments a round trip."""

KEPT = 5
"""Messages that a connection carries before the one that counts: what earlier losses have done to its window lasts."""

BETWEEN = 10
"""Small segments on a connection between two messages; the loss of one makes the window small for the next message."""

LONG = 2000
"""Segments after which the rate is taken to be constant; also the largest window."""


def transfer_draws(size: int, mbit: float, trip_s: float, loss: float, draws: np.random.Generator, count: int) -> np.ndarray:
    """Seconds from the first byte sent to the last one arrived, without the delay of that last one.

    The window begins with ten segments and doubles with every round trip until it has reached the threshold, which is infinite until a
    segment is lost. A loss costs 0.3 of the window, and what is left is the new threshold; beyond it the window grows as CUBIC's. What was
    lost is sent again in the next round trip.

    Args:
        size: bytes.
        mbit: rate, 10^6 bits a second.
        trip_s: seconds of a round trip.
        loss: fraction of the segments that is lost.
        draws: of losses; not used without any.
        count: transfers that are drawn.

    Returns:
        Float64, shape (count,).
    """
    segments = math.ceil(size / SEGMENT)
    if segments <= LONG:
        return _drawn(segments, mbit, trip_s, loss, draws, count)
    half, whole = (_drawn(some, mbit, trip_s, loss, draws, count) for some in (LONG // 2, LONG))
    return whole + (segments - LONG) * (whole.mean() - half.mean()) / (LONG - LONG // 2)


def _drawn(segments: int, mbit: float, trip_s: float, loss: float, draws: np.random.Generator, count: int) -> np.ndarray:
    per_s, seconds = mbit * 1e6 / 8 / FRAME, np.zeros(count)
    threshold, largest, since = np.full(count, math.inf), np.zeros(count), np.zeros(count)  # since the last loss
    for _ in range(KEPT + 1 if loss else 1):
        if loss:
            hit = draws.random(count) < 1 - (1 - loss) ** BETWEEN
            threshold, largest = np.where(hit, DECREASE * FIRST_WINDOW, threshold), np.where(hit, FIRST_WINDOW, largest)
            since = np.where(hit, 0.0, since)
        window = np.minimum(FIRST_WINDOW, threshold)
        left, seconds = np.full(count, segments), np.zeros(count)
        while (left > 0).any():
            open_, sent = left > 0, np.minimum(window.astype(np.int64), left)
            lost = draws.binomial(sent, loss) if loss else np.zeros(count, dtype=np.int64)
            left = left - sent + lost
            took = np.where(left > 0, np.maximum(trip_s + 1 / per_s, sent / per_s), sent / per_s)  # 0 for those that are done
            seconds, since, hit = seconds + took, since + took, lost > 0
            threshold, largest, since = (
                np.where(hit, DECREASE * window, threshold),
                np.where(hit, window, largest),
                np.where(hit, 0.0, since),
            )
            cubic = CUBIC * (since - np.cbrt(largest * (1 - DECREASE) / CUBIC)) ** 3 + largest
            reno = DECREASE * largest + RENO * since / max(trip_s, 1e-9)
            grown = np.clip(np.maximum(cubic, reno), window, 1.5 * window)
            after = np.where(window < threshold, np.minimum(2 * window, threshold), grown)
            window = np.where(open_, np.clip(np.where(hit, threshold, after), 2.0, LONG), window)
        threshold = np.where(np.isfinite(threshold), np.maximum(threshold, 0.75 * window), threshold)  # as Linux, before it is idle
    return seconds
