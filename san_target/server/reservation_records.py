"""Persistent reservations in the store: one record for each volume, always its whole state."""

from san_target.group.volumes import DELETING
from san_target.metadata.schema import (
    ReservationsRecord,
    VolumeRecord,
    decode,
    encode,
    reservations_key,
    volume_key,
)
from san_target.metadata.store import Compare, Put, Store, StoreError
from san_target.volume.device import Unavailable

ATTEMPTS = 3


async def load_reservations(store: Store, volume_id: str) -> ReservationsRecord | None:
    """None: nothing was ever stored. StoreError."""
    key = reservations_key(volume_id)
    item = await store.get(key)
    return None if item is None else decode(ReservationsRecord, item.value, key)


async def save_reservations(store: Store, volume_id: str, record: ReservationsRecord) -> None:
    """Returns when the record is durable. Unavailable: it was not stored, or may not have been.

    Bound to the volume's record, so that a volume that is being deleted leaves no reservations behind.
    """
    key = volume_key(volume_id)
    try:
        for _ in range(ATTEMPTS):
            item = await store.get(key)
            if item is None or decode(VolumeRecord, item.value, key).state == DELETING:
                break
            put = Put(reservations_key(volume_id), encode(record))
            if (await store.transact([Compare(key, item.mod_revision)], [put])).succeeded:
                return
    except StoreError as error:
        raise Unavailable(f"reservations cannot be stored: {error}") from error
    raise Unavailable("reservations cannot be stored: the volume changes or is being deleted")
