"""What differs between the stages `test` and `prod`, and what the deployer has to say."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

REGION = "eu-west-2"
ZONES = ("eu-west-2a", "eu-west-2b")
S3_PREFIX_LIST = "pl-7ca54015"  # the addresses of S3 in the region
IMAGES = ("control-plane", "cpu-worker", "gpu-worker")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ACCOUNT = re.compile(r"[0-9]{12}")
_GROUP = re.compile(r"[^=\s]+=\S+")


@dataclass(frozen=True)
class Stage:
    """One account's deployment.

    Attributes
    ----------
    name
        ``test`` or ``prod``.
    account
        Account it lives in.
    domain
        Zone of the web UIs; ``ui.``, ``view.`` and ``models.`` lie below it.
    certificate
        ARN of the domain's certificate.
    issuer
        Address of the OIDC provider, as in its discovery document (``issuer``).
    authorization_endpoint, token_endpoint, userinfo_endpoint
        The provider's addresses of these names in the same document.
    client_version
        Label of the version of the secrets with the provider's clients that logins use.
    scope
        What the balancer asks the provider for: ``openid email`` and whatever else it takes to be
        told of groups (providers refuse scopes that they do not know).
    groups
        ``operators`` and ``viewers`` -> ``claim=group`` of the provider that people must have, or
        nothing: whom the provider lets use the client.
    repository
        ``owner/name`` on GitHub that may deploy.
    digests
        Image -> digest that is deployed.
    alarm_email
        Who hears of budgets and alarms.
    """

    name: str
    account: str
    domain: str
    certificate: str
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str
    client_version: str
    scope: str
    groups: Mapping[str, str]
    repository: str
    digests: Mapping[str, str]
    alarm_email: str

    @property
    def production(self) -> bool:
        """Whether patients' data may be here."""
        return self.name == "prod"

    @property
    def monthly_dollars(self) -> int:
        """Budget, of which the alarm email hears."""
        return 10_000 if self.production else 1_000


def stage_from_environment(environment: Mapping[str, str] = os.environ) -> Stage:
    """The stage that the ``MM_DEPLOY_*`` variables describe.

    Raises
    ------
    ValueError
        Names the variable that is missing or wrong.
    """

    def value(name: str) -> str:
        try:
            return environment[f"MM_DEPLOY_{name}"]
        except KeyError:
            raise ValueError(f"MM_DEPLOY_{name} is not set") from None

    stage = Stage(
        name=value("STAGE"),
        account=value("ACCOUNT"),
        domain=value("DOMAIN"),
        certificate=value("CERTIFICATE"),
        issuer=value("ISSUER"),
        authorization_endpoint=value("AUTHORIZATION_ENDPOINT"),
        token_endpoint=value("TOKEN_ENDPOINT"),
        userinfo_endpoint=value("USERINFO_ENDPOINT"),
        client_version=value("CLIENT_VERSION"),
        scope=environment.get("MM_DEPLOY_SCOPE") or "openid email",
        groups={g: environment.get(f"MM_DEPLOY_{g.upper()}", "") for g in ("operators", "viewers")},
        repository=value("REPOSITORY"),
        digests={image: value(_variable(image)) for image in IMAGES},
        alarm_email=value("ALARM_EMAIL"),
    )
    if stage.name not in ("test", "prod"):
        raise ValueError(f"MM_DEPLOY_STAGE={stage.name}: there are test and prod")
    if not _ACCOUNT.fullmatch(stage.account):
        raise ValueError(f"MM_DEPLOY_ACCOUNT={stage.account}: an account has twelve digits")
    for name in ("authorization", "token", "userinfo"):
        endpoint = getattr(stage, f"{name}_endpoint")
        if not endpoint.startswith("https://"):
            raise ValueError(f"MM_DEPLOY_{name.upper()}_ENDPOINT={endpoint}: not https://")
    for name, group in stage.groups.items():
        if group and not _GROUP.fullmatch(group):
            raise ValueError(f"MM_DEPLOY_{name.upper()}={group}: write claim=group")
    for image, digest in stage.digests.items():
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"MM_DEPLOY_{_variable(image)}={digest}: not sha256: and 64 digits")
    return stage


def _variable(image: str) -> str:
    return f"{image.replace('-', '_').upper()}_DIGEST"
