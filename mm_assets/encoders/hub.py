"""Weights from the hub on which makers of pathology models publish them, with the user's token."""

from pathlib import Path

from mm_assets.encoders.catalogue import HUB_HOST, WEIGHTS_FILES
from mm_assets.encoders.checkpoint import WeightsError


def fetch_weights(source: str) -> Path:
    """The file of weights of a repository, from the user's cache or downloaded into it.

    The token is the one that the user has logged in with, or the environment's HF_TOKEN.

    Parameters
    ----------
    source
        ``huggingface.co/<owner>/<name>``.

    Raises
    ------
    WeightsError
        When the repository is not on the hub, cannot be reached, is not open to the user, or holds
        no file that is known.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not source.startswith(HUB_HOST):
        raise WeightsError(f"{source} is not on the hub: give a path in place of `hub`")
    repository = source.removeprefix(HUB_HOST)
    # All names are looked for here first: without internet, a name that was never there is an
    # error like any other.
    here = cached_weights(source)
    if here is not None:
        return here
    for name in WEIGHTS_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:
            raise _unreachable(source, error) from error
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise _unreachable(source, error) from error
    raise WeightsError(f"{source} holds neither {' nor '.join(WEIGHTS_FILES)}")


def cached_weights(source: str) -> Path | None:
    """The file of weights of a repository in the user's cache, if it was downloaded before."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    repository = source.removeprefix(HUB_HOST)
    kept = (try_to_load_from_cache(repository, name) for name in WEIGHTS_FILES)
    return next((Path(path) for path in kept if isinstance(path, str)), None)


def has_token() -> bool:
    """Whether the user has logged in to the hub, or the environment holds a token."""
    try:
        from huggingface_hub import get_token
    except ModuleNotFoundError:
        return False
    return get_token() is not None


def _unreachable(source: str, error: OSError) -> WeightsError:
    reason = str(error).strip().partition("\n")[0]
    return WeightsError(
        f"no weights from {source} ({reason}): accept its licence there, log in with `hf auth "
        "login` or set HF_TOKEN, or download them and give their path as weights"
    )
