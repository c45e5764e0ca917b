from __future__ import annotations

import signal
import threading

import pytest

from ttransfer.run._signals import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stopping() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number.name
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_interrupts(first: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        with stopping():
            signal.raise_signal(first)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_sigterm_changes_nothing() -> None:
    with stopping() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == "SIGTERM"


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    found: list[object] = []

    def run() -> None:
        with stopping() as stop:
            found.append(stop.signal)
            found.extend(signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None, *before]
