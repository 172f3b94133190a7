import io
import sys

import pytest

from genfl import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("seconds", [1, 100, 1000])
def test_rate_and_time_left_are_there_after_the_first_block_however_slow(monkeypatch, seconds):
    now, terminal = [0.0], Terminal()
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.bar("generate", 200, "samples", done=100) as advance:
        now[0] += seconds
        advance(50)
    seen = terminal.getvalue()
    assert "150/200" in seen
    assert f"{50 / seconds:.3g}/s" in seen
    minutes, rest = divmod(seconds, 60)
    assert f"{minutes // 60}:{minutes % 60:02}:{rest:02}" in seen


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress.bar("generate", 1000, "samples", done=100) as advance:
        advance(0)
        for _ in range(9):
            now[0] += 25
            advance(100)
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == [
        "generate: 400 of 1000 samples, 4/s, 2 min left",
        "generate: 700 of 1000 samples, 4/s, 1 min left",
    ]
    caplog.clear()
    with progress.bar("federate", 1000, "rounds") as advance:
        advance(900)  # by an earlier run
        for _ in range(3):
            now[0] += 60
            advance(0)
            advance(1)
    assert [line.rpartition(", ")[2] for line in caplog.messages[-2:]] == ["99 min left", "98 min left"]
    caplog.clear()
    progress.enabled.set(False)
    with progress.bar("generate", 1000, "samples") as advance:
        now[0] += 3600
        advance(1)
    progress.enabled.set(True)
    assert caplog.messages == []
