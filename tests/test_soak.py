"""A few seconds of the soak over all readers; its hours are run by hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_mutated_files_of_every_kind_are_read_or_refused(tmp_path):
    soak = Path(__file__).with_name("soak.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(soak.parents[1])}
    done = subprocess.run([sys.executable, soak, "8", "7"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"([\d,]+) files in 8 s, seed 7: 0 failures", done.stdout)
    assert found
    assert int(found[1].replace(",", "")) > 50
    assert not list(tmp_path.iterdir())
