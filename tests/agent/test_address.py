"""``--on``: what it may be, and that nothing in it becomes an option or a word of a shell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karui.bench.address import CAREFUL, command_of
from karui.errors import UsageError


@pytest.fixture(autouse=True)
def no_config(monkeypatch):
    monkeypatch.delenv("KARUI_SSH_CONFIG", raising=False)


def tail(address: str) -> list[str]:
    command = command_of(address)
    assert command[0] == "ssh" and "-oBatchMode=yes" in command
    return command[1 + len(CAREFUL) :]


def test_ssh():
    assert tail("ssh://board") == ["--", "board", "karui agent"]
    assert tail("ssh://me@board:2222") == ["-p", "2222", "-l", "me", "--", "board", "karui agent"]
    assert tail("ssh://[fe80::1]:22") == ["-p", "22", "--", "fe80::1", "karui agent"]
    assert tail("ssh://board/opt/karui/bin/karui") == ["--", "board", "/opt/karui/bin/karui agent"]


def test_a_configuration_file_can_be_named(monkeypatch):
    monkeypatch.setenv("KARUI_SSH_CONFIG", "/etc/boards")
    assert tail("ssh://board") == ["-F", "/etc/boards", "--", "board", "karui agent"]


def test_a_command_is_split_into_words_and_given_to_no_shell():
    assert command_of("pipe:docker exec -i 'my board' karui agent") == [
        *("docker", "exec", "-i", "my board", "karui", "agent")
    ]
    assert command_of("pipe:a; b $(c) | d")[1:] == ["b", "$(c)", "|", "d"]


@pytest.mark.gate
@pytest.mark.parametrize(
    "address",
    [
        "ssh://-oProxyCommand=evil",
        "ssh://me@-oProxyCommand=evil",
        "ssh://-l@board",
        "ssh://board/bin/karui;evil",
        "ssh://board/$(evil)",
        "ssh://board/bin/ka rui",
        "ssh://board:22x",
        "ssh://",
        "ssh://board\n",
        "board",
        "http://board",
        "pipe:",
        "pipe:'open",
    ],
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UsageError) as caught:
        command_of(address)
    if "//-o" in address or "@-o" in address:
        assert "does not begin with '-'" in caught.value.why


@given(st.text(alphabet="ab-@:/.[]$;'\"`\\ \n|&(){}*?~%", max_size=30))
def test_no_address_adds_an_option_or_a_word_for_a_shell(text):
    try:
        words = tail(f"ssh://{text}")
    except UsageError:
        return
    host, program = words[words.index("--") + 1 :]
    assert not host.startswith("-")
    assert all(not word.startswith("-") for word in words[1 : words.index("--") : 2])  # values of -p and -l
    assert set(program) <= set("abkruiegnt-./ ") and program.endswith(" agent") and program.count(" ") == 1
