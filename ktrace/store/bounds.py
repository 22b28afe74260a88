"""Open what an HDF5 file declares only where its bytes can be there: files come from strangers.

A dataset of a part is plain and contiguous. Whatever lets a small file ask for much memory, or
reach for other files, is refused before anything is read: filters (decompression), chunks, storage
that was never written, external and virtual storage, soft and external links, variable length.
"""

import math
from typing import Any

import h5py


def bounded_dataset(owner: h5py.Group, name: str, file_size: int) -> h5py.Dataset:
    """A dataset whose declared shape is what the file holds.

    Raises:
        ValueError: it is not plain, or larger than the file.
        KeyError: it is not there.
    """
    dataset = _own(owner, name)
    where = f"{owner.name.rstrip('/')}/{name}"
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{where} is no dataset")
    created = dataset.id.get_create_plist()
    if (
        created.get_layout() != h5py.h5d.CONTIGUOUS
        or created.get_nfilters()
        or created.get_external_count()
    ):
        raise ValueError(f"{where} is not stored plainly")
    if dataset.dtype.hasobject:
        raise ValueError(f"{where} is of variable length")
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if n_bytes != stored or n_bytes > file_size:
        raise ValueError(f"{where} declares {n_bytes} bytes; {stored} are stored")
    return dataset


def bounded_group(owner: h5py.Group, name: str) -> h5py.Group:
    """A group of the file itself.

    Raises:
        ValueError: it is a link, or no group.
        KeyError: it is not there.
    """
    group = _own(owner, name)
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{owner.name.rstrip('/')}/{name} is no group")
    return group


def bounded_attribute(owner: h5py.HLObject, name: str, file_size: int) -> Any:
    """An attribute's value.

    Raises:
        ValueError: it is of variable length, or larger than the file.
        KeyError: it is not there.
    """
    attribute = owner.attrs.get_id(name)
    if attribute.dtype.hasobject:
        raise ValueError(f"attribute {name} is of variable length")
    n_bytes = math.prod(attribute.shape) * attribute.dtype.itemsize
    if n_bytes > file_size:
        raise ValueError(f"attribute {name} declares {n_bytes} bytes")
    return owner.attrs[name]


def _own(owner: h5py.Group, name: str) -> h5py.HLObject:
    if not isinstance(owner.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{owner.name.rstrip('/')}/{name} leads out of the file")
    return owner[name]
