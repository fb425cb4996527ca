//! Which shards this relay delivers.

pub(crate) mod leases;
