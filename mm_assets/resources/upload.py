"""Upload of large files to S3."""

from pathlib import Path

from mm_assets.cohort.s3 import s3_client


def upload_file(path: Path, key: str) -> None:
    """Copy a local file to ``bucket/name``, in parts where it is large; whole or not at all.

    A stream of pyarrow would publish what it has when reading the file fails half-way.

    Raises
    ------
    OSError
        The upload failed; nothing is visible under the name.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, name = key.partition("/")
    try:
        s3_client().upload_file(str(path), bucket, name)
    except (Boto3Error, BotoCoreError, ClientError) as error:
        raise OSError(str(error)) from error
