"""An answer of the service that is an error."""


class Refusal(Exception):
    """An error's code and message, as the service would send them."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
