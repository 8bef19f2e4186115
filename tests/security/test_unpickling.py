"""Nothing read from a store is unpickled: neither by our code nor by a library underneath."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.design.test_layers import FILES, ROOT, imported, name_of

MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "torch.load", "np.load", "numpy.load", "__import__"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_code_of_ours_turns_data_into_objects_or_code(path: Path) -> None:
    assert not {module.split(".")[0] for module in imported(path)} & MODULES
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not {ast.unparse(call.func) for call in calls} & CALLS
    keywords = {keyword.arg: ast.unparse(keyword.value) for call in calls for keyword in call.keywords}
    assert keywords.get("allow_pickle", "False") == "False"
    assert keywords.get("shell", "False") == "False"


def test_a_pickle_in_the_place_of_any_object_is_refused_unread(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.security.unpickling", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found["works"]
    assert (found["unpickled"], found["burst"]) == ([], False)
    assert len(found["said"]) == 4 * 15
    for case, said in found["said"].items():
        assert said.split(":")[0] in ("StoreError", "DataError"), (case, said)
        assert "; " in said, (case, said)
