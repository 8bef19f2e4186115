"""The cache of packs on a real S3 server, by itself and under a lane."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from cluster.cache import PackCache
from cluster.database import RunDatabase
from cluster.documents import put_task
from cluster.events import read_events
from cluster.lane import Lane, LaneJob
from cluster.objects import ObjectStore, open_store
from cluster.packs import get_pack, pack_key, put_pack
from cluster.queue_actor import remote_queue
from cluster.runtime import session
from cluster.settings import LaneConfig
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.data.splits import assign_parts, class_splits
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.teacher import teacher_run
from dass.records import Recipe
from dass.spaces import get_space
from tests.cluster.s3_server import bucket_url, s3_server, use_endpoint  # noqa: F401 - fixtures

pytestmark = [pytest.mark.s3, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations

RECIPE = Recipe(loss="ce", init="scratch", epochs=1, batch_size=16, lr=0.02, flip=0.0, crop_padding=1, eval_every=1)
LANES = LaneConfig(num=1, threads=1)


@pytest.fixture(scope="module")
def pack() -> Pack:
    return assign_parts(read_source("digits", 16), valid_fraction=0.5, test_fraction=0.3)


@pytest.fixture
def store(bucket_url: str, pack: Pack) -> ObjectStore:  # noqa: F811 - the fixture
    store = open_store(f"{bucket_url}/prefix")
    put_pack(store, pack)
    return store


@pytest.fixture
def ray_session(store: ObjectStore) -> Iterator[None]:
    """Ray, started after the variables that lead to the server are set."""
    with session(num_cpus=1):
        yield


def test_a_pack_comes_from_the_bucket_once(
    store: ObjectStore, pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cache.PIECE_BYTES", 100_000)  # 15 pieces
    cache = PackCache(tmp_path / "cache", 10**8)
    loaded = cache.load(store, pack.id)
    assert loaded.problem == ""
    assert torch.equal(loaded.pack.images, pack.images)
    store.delete(pack_key(pack.id))
    assert cache.load(store, pack.id).pack.id == pack.id
    with pytest.raises(ObjectNotFoundError):
        get_pack(store, pack.id)


def test_what_is_missing_or_damaged_in_the_bucket_is_an_error(store: ObjectStore, pack: Pack, tmp_path: Path) -> None:
    cache = PackCache(tmp_path / "cache", 10**8)
    with pytest.raises(ObjectNotFoundError):
        cache.load(store, "0" * 64)
    store.put(pack_key(pack.id), pack.to_bytes()[:-1])
    with pytest.raises(StoreError, match="run `data` again"):
        cache.load(store, pack.id)
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_lane_caches_its_pack_and_tells_when_it_cannot(store: ObjectStore, pack: Pack, tmp_path: Path) -> None:
    task = class_splits(pack, [(0, 1)], ["task"])[0]
    put_task(store, task)
    (tmp_path / "file").write_text("in the way")
    problems = []
    for seed, folder in enumerate((tmp_path / "cache", tmp_path / "file")):
        run = replace(teacher_run(task, get_space("smoke"), RECIPE), seed=seed)
        queue = remote_queue().remote(store.url, (run,), lease_s=60.0)
        name = f"lane{seed}"
        Lane(name, LaneJob(store.url, "queue", replace(LANES, cache_dir=str(folder))), queue).work()
        ray.kill(queue)
        assert RunDatabase(store).get(run.id) is not None
        problems.append([event.fields["reason"] for event in read_events(store, name) if event.kind == "cache"])
    assert (tmp_path / "cache" / f"{pack.id}.pack").read_bytes() == pack.to_bytes()
    assert problems[0] == []
    ((reason,),) = problems[1:]
    assert "cannot be used" in reason
