//! RocksDB server, open-loop load generator, experiments and reports.

pub mod clock;
pub mod load;
pub mod priority;
pub mod rocksdb;
pub mod server;
pub mod simulate;
pub mod socket;
pub mod wire;
pub mod work;
