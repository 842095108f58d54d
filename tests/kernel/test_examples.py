"""The examples, run as a newcomer would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("client", ["balancing_client.py", "async_client.py"])
def test_echo(client: str) -> None:
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "echo_server.py"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split()[1]
            answered = subprocess.run(
                [sys.executable, EXAMPLES / client, port, "--requests", "500"],
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert answered.stderr == ""
            assert answered.stdout == "500 answers, each to its request\n"
            output, _ = server.communicate(timeout=60)
            assert output.count(": the peer closed the connection\n") == 4
            assert server.returncode == 0
        finally:
            server.kill()
