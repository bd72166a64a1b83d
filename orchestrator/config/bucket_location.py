"""The address of a place in object storage, checked without asking anybody."""

from __future__ import annotations

from dataclasses import dataclass

from policies.base.errors import ConfigurationError, explain


@dataclass(frozen=True)
class Location:
    """The place of a run in a bucket. Example: `Location("models", "pawl/quickstart-1")`."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Location:
        """Read `s3://bucket/prefix`.

        Raises:
            ConfigurationError: it is not such an address.
        """
        # A shell's path object has one slash less.
        scheme, _, rest = (
            url.replace("s3:/", "s3://", 1).replace("s3:///", "s3://").partition("://")
        )
        bucket, _, prefix = rest.strip("/").partition("/")
        if scheme != "s3" or not bucket or "@" in bucket or ".." in prefix.split("/"):
            raise ConfigurationError(
                explain(
                    "not an address of object storage",
                    value=url.split("@")[-1],
                    where="storage.url",
                    fix="write s3://BUCKET/PREFIX; credentials come from the environment or a profile",
                )
            )
        return cls(bucket, prefix)

    def under(self, name: str) -> Location:
        """A place below this one."""
        return Location(self.bucket, f"{self.prefix}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"
