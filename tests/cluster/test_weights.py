import hashlib
from pathlib import Path

import pytest
import torch

from cluster.objects import FolderStore
from cluster.weights import get_weights, put_weights
from dass.errors import ObjectNotFoundError, StoreError

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "stem.bn.num_batches_tracked": torch.tensor(7)}


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    state = get_weights(store, put_weights(store, STATE))
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in STATE.items())


def test_the_key_is_the_hash_of_the_bytes_and_equal_states_share_it(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    sha = put_weights(store, STATE)
    assert put_weights(store, dict(reversed(STATE.items()))) == sha
    assert list(store.list()) == [f"blobs/{sha}"]
    assert hashlib.sha256(store.get(f"blobs/{sha}")).hexdigest() == sha


def test_bytes_that_changed_are_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    sha = put_weights(store, STATE)
    data = store.get(f"blobs/{sha}")
    store.put(f"blobs/{sha}", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"blobs/{sha} must hold the bytes it is named after"):
        get_weights(store, sha)
    store.put(f"blobs/{sha}", data[:-1])
    with pytest.raises(StoreError, match=f"{len(data) - 1} bytes instead of {len(data)}"):
        put_weights(store, STATE)


def test_absent_weights_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFoundError, match="blobs/abc"):
        get_weights(FolderStore(tmp_path), "abc")
