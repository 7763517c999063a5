import subprocess
import sys

import pytest

HEAVY = ("torch", "prefect", "mlflow", "label_studio_sdk", "pandas", "pyarrow", "numpy", "httpx")


@pytest.mark.parametrize("module", ["flows.cli", "flows.config"])
def test_command_and_settings_load_nothing_that_takes_seconds(module):
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
