"""The shared state of units in the store: one record for each volume, always its whole state."""

from san_target.group.volumes import DELETING
from san_target.metadata.schema import ReservationsRecord, VolumeRecord, decode, encode, reservations_key, volume_key
from san_target.metadata.store import Compare, Put, Store, StoreError
from san_target.scsi.shared_state import Outdated
from san_target.volume.device import Unavailable

ATTEMPTS = 3


async def save_reservations(store: Store, volume_id: str, record: ReservationsRecord, epoch: int) -> int:
    """Store a record that was made of the one of this epoch (0 = there was none); its own epoch, once it is durable.

    Bound to the volume's record, so that a volume that is being deleted leaves none behind. Outdated: there is another
    one by now. Unavailable: it was not stored, or may not have been.
    """
    key, volume = reservations_key(volume_id), volume_key(volume_id)
    try:
        for _ in range(ATTEMPTS):
            item = await store.get(volume)
            if item is None or decode(VolumeRecord, item.value, volume).state == DELETING:
                break
            compares = [Compare(volume, item.mod_revision), Compare(key, epoch)]
            result = await store.transact(compares, [Put(key, encode(record))])
            if result.succeeded:
                return result.revision
            present = await store.get(key)
            if (0 if present is None else present.mod_revision) != epoch:
                raise Outdated("the state of the unit was changed at the same time")
    except StoreError as error:
        raise Unavailable(f"the state of the unit cannot be stored: {error}") from error
    raise Unavailable("the state of the unit cannot be stored: the volume changes or is being deleted")
