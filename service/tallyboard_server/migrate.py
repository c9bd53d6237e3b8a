"""The `migrate` command: brings the schema up to date without starting the service."""

import psycopg

from tallyboard_server.embedded import DataFolderLock, EmbeddedPostgres
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.settings import Settings, mask_url
from tallyboard_server.startup import StartupError


def migrate_schema(settings: Settings) -> list[str]:
    """Run the missing migrations in the Postgres of the settings, the embedded one included.

    Gives the names of what was run. Raises StartupError when Postgres cannot be used.
    """
    if settings.postgres_url:
        return _migrate(settings.postgres_url)
    with DataFolderLock(settings.data_dir), EmbeddedPostgres(settings.data_dir) as postgres:
        return _migrate(postgres.url)


def _migrate(url: str) -> list[str]:
    try:
        return migrate(url)
    except psycopg.Error as error:
        reason = mask_url(str(error)).strip().replace("\n", " ")
        raise StartupError(f"Postgres at {mask_url(url)} cannot be migrated: {reason}") from None
