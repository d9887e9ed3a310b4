"""What a job writes, from CloudWatch."""

import sys
from collections import deque
from typing import Any

_TAIL = 20


class JobLog:
    """Forwards what a job writes to CloudWatch, and remembers the last lines."""

    def __init__(self, logs: Any, group: str, name: str) -> None:
        self.logs, self.group, self.name = logs, group, name
        self.tail: deque[str] = deque(maxlen=_TAIL)
        self._tokens: dict[str, str] = {}

    def poll(self) -> None:
        """Print the lines that have come since."""
        try:
            found = self.logs.describe_log_streams(
                logGroupName=self.group, logStreamNamePrefix=f"{self.name}/"
            )
        except self.logs.exceptions.ResourceNotFoundException:
            return
        for stream in found["logStreams"]:
            self._follow(stream["logStreamName"])

    def _follow(self, stream: str) -> None:
        while True:
            token = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            page = self.logs.get_log_events(
                logGroupName=self.group, logStreamName=stream, startFromHead=True, **token
            )
            for event in page["events"]:
                self.tail.append(event["message"])
                print(event["message"], file=sys.stdout, flush=True)
            ended = page["nextForwardToken"] == self._tokens.get(stream)
            self._tokens[stream] = page["nextForwardToken"]
            if ended or not page["events"]:
                return
