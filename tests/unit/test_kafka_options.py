"""Kafka client options as a TOML file can state them: TLS files become a context, mistakes become one clear error."""

import ssl

import pytest

from broker.kafka_client import Connection
from schemas.errors import ConfigurationError


def test_tls_files_become_a_context() -> None:
    arguments = Connection("localhost:9092", {"security_protocol": "SSL", "ssl_cafile": ssl.get_default_verify_paths().cafile}).arguments("c")
    assert isinstance(arguments["ssl_context"], ssl.SSLContext)
    assert "ssl_cafile" not in arguments


def test_a_missing_tls_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/ca\.pem"):
        Connection("localhost:9092", {"security_protocol": "SASL_SSL", "ssl_cafile": "/nowhere/ca.pem"}).arguments("c")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown sasl_mecanism; known are .*sasl_mechanism"):
        Connection("localhost:9092", {"sasl_mecanism": "PLAIN"}).arguments("c")


def test_plain_options_go_through() -> None:
    assert Connection("localhost:9092", {"sasl_mechanism": "PLAIN"}).arguments("c")["sasl_mechanism"] == "PLAIN"
