"""Resources as a user states them."""

import pytest

from predictor.errors import ConfigurationError
from predictor.pod.stated import PROCESSES, parse_alternative, stated_resources

GIB = 1024**3


def test_stated_memory_is_the_containers_limit_of_which_the_process_has_its_part():
    memory = stated_resources(None, "4GiB", None).memory

    assert (memory.limit, memory.available) == (4 * GIB, 4 * GIB - PROCESSES)


@pytest.mark.parametrize("memory", ["0", "512MiB"])
def test_a_limit_that_the_process_alone_would_reach_is_refused(memory):
    with pytest.raises(ConfigurationError, match=r"own processes take 608\.00 MiB; state more"):
        stated_resources(None, memory, None)


def test_memory_that_is_not_stated_is_none():
    memory = stated_resources("24GiB", None, None).memory

    assert (memory.limit, memory.available) == (0, 0)


def test_gpus_are_a_list_of_sizes_and_of_so_many_of_one_size():
    cards = stated_resources("2x24GiB, 80GiB", None, None).accelerators

    assert [(card.index, card.free) for card in cards] == [
        (0, 24 * GIB),
        (1, 24 * GIB),
        (2, 80 * GIB),
    ]


def test_stated_space_may_be_written_whole():
    volume = stated_resources(None, None, "400GiB").volume

    assert volume is not None
    assert (volume.available, volume.stated) == (400 * GIB, True)


def test_what_cannot_be_read_is_one_sentence():
    with pytest.raises(ConfigurationError, match="cannot be read: 'two' is no amount of memory"):
        stated_resources("two", None, None)


def test_an_alternative_names_its_resources_and_lists_have_commas_too():
    amounts = parse_alternative("gpus=2x24GiB,16GiB, memory=64GiB,disk=none")

    assert amounts == {"gpus": "2x24GiB,16GiB", "memory": "64GiB", "disk": "none"}


@pytest.mark.parametrize("text", ["", "24GiB", "gpu=24GiB", "gpus=1,gpus=2", "memory=1GiB,cpus=2"])
def test_an_alternative_with_another_name_or_one_twice_is_refused(text):
    with pytest.raises(ConfigurationError, match="write an alternative like gpus=2x24GiB"):
        parse_alternative(text)
