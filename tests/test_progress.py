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


def test_nothing_is_drawn_where_there_is_no_terminal(capsys):
    with progress.bar("generate", 200, "samples") as advance:
        advance(50)
    assert capsys.readouterr() == ("", "")
