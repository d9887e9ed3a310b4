"""A job's log: from its file to CloudWatch."""

import time
from pathlib import Path
from typing import Any


class LogForwarder:
    """Sends a file's lines, as they come, to a stream of CloudWatch."""

    def __init__(self, client: Any, file: Path, group: str, stream: str) -> None:
        self.client, self.file, self.group, self.stream = client, file, group, stream
        self._read = 0

    def forward(self, *, ended: bool = False) -> list[str]:
        """Send what is new; the lines sent. A line without end waits, unless the job has ended."""
        with self.file.open("rb") as log:
            log.seek(self._read)
            text = log.read()
        if not ended:
            text = text[: text.rfind(b"\n") + 1]
        lines = [line for line in text.decode(errors="replace").splitlines() if line]
        if lines:
            self._send(lines)
        self._read += len(text)
        return lines

    def _send(self, lines: list[str]) -> None:
        names = {"logGroupName": self.group, "logStreamName": self.stream}
        if self._read == 0:
            _ensure(self.client.create_log_group, logGroupName=self.group)
            _ensure(self.client.create_log_stream, **names)
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in lines]
        self.client.put_log_events(**names, logEvents=events)


def _ensure(create: Any, **names: str) -> None:
    try:
        create(**names)
    except Exception as error:
        if "ResourceAlreadyExists" not in type(error).__name__:
            raise
