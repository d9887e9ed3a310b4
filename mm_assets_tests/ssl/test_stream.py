import numpy as np
import pytest

from mm_assets.ssl.stream import Stream
from mm_assets.wsi.errors import SlideError
from mm_assets_tests.ssl.pictures import numbered


def values(stream: Stream, epoch: int = 0, rank: int = 0, world: int = 1) -> np.ndarray:
    return np.stack(list(stream.epoch(epoch, rank, world)))[..., 0]


def test_an_epoch_shows_every_picture_once_and_mixes_slides() -> None:
    sources = numbered(6, 10)
    stream = Stream(sources, each=10, batch=12, pool=30, seed=0)
    made = values(stream)
    assert made.shape == (stream.steps, 12) == (5, 12)
    assert sorted(made.ravel()) == sorted(np.concatenate([s.pictures[:, 0] for s in sources]))
    assert len(set(made[0] // 100)) > 1
    assert [source.reads for source in sources] == [1] * 6


def test_an_epoch_draws_at_most_so_many_of_a_slide() -> None:
    made = values(Stream(numbered(6, 50), each=4, batch=8, pool=5, seed=0)).ravel()
    assert np.bincount(made // 100).tolist() == [4] * 6
    assert len(set(made)) == 24


def test_epochs_differ_and_depend_on_their_number_alone() -> None:
    first, again = (Stream(numbered(4, 9), 5, 10, 8, seed=1) for _ in range(2))
    values(first, 0)
    assert (values(first, 1) == values(again, 1)).all()
    assert (values(first, 1) != values(again, 2)).any()


def test_a_slide_that_cannot_be_read_is_named_and_made_up_for() -> None:
    stream = Stream(numbered(4, 10, broken=(2,)), each=10, batch=20, pool=10, seed=0)
    made = values(stream)
    assert made.shape == (2, 20)
    assert stream.lost == {"s2": "s2 is broken"}
    assert 2 not in values(stream, 1) // 100
    everything = Stream(numbered(2, 10, broken=(0, 1)), each=10, batch=20, pool=10, seed=0)
    with pytest.raises(SlideError, match="none of the slides"):
        values(everything)


def test_processes_share_the_slides() -> None:
    stream = Stream(numbered(5, 10), each=10, batch=10, pool=7, seed=0)
    shares = [values(stream, 0, rank, 2) for rank in (0, 1)]
    assert [share.shape for share in shares] == [(5, 5), (5, 5)]
    assert set(shares[0].ravel() // 100) == {0, 2, 4}
    assert set(shares[1].ravel() // 100) == {1, 3}


def test_fewer_pictures_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="9 pictures in 3 slides are fewer than a batch of 10"):
        Stream(numbered(3, 3), each=5, batch=10, pool=4, seed=0)
