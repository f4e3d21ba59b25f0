"""What a client with one API key learns of the prompts of another from the tokens that the cache had: nothing, unless
the server is told to share."""

from __future__ import annotations

import asyncio
from itertools import chain

import pytest
from small_server import serving

from orthrus.serving.app import create_app
from orthrus.serving.settings import ServeSettings

SECRET = "The code of the safe is 4071."
GUESSES = [f"The code of the safe is {digit}" for digit in range(10)]


async def cached_tokens(client, prompt, key=None):
    """The tokens of a prompt that the cache had."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0}
    response = await client.post("/v1/completions", json=body, headers=headers)
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(
    ("settings", "other_finds_the_code", "same_is_served_from_the_cache"),
    [({}, False, True), ({"share_prefixes": "all"}, True, True), ({"share_prefixes": "off"}, False, False)],
)
def test_a_client_with_another_key_cannot_guess_a_prompt(
    model, settings, other_finds_the_code, same_is_served_from_the_cache
):
    async def main():
        async with serving(model, create_app, api_keys=("one", "two"), **settings) as (_, client):
            await cached_tokens(client, SECRET, "one")
            guessed = [await cached_tokens(client, guess + "?", "two") for guess in GUESSES]
            again = await cached_tokens(client, SECRET, "one")
        return guessed, again

    guessed, again = asyncio.run(main())
    longest = guessed.index(max(guessed))
    assert (longest == 4 and guessed[4] == len(GUESSES[4])) == other_finds_the_code, guessed
    assert (again == len(SECRET) - 1) == same_is_served_from_the_cache
    if not same_is_served_from_the_cache:
        assert not any(chain(guessed, [again]))


def test_without_keys_all_requests_share(model):
    async def main():
        async with serving(model, create_app) as (_, client):
            return [await cached_tokens(client, SECRET) for _ in range(2)]

    assert asyncio.run(main()) == [0, len(SECRET) - 1]


def test_another_word_than_the_known_ones_is_refused():
    with pytest.raises(ValueError, match="share_prefixes must be one of keys, all, off, not 'none'"):
        ServeSettings(share_prefixes="none")
