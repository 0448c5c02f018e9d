from __future__ import annotations

from pathlib import Path

from songray.service.haproxy import haproxy_environment


def test_each_service_has_a_folder_and_ports_of_its_own_which_end_with_it() -> None:
    with haproxy_environment() as first, haproxy_environment() as second:
        assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        folders = [Path(each["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent for each in (first, second)]
        assert folders[0] != folders[1] and all(folder.is_dir() for folder in folders)
        ports = [
            each[f"RAY_SERVE_HAPROXY_{name}_PORT"]
            for each in (first, second)
            for name in ("METRICS", "STATS")
        ]
        assert len(set(ports)) == 4
        (folders[0] / "haproxy.cfg").write_text("")
    assert not any(folder.exists() for folder in folders)
