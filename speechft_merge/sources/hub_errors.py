"""Turns huggingface_hub's exceptions into ours, which say what went wrong and what to do."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from speechft_merge.errors import NotFoundError, SpeechFTMergeError, TemporaryError
from speechft_merge.sources.redaction import redacted
from speechft_merge.sources.retries import RETRIED

if TYPE_CHECKING:
    from collections.abc import Iterator


UPLOAD_EXPIRED = frozenset({400, 401, 403, 404, 410})
"""What the storage answers when the signed URL of an upload has expired."""


class HubError(SpeechFTMergeError):
    """The Hub refused, and trying again will not help."""


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what the client raises about `repo` into one of our errors."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx in 1.x, httpx2 in 2.x

    try:
        yield
    except SpeechFTMergeError:
        raise
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _translate(error, repo) from error
    except httpx.HTTPError as error:
        raise _unreachable(error) from error
    except (httpx.InvalidURL, ImportError) as error:  # a SOCKS proxy needs a package of its own
        raise _unusable(error) from error
    except UnicodeEncodeError as error:
        raise HubError("the token or HF_ENDPOINT holds a letter that is not ASCII", hint="correct it") from error
    except (errors.HFValidationError, ConnectionError) as error:
        raise _translate(error, repo) from error
    except RuntimeError as error:  # what the client raises when an upload breaks off
        cause = error.__cause__ or error
        if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code not in UPLOAD_EXPIRED:
            raise _translate(cause, repo) from error
        raise TemporaryError(
            f"{repo}: {_first_line(error)} ({type(cause).__name__}: {_first_line(cause)})", hint="try again"
        ) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if "proxy" in str(error):
            raise _unusable(error) from error
        # no JSON, a proxy's log-in page perhaps; or JSON that the client cannot make sense of
        raise TemporaryError(
            f"the server that answers is not the Hub ({type(error).__name__})", hint="check HF_ENDPOINT and proxies"
        ) from error


def _translate(error: Exception, repo: str) -> SpeechFTMergeError:
    """Return our error for one of the client's, tested in the order of its class hierarchy."""
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and cause is not None:
        return _translate(cause, repo) if isinstance(cause, errors.OfflineModeIsEnabled) else _unreachable(cause)
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return NotFoundError(
            f"HF_HUB_OFFLINE is set and {repo} is not in the cache {constants.HF_HUB_CACHE}",
            hint="download it where there is a network (--download), or unset HF_HUB_OFFLINE",
        )
    if isinstance(error, errors.GatedRepoError):
        return NotFoundError(
            f"{repo} is gated",
            hint=f"accept its terms at {redacted(constants.ENDPOINT)}/{repo} with the account of your token, then run "
            "again",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(
            f"{repo} has no such revision", hint="give a branch, a tag, a commit or refs/pr/N after the @"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotFoundError(f"{repo}: no such file in the repository ({_first_line(error)})")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and "Invalid" in str(error) and not isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            "the Hub rejected your token: expired or mistyped", hint="run 'hf auth login' again, or correct HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"{repo} is not a local path, and the Hub has no such model or you have no access to it",
            hint="check the name, and for a private model run 'hf auth login' or set HF_TOKEN",
        )
    if status in (413, 507):
        return HubError(
            f"the Hub has no room for it in {repo}: {_first_line(error)}",
            hint="free some storage of the account, or push to another repository",
        )
    if status == 403:
        return HubError(
            f"your token may not do that with {repo}: {_first_line(error)}",
            hint="use a token with write role, push to another repository, or pass --create-pr",
        )
    if status == 412:
        return HubError(f"{repo} changed meanwhile, nothing was pushed", hint="run again, or pass --create-pr")
    if status in RETRIED:
        return TemporaryError(
            f"the Hub is busy or failing (HTTP {status}: {_first_line(error)})", hint="try again later"
        )
    if isinstance(error, ConnectionError) and "xet-write-token" in str(error):
        return HubError(
            f"the Hub gave no upload token for {repo}: {_first_line(error)}",
            hint="use a token with write role, or set HF_HUB_DISABLE_XET=1 for a server without Xet",
        )
    return HubError(f"{repo}: {_first_line(error)}")


def _unusable(error: Exception) -> HubError:
    return HubError(
        f"a proxy or HF_ENDPOINT cannot be used: {_first_line(error)}",
        hint="check http_proxy, https_proxy, all_proxy and HF_ENDPOINT; a SOCKS proxy needs: pip install socksio",
    )


def _unreachable(error: BaseException) -> TemporaryError:
    """Return the error for a Hub that does not answer."""
    from huggingface_hub import constants

    return TemporaryError(
        f"cannot reach {redacted(constants.ENDPOINT)}: {type(error).__name__}: {_first_line(error)}",
        hint="check the network, HF_ENDPOINT and proxies, and try again",
    )


def _first_line(error: BaseException) -> str:
    """Return the server's own words where there are any; never a URL, which may be signed."""
    text = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    return redacted(" ".join(word for word in text.split() if "://" not in word))[:300]
