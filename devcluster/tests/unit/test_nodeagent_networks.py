"""Pod networks: two node agents of one machine never give their pods the same addresses."""

from pathlib import Path

from flotilla_devcluster.network import PodNetworks


def test_two_agents_get_different_networks_and_a_released_one_is_free_again(tmp_path: Path) -> None:
    one, other = PodNetworks(tmp_path), PodNetworks(tmp_path)

    assert [one.claim(), other.claim(), one.claim()] == [1, 2, 3]
    one.release()
    assert [other.claim(), other.claim()] == [1, 3]
    other.release()
