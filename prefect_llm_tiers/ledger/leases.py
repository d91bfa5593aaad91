"""Who may decide about what."""

from datetime import datetime

from sqlalchemy import case, or_, select, update

from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.ledger import dialects
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.schema import leases

__all__ = ["Leases"]


class Leases:
    """The leases of a ledger."""

    _database: Database

    def acquire(self, name: str, *, owner: str, now: datetime, until: datetime) -> Lease | None:
        """Take a lease that is free, has ended by `now`, or is `owner`'s already; None if another holds it.

        Who holds it already keeps its epoch; every other taking counts it up.
        """
        with self._database.write() as connection:
            wanted = dialects.upsert(connection, leases).values(name=name, owner=owner, epoch=1, until=until)
            same = leases.c.owner == wanted.excluded.owner
            taken = wanted.on_conflict_do_update(
                index_elements=[leases.c.name],
                set_={
                    "owner": wanted.excluded.owner,
                    "epoch": case((same, leases.c.epoch), else_=leases.c.epoch + 1),
                    "until": wanted.excluded.until,
                },
                where=or_(leases.c.owner.is_(None), leases.c.until <= now, same),
            ).returning(leases.c.epoch)
            epoch = connection.execute(taken).scalar_one_or_none()
        return None if epoch is None else Lease(name=name, owner=owner, epoch=epoch, until=until)

    def lease(self, name: str) -> Lease | None:
        """Return who holds a lease, ended or not."""
        with self._database.read() as connection:
            row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
        if row is None or row.owner is None:
            return None
        return Lease(name=row.name, owner=row.owner, epoch=row.epoch, until=row.until)

    def renew(self, lease: Lease, *, until: datetime) -> Lease:
        """Extend a lease that is still held under the same epoch. Raises `LeaseLost`."""
        with self._database.decide(lease) as connection:
            connection.execute(update(leases).where(leases.c.name == lease.name).values(until=until))
        return Lease(name=lease.name, owner=lease.owner, epoch=lease.epoch, until=until)

    def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it was lost."""
        mine = (leases.c.name == lease.name, leases.c.owner == lease.owner, leases.c.epoch == lease.epoch)
        with self._database.write() as connection:
            connection.execute(update(leases).where(*mine).values(owner=None))
